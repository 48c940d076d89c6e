"""Common calls with openai-python.

argv: the base URL, a recording. Prints the results as JSON.
"""

import json
import sys

import openai

base_url, recording = sys.argv[1:]
ai = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
HELLO = [{"role": "user", "content": "hello there"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]

found = {}
found["models"] = [model.id for model in ai.models.list()]
found["model"] = ai.models.retrieve("echo").id
for model in ("echo", "gpt", "cloud/gpt"):
    said = ai.chat.completions.create(model=model, messages=HELLO)
    stream = ai.chat.completions.create(
        model=model, messages=HELLO, stream=True, stream_options={"include_usage": True}, tools=TOOLS
    )
    chunks = list(stream)
    found[model] = {
        "whole": said.choices[0].message.content,
        "finish_reason": said.choices[0].finish_reason,
        "streamed": "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices),
        "usage": [chunk.usage.total_tokens for chunk in chunks if chunk.usage],
    }
found["completion"] = ai.completions.create(model="echo", prompt="go on").choices[0].text
found["embedding"] = ai.embeddings.create(model="echo", input="a text").data[0].embedding
found["floats"] = ai.embeddings.create(model="echo", input="a text", encoding_format="float").data[0].embedding
found["relayed"] = ai.embeddings.create(model="embed", input=["a", "b"]).data[1].embedding
for form in ("json", "text"):
    with open(recording, "rb") as file:
        transcript = ai.audio.transcriptions.create(model="whisper", file=file, response_format=form)
    found[f"transcribed as {form}"] = transcript if isinstance(transcript, str) else transcript.text
found["response"] = ai.responses.create(model="gpt", input="hello").output_text
try:
    ai.chat.completions.create(model="ecko", messages=HELLO)
except openai.NotFoundError as exc:
    found["unknown"] = [exc.code, exc.param, "echo" in exc.message]
raw = ai.chat.completions.with_raw_response.create(model="echo", messages=HELLO)
found["headers"] = [
    raw.headers["x-gateway-backend"],
    bool(raw.request_id),
    "total;dur=" in raw.headers["server-timing"],
]
print(json.dumps(found))
