"""The OpenAI SDK, sync and async, against the real server and model."""
import asyncio
import json

import openai
import pytest

QUESTION = [{"role": "user", "content": "Write one sentence about the sea."}]
GREEDY = {"temperature": 0, "max_tokens": 24}


def chat_text(chunks):
    """Text of choice 0 of a finished chat stream, with the order of its frames checked."""
    text, roles, finishes = "", 0, []
    for chunk in chunks:
        for choice in chunk.choices:
            assert not finishes, "a frame after the last of its choice"
            if choice.delta.role:
                roles += 1
                assert text == ""
            text += choice.delta.content or ""
            if choice.finish_reason:
                finishes.append(choice.finish_reason)
    assert roles == 1 and len(finishes) == 1
    return text, finishes[0]


def test_models(client, model):
    listed = client.models.list().data
    assert listed[0].id == model and listed[0].object == "model" and listed[0].owned_by == "sluice"
    assert client.models.retrieve(model).id == model
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("no/such")
    assert error.value.code == "model_not_found"


def test_chat_stream_equals_body(client, model):
    body = client.chat.completions.create(model=model, messages=QUESTION, **GREEDY)
    stream = list(client.chat.completions.create(model=model, messages=QUESTION, stream=True, **GREEDY))
    text, finish = chat_text(stream)
    choice = body.choices[0]
    assert len(text) > 10
    assert (choice.message.content, choice.finish_reason) == (text, finish)
    assert choice.message.role == "assistant" and choice.message.refusal is None
    assert len({chunk.id for chunk in stream}) == 1 and stream[0].id.startswith("chatcmpl-")
    assert all(chunk.usage is None for chunk in stream)
    assert body.system_fingerprint == stream[0].system_fingerprint and body.system_fingerprint.startswith("fp_")
    assert body.usage.total_tokens == body.usage.prompt_tokens + body.usage.completion_tokens
    assert 0 < body.usage.completion_tokens <= 24


def test_completion_stream_equals_body(client, model):
    body = client.completions.create(model=model, prompt="The capital of France is", **GREEDY)
    stream = list(client.completions.create(model=model, prompt="The capital of France is", stream=True,
                                            stream_options={"include_usage": True}, **GREEDY))
    assert "".join(c.choices[0].text for c in stream[:-1]) == body.choices[0].text
    assert "Paris" in body.choices[0].text
    assert stream[-1].choices == [] and stream[-1].usage.completion_tokens == body.usage.completion_tokens
    assert body.usage.prompt_tokens == stream[-1].usage.prompt_tokens > 3
    assert all(c.usage is None for c in stream[:-1])


def test_prompt_forms(client, model, server):
    ids = json.loads(post(server, "/tokenize", {"prompt": "The capital of France is"}))["tokens"]
    text = client.completions.create(model=model, prompt="The capital of France is", **GREEDY)
    by_ids = client.completions.create(model=model, prompt=ids, **GREEDY)
    many = client.completions.create(model=model, prompt=["The capital of France is", "One, two,"], **GREEDY)
    lists = client.completions.create(model=model, prompt=[ids, ids], **GREEDY)
    expected = text.choices[0].text
    assert by_ids.choices[0].text == expected
    assert [c.index for c in many.choices] == [0, 1] and many.choices[0].text == expected
    assert [c.text for c in lists.choices] == [expected] * 2
    assert lists.usage.prompt_tokens == 2 * len(ids)


def post(server, path, body):
    import urllib.request
    request = urllib.request.Request(server.url + path, json.dumps(body).encode())
    return urllib.request.urlopen(request, timeout=60).read()


def test_tokenize_round_trip(server):
    text = "Grüße, 世界! 🙂 <b>x</b>\n\t"
    tokens = json.loads(post(server, "/tokenize", {"prompt": text, "add_special_tokens": False}))
    assert tokens["count"] == len(tokens["tokens"]) > 5
    assert json.loads(post(server, "/detokenize", {"tokens": tokens["tokens"]}))["prompt"] == text


def test_n_choices_are_seeded(client, model):
    ask = dict(model=model, messages=QUESTION, n=3, seed=7, temperature=1, max_tokens=16)
    first, second = client.chat.completions.create(**ask), client.chat.completions.create(**ask)
    texts = [c.message.content for c in first.choices]
    assert [c.index for c in first.choices] == [0, 1, 2]
    assert texts == [c.message.content for c in second.choices]
    assert len(set(texts)) > 1
    other = client.chat.completions.create(**{**ask, "seed": 8})
    assert texts != [c.message.content for c in other.choices]


