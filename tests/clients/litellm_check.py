"""litellm_check.py URL - litellm's `openai/` and `text-completion-openai/` providers: answer, stream, typed errors."""
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"          # nothing is fetched

import litellm  # noqa: E402

base = {"api_base": sys.argv[1] + "/v1", "api_key": "none", "temperature": 0, "num_retries": 0}
ask = {"model": "openai/m", "messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 16, **base}
answer = litellm.completion(**ask)
assert "Paris" in answer.choices[0].message.content and answer.usage.completion_tokens > 0, answer
pieces = [chunk.choices[0].delta.content or "" for chunk in litellm.completion(stream=True, **ask)]
assert "".join(pieces) == answer.choices[0].message.content and len(pieces) > 3
text = litellm.text_completion(model="text-completion-openai/m", prompt="The capital of France is", max_tokens=8, **base)
assert "Paris" in text.choices[0].text, text
for fields, kind in (({"messages": [{"role": "user", "content": "word " * 20000}]}, litellm.ContextWindowExceededError),
                     ({"model": "openai/nobody"}, litellm.NotFoundError), ({"temperature": 3}, litellm.BadRequestError)):
    try:
        litellm.completion(**{**ask, **fields})
        raise SystemExit(f"{kind.__name__} did not come")
    except kind:
        pass
print(f"completion, stream ({len(pieces)} chunks), text completion, three typed errors")
