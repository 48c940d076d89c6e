"""Common calls with LangChain. argv: the base URL. Prints the results as JSON."""

import json
import sys

from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

base_url = sys.argv[1]
found = {}
for model in ("echo", "gpt", "cloud/gpt"):
    chat = ChatOpenAI(model=model, base_url=base_url, api_key="none", max_retries=0, stream_usage=True)
    chunks = list(chat.stream([HumanMessage("hello there")]))
    found[model] = {
        "whole": chat.invoke("hello there").content,
        "streamed": "".join(chunk.content for chunk in chunks),
        "usage": [chunk.usage_metadata["total_tokens"] for chunk in chunks if chunk.usage_metadata],
        "batch": [said.content for said in chat.batch(["hello there"] * 3)],
    }
# Disabling the check avoids local tokenization, which would need a download.
vectors = OpenAIEmbeddings(model="echo", base_url=base_url, api_key="none", check_embedding_ctx_length=False)
found["embedding"] = vectors.embed_query("a text")
found["embeddings"] = vectors.embed_documents(["a text", "another"])
print(json.dumps(found))