def test_n_choices_in_a_stream(client, model):
    ask = dict(model=model, messages=QUESTION, n=3, seed=7, temperature=1, max_tokens=16)
    texts = {0: "", 1: "", 2: ""}
    for chunk in client.chat.completions.create(stream=True, **ask):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    whole = client.chat.completions.create(**ask)
    assert texts == {c.index: c.message.content for c in whole.choices}


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string(client, model, stream):
    prompt = "Count: one, two, three, four,"
    free = client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=32).choices[0].text
    stop = free[9:14]
    expected = free[:free.index(stop)]
    ask = dict(model=model, prompt=prompt, temperature=0, max_tokens=32, stop=[stop, "never seen"])
    if stream:
        chunks = list(client.completions.create(stream=True, **ask))
        text, last = "".join(c.choices[0].text for c in chunks), chunks[-1].choices[0]
    else:
        last = client.completions.create(**ask).choices[0]
        text = last.text
    assert text == expected
    assert last.finish_reason == "stop" and last.stop_reason == stop
    kept = client.completions.create(extra_body={"include_stop_str_in_output": True}, **ask).choices[0].text
    assert kept == expected + stop


def test_length_and_ignore_eos(client, model):
    body = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=40, extra_body={"ignore_eos": True})
    assert body.choices[0].finish_reason == "length" and body.usage.completion_tokens == 40
    empty = client.completions.create(model=model, prompt="a", max_tokens=0)
    assert (empty.choices[0].text, empty.choices[0].finish_reason, empty.usage.completion_tokens) == ("", "length", 0)


def test_completion_logprobs(client, model):
    body = client.completions.create(model=model, prompt="The capital of France is", logprobs=3, **GREEDY)
    logprobs = body.choices[0].logprobs
    n = body.usage.completion_tokens
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(logprobs.text_offset) == n
    assert all(value == max(top.values()) for value, top in zip(logprobs.token_logprobs, logprobs.top_logprobs))
    assert all(3 <= len(top) <= 4 for top in logprobs.top_logprobs)
    text = body.choices[0].text
    for token, offset in zip(logprobs.tokens[:4], logprobs.text_offset[:4]):
        assert text[offset:offset + len(token)] == token


def test_chat_logprobs_stream_equals_body(client, model):
    ask = dict(model=model, messages=QUESTION, logprobs=True, top_logprobs=2, temperature=0, max_tokens=12)
    body = client.chat.completions.create(**ask).choices[0].logprobs.content
    streamed = [entry for chunk in client.chat.completions.create(stream=True, **ask) for choice in chunk.choices if choice.logprobs
                for entry in choice.logprobs.content]
    assert [(e.token, e.logprob, e.bytes) for e in streamed] == [(e.token, e.logprob, e.bytes) for e in body]
    assert all(len(e.top_logprobs) == 2 and e.top_logprobs[0].logprob == e.logprob for e in body)


def test_errors_are_typed(client, model):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nope", messages=QUESTION)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=model, messages=QUESTION, temperature=3)
    assert (bad.value.code, bad.value.param, bad.value.type) == ("decimal_above_max_value", "temperature", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model=model, prompt="word " * 20000)
    assert "This model's maximum context length is" in str(long.value) and long.value.code == "context_length_exceeded"
    assert bad.value.response.headers["x-request-id"].startswith("req_")


def test_async_streams_equal_single_runs(async_client, client, model):
    prompts = [f"Number {i} is followed by" for i in range(16)]
    alone = [client.completions.create(model=model, prompt=p, **GREEDY).choices[0].text for p in prompts]

    async def one(prompt):
        stream = await async_client.completions.create(model=model, prompt=prompt, stream=True, **GREEDY)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_at_once():
        return await asyncio.gather(*(one(p) for p in prompts))

    assert asyncio.run(all_at_once()) == alone


def test_async_body(async_client, model):
    async def ask():
        return await async_client.chat.completions.create(model=model, messages=QUESTION, **GREEDY)

    assert asyncio.run(ask()).choices[0].message.content
