"""Scored prompts: what lm-eval's `local-completions` sends and reads, echo, prompt_logprobs; and the other parameters of vLLM
that change what is drawn or reported. The engine is the real one: numbers are compared with themselves, byte for byte."""
import json

import pytest

TEXTS = ["The capital of France is Paris, and the capital of Italy is Rome.", "def add(a, b):\n    return a + b\n",
         "Grüße aus Köln: 世界 🙂 done", "One, two, three, four, five, six, seven, eight."]


def complete(server, model, **fields):
    status, answer = server.post("/v1/completions", {"model": model, **fields})
    assert status == 200, answer
    return answer


def ids_of(server, text):
    return server.post("/tokenize", {"prompt": text, "add_special_tokens": False})[1]["tokens"]


def loglikelihood(server, model, prompts, **fields):
    """The request of lm-eval 0.4 for log-likelihoods, key by key."""
    body = {"prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True, **fields}
    return sorted(complete(server, model, **body)["choices"], key=lambda choice: choice["index"])


def test_lm_eval_arrays(server, model):
    prompts = [ids_of(server, text) for text in TEXTS]
    for prompt, text, choice in zip(prompts, TEXTS, loglikelihood(server, model, prompts)):
        logprobs = choice["logprobs"]
        lengths = {len(logprobs[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
        assert lengths == {len(prompt) + 1}
        assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
        for value, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:]):
            assert -9999.0 <= value <= 0.0 and 1 <= len(top) <= 2
            assert value in top.values() and value <= max(top.values())
        assert choice["text"].startswith(text)
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"]):
            if not token.startswith("bytes:"):
                assert choice["text"][offset:offset + len(token)] == token
        greedy = logprobs["token_logprobs"][-1]
        assert greedy == max(logprobs["top_logprobs"][-1].values())


def test_scores_are_those_of_the_generation(server, model):
    """What was generated greedily is scored, as a prompt, with the very numbers it was drawn with."""
    prompt = ids_of(server, TEXTS[0])
    made = complete(server, model, prompt=prompt, temperature=0, max_tokens=40, logprobs=2, return_token_ids=True, ignore_eos=True)["choices"][0]
    assert made["prompt_token_ids"] == prompt and len(made["token_ids"]) == 40
    again = loglikelihood(server, model, [prompt + made["token_ids"]], logprobs=2)[0]["logprobs"]
    at = len(prompt)
    assert again["token_logprobs"][at:-1] == made["logprobs"]["token_logprobs"]
    assert again["top_logprobs"][at:-1] == made["logprobs"]["top_logprobs"]
    assert again["tokens"][at:-1] == made["logprobs"]["tokens"]


def test_batch_1_and_batch_64_are_equal_byte_for_byte(server, model):
    prompts = [ids_of(server, TEXTS[i % 4])[:6 + i % 9] + ids_of(server, f" number {i} of many") for i in range(64)]
    together = [json.dumps(choice["logprobs"]) for choice in loglikelihood(server, model, prompts)]
    for i in range(0, 64, 13):
        alone = loglikelihood(server, model, [prompts[i]])[0]["logprobs"]
        assert json.dumps(alone) == together[i], i


def test_a_cached_prefix_does_not_change_scores(server, model):
    prompt = (ids_of(server, TEXTS[0]) * 12)[:150]
    first = loglikelihood(server, model, [prompt])[0]
    complete(server, model, prompt=prompt + [5], max_tokens=1)
    assert loglikelihood(server, model, [prompt])[0]["logprobs"] == first["logprobs"]


def test_max_tokens_0_scores_the_prompt_alone(server, model):
    for text in (TEXTS[3], "a"):
        prompt = ids_of(server, text)
        answer = complete(server, model, prompt=[prompt], max_tokens=0, logprobs=1, echo=True)
        logprobs = answer["choices"][0]["logprobs"]
        assert len(logprobs["tokens"]) == len(prompt) == len(logprobs["token_logprobs"])
        assert answer["choices"][0]["text"] == text and answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 0
        with_one = loglikelihood(server, model, [prompt])[0]["logprobs"]
        assert with_one["token_logprobs"][:-1] == logprobs["token_logprobs"]


def test_echo_stream_equals_body(server, client, model):
    ask = dict(model=model, prompt=TEXTS[2], temperature=0, max_tokens=8, logprobs=3, echo=True)
    body = client.completions.create(**ask).choices[0]
    text, tokens, values, offsets = "", [], [], []
    for chunk in client.completions.create(stream=True, **ask):
        choice = chunk.choices[0]
        text += choice.text
        if choice.logprobs:
            tokens += choice.logprobs.tokens
            values += choice.logprobs.token_logprobs
            offsets += choice.logprobs.text_offset
    assert text == body.text and text.startswith(TEXTS[2])
    assert (tokens, values, offsets) == (body.logprobs.tokens, body.logprobs.token_logprobs, body.logprobs.text_offset)


def test_echo_without_logprobs(client, model):
    body = client.completions.create(model=model, prompt=["<|im_start|>x", "two"], max_tokens=3, temperature=0, echo=True)
    assert body.choices[0].text.startswith("<|im_start|>x") and body.choices[1].text.startswith("two")
    assert client.completions.create(model=model, prompt="abc", max_tokens=0, echo=True).choices[0].text == "abc"


def test_prompt_logprobs(server, model):
    prompt = ids_of(server, TEXTS[1])
    choice = complete(server, model, prompt=prompt, max_tokens=1, prompt_logprobs=2, temperature=0)["choices"][0]
    scored = loglikelihood(server, model, [prompt], logprobs=2)[0]["logprobs"]
    assert choice["logprobs"] is None and choice["prompt_logprobs"][0] is None and len(choice["prompt_logprobs"]) == len(prompt)
    for id, entry, value in list(zip(prompt, choice["prompt_logprobs"], scored["token_logprobs"]))[1:]:
        assert entry[str(id)]["logprob"] == value and 2 <= len(entry) <= 3
        ranks = sorted(e["rank"] for e in entry.values())
        assert ranks[:2] == [1, 2] and entry[str(id)]["rank"] >= 1
    status, chat = server.post("/v1/chat/completions", {"model": model, "max_tokens": 2, "prompt_logprobs": 0, "return_token_ids": True,
                                                        "messages": [{"role": "user", "content": "Hi"}]})
    assert status == 200 and len(chat["prompt_logprobs"]) == len(chat["prompt_token_ids"]) == chat["usage"]["prompt_tokens"]
    assert all(len(entry) == 1 for entry in chat["prompt_logprobs"][1:]) and len(chat["choices"][0]["token_ids"]) == 2


def test_n_choices_are_each_scored(server, model):
    choices = complete(server, model, prompt=TEXTS[3], n=3, seed=5, max_tokens=2, logprobs=0, echo=True)["choices"]
    prompt = len(server.post("/tokenize", {"prompt": TEXTS[3]})[1]["tokens"])
    assert len({json.dumps(c["logprobs"]["token_logprobs"][:prompt]) for c in choices}) == 1
    assert all(c["text"].startswith(TEXTS[3]) for c in choices)


# ---- what may be drawn ----

def test_allowed_token_ids(server, model):
    allowed = ids_of(server, " yes no maybe")
    choice = complete(server, model, prompt="Is water wet?", max_tokens=12, temperature=1, seed=3, allowed_token_ids=allowed,
                      return_token_ids=True)["choices"][0]
    assert len(choice["token_ids"]) == 12 and set(choice["token_ids"]) <= set(allowed)


def test_bad_words(server, model):
    ask = dict(prompt="The capital of France is", temperature=0, max_tokens=24)
    free = complete(server, model, **ask)["choices"][0]["text"]
    assert "Paris" in free
    assert "Paris" not in complete(server, model, bad_words=["Paris"], **ask)["choices"][0]["text"]
    run = free.split()[3:6]                       # a word of several tokens: blocked as a whole, not its beginning
    phrase = " ".join(run)
    assert phrase in free and phrase not in complete(server, model, bad_words=[phrase], **ask)["choices"][0]["text"]


def test_truncation(server, model):
    ids = list(range(1000, 1040))
    for side, expected in (("left", ids[-8:]), ("right", ids[:8])):
        choice = complete(server, model, prompt=ids, max_tokens=1, truncate_prompt_tokens=8, truncation_side=side, return_token_ids=True)["choices"][0]
        assert choice["prompt_token_ids"] == expected
    context = server.post("/tokenize", {"prompt": "a"})[1]["max_model_len"]
    end = ids_of(server, "<|im_end|>")
    answer = complete(server, model, prompt="word " * 20000, max_tokens=context - 30, truncate_prompt_tokens=-1, allowed_token_ids=end)
    assert answer["usage"]["prompt_tokens"] == 30 and answer["choices"][0]["finish_reason"] == "stop"


def test_return_token_ids_in_a_stream(client, server, model):
    first, ids, text = None, [], ""
    for chunk in client.completions.create(model=model, prompt=TEXTS[0], max_tokens=6, temperature=0, stream=True,
                                           extra_body={"return_token_ids": True}):
        choice = chunk.choices[0].model_dump()
        if "prompt_token_ids" in choice:
            assert first is None
            first = choice["prompt_token_ids"]
        ids += choice.get("token_ids") or []
        text += choice["text"]
    assert first == server.post("/tokenize", {"prompt": TEXTS[0]})[1]["tokens"]
    assert server.post("/detokenize", {"tokens": ids})[1]["prompt"] == text and len(ids) == 6


def test_best_of(server, model):
    ask = dict(prompt="Once upon a time", temperature=1.2, seed=11, max_tokens=8)
    all_of_them = complete(server, model, n=6, logprobs=0, **ask)["choices"]
    mean = {c["text"]: sum(c["logprobs"]["token_logprobs"]) / len(c["logprobs"]["token_logprobs"]) for c in all_of_them}
    best = complete(server, model, best_of=6, n=2, **ask)
    assert [c["text"] for c in best["choices"]] == sorted(mean, key=mean.get, reverse=True)[:2]
    assert [c["index"] for c in best["choices"]] == [0, 1] and best["usage"]["completion_tokens"] == 48


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_chat_template_reads_arguments_as_an_object(server, model, field):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1.0}"}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": "7"}]
    status, answer = server.post("/v1/chat/completions", {"model": model, "messages": messages, field: 1})
    assert status == 200, answer
    call["function"]["arguments"] = "{"
    status, answer = server.post("/v1/chat/completions", {"model": model, "messages": messages, field: 1})
    assert (status, answer["error"]["param"]) == (400, "messages[1].tool_calls[0].function.arguments")
