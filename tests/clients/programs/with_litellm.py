"""Common calls with LiteLLM's SDK. argv: the base URL. Prints the results as JSON."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it downloads a price list
import litellm

where = {"api_base": sys.argv[1], "api_key": "none", "num_retries": 0}
HELLO = [{"role": "user", "content": "hello there"}]
found = {}
for model in ("echo", "gpt", "cloud/gpt"):
    said = litellm.completion(model=f"openai/{model}", messages=HELLO, **where)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(litellm.completion(model=f"openai/{model}", messages=HELLO, **options, **where))
    found[model] = {
        "whole": said.choices[0].message.content,
        "streamed": "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices),
    }
found["embedding"] = litellm.embedding(model="openai/echo", input=["a text"], encoding_format="float", **where).data[0][
    "embedding"
]
try:
    litellm.completion(model="openai/ecko", messages=HELLO, **where)
except litellm.NotFoundError as exc:
    found["unknown"] = exc.status_code
print(json.dumps(found))
