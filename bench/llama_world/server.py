"""Run llama.cpp's server with the counting model and print its URL.

Ends at the end of its input.

python server.py        needs `xllamacpp` (llama.cpp with its server, as wheels) and `gguf`
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import xllamacpp
from counting_model import CONTEXT, NAME, write

SLOTS = 2


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{NAME}.gguf")
        write(path)
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.model_alias = {NAME}
        params.hostnames = ["127.0.0.1"]
        params.port = 0
        params.n_parallel = SLOTS
        params.n_ctx = CONTEXT
        params.cpuparams.n_threads = 1
        params.endpoint_metrics = True
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        server = xllamacpp.Server(params)
        print(server.listening_address, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
