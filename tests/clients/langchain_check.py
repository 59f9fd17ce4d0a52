"""langchain_check.py URL - ChatOpenAI: answer, stream with usage, batch, the error of a prompt that is too long."""
import sys

import openai
from langchain_openai import ChatOpenAI, OpenAI

base = {"base_url": sys.argv[1] + "/v1", "api_key": "none", "model": "m", "temperature": 0, "max_retries": 0}
chat = ChatOpenAI(max_tokens=16, stream_usage=True, **base)
answer = chat.invoke("What is the capital of France?")
assert "Paris" in answer.content and answer.usage_metadata["output_tokens"] > 0, answer
pieces = list(chat.stream("What is the capital of France?"))
assert "".join(piece.content for piece in pieces) == answer.content and len(pieces) > 3
assert sum(piece.usage_metadata["output_tokens"] for piece in pieces if piece.usage_metadata) == answer.usage_metadata["output_tokens"]
assert [a.content for a in chat.batch(["What is the capital of France?"] * 3)] == [answer.content] * 3
assert "Paris" in OpenAI(max_tokens=8, **base).invoke("The capital of France is")
try:
    chat.invoke("word " * 20000)
    raise SystemExit("a prompt beyond the context was answered")
except openai.BadRequestError as error:
    assert "maximum context length" in str(error)
print(f"invoke, stream ({len(pieces)} chunks), batch, completion, error")
