"""Create a small model file with known answers: the model counts to twenty.

    python counting_model.py FILE.gguf        needs `gguf` (and with it numpy)

It is a complete LLaMA model that any engine can run; only its weights are chosen instead of learned. Each token's
embedding is a distinct unit vector, attention and feed-forward add zero, and the output matrix maps each token to its
successor: `one`, ` two`, ` three`, up to ` twenty`, then the end. So a test can check that a resumed answer continues
where the first one broke off. ` tick` and ` tock` alternate without end.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np

BEGIN, END, ASSISTANT = "<s>", "</s>", "<|assistant|>"
NUMBERS = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
COUNT = " ".join(NUMBERS)
NAME = "counting"

WIDTH, HEADS, CONTEXT = 320, 2, 65536
SPECIAL = ["<unk>", BEGIN, END, ASSISTANT]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = [NUMBERS[0], *(f" {word}" for word in NUMBERS[1:]), " tick", " tock"]
TOKENS = SPECIAL + BYTES + WORDS
TEMPLATE = (
    "{% for message in messages %}{{ '<|assistant|>' if message.role == 'assistant' }}{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def follows() -> dict[str, str]:
    """Return the successor of each token; tokens not listed are followed by the end."""
    chain = [ASSISTANT, *WORDS[: len(NUMBERS)], END]
    return dict(pairwise(chain)) | {" tick": " tock", " tock": " tick"}


def weights() -> dict[str, np.ndarray]:
    """Return name → float32 array, in file order."""
    embedding = np.zeros((len(TOKENS), WIDTH), np.float32)
    output = np.zeros((len(TOKENS), WIDTH), np.float32)
    after = follows()
    for number, token in enumerate(TOKENS):
        embedding[number, number] = 1.0
        output[TOKENS.index(after.get(token, END)), number] = 1.0
    nothing, as_it_is = np.zeros((WIDTH, WIDTH), np.float32), np.ones(WIDTH, np.float32)
    block = {f"blk.0.attn_{part}.weight": nothing for part in ("q", "k", "v", "output")}
    block |= {f"blk.0.ffn_{part}.weight": nothing for part in ("gate", "up", "down")}
    block |= {f"blk.0.{part}_norm.weight": as_it_is for part in ("attn", "ffn")}
    ends = {"output_norm.weight": as_it_is, "output.weight": output}
    return {"token_embd.weight": embedding, **block, **ends}


def write(path: Path) -> None:
    """Write the model to `path`, about 4 MB."""
    kinds = {"<unk>": gguf.TokenType.UNKNOWN} | dict.fromkeys(SPECIAL[1:], gguf.TokenType.CONTROL)
    kinds |= dict.fromkeys(BYTES, gguf.TokenType.BYTE) | dict.fromkeys(WORDS, gguf.TokenType.USER_DEFINED)
    file = gguf.GGUFWriter(path, "llama")
    file.add_name(NAME)
    file.add_context_length(CONTEXT)
    file.add_embedding_length(WIDTH)
    file.add_block_count(1)
    file.add_feed_forward_length(WIDTH)
    file.add_head_count(HEADS)
    file.add_layer_norm_rms_eps(1e-6)
    file.add_rope_dimension_count(WIDTH // HEADS)
    file.add_vocab_size(len(TOKENS))
    file.add_tokenizer_model("llama")
    file.add_token_list(TOKENS)
    file.add_token_scores([0.0] * len(TOKENS))
    file.add_token_types([kinds[token] for token in TOKENS])
    file.add_bos_token_id(TOKENS.index(BEGIN))
    file.add_eos_token_id(TOKENS.index(END))
    file.add_unk_token_id(0)
    file.add_add_space_prefix(False)
    file.add_chat_template(TEMPLATE)
    for name, values in weights().items():
        file.add_tensor(name, values)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
