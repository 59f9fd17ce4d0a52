"""Each parameter of the contract's section 2 that no other file shows at work: with it the answer differs from the one without it in
exactly what it promises. And what a tokenizer client asks."""
import json
import urllib.error
import urllib.request

import pytest

from server import Server

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def complete(server, model):
    def ask(prompt=PROMPT, **fields):
        status, answer = server.post("/v1/completions", {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 8, **fields})
        assert status == 200, answer
        return answer
    return ask


@pytest.fixture(scope="module")
def chat(server, model):
    def ask(text="Say hello.", **fields):
        status, answer = server.post("/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": text}],
                                                              "temperature": 0, "max_tokens": 8, **fields})
        assert status == 200, answer
        return answer
    return ask


@pytest.fixture(scope="module")
def greedy(complete):
    """Text, ids and the ids of the prompt."""
    choice = complete(return_token_ids=True)["choices"][0]
    assert len(choice["token_ids"]) == 8
    return choice


def choice_of(answer):
    return answer["choices"][0]


def frames(server, path, body):
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        events = answer.read().decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2]]


# ---- what is drawn ----

@pytest.mark.parametrize("fields", [{"temperature": 1e-6}, {"temperature": 2, "top_k": 1}, {"temperature": 2, "top_p": 0},
                                    {"temperature": 2, "min_p": 1}])
def test_narrow_sampling_is_greedy(complete, greedy, fields):
    assert choice_of(complete(**{"seed": 7, **fields}))["text"] == greedy["text"]
    hot = {choice_of(complete(seed=seed, temperature=2))["text"] for seed in range(3)}
    assert hot != {greedy["text"]}


@pytest.mark.parametrize("off", [-1, 0, 10**6])
def test_top_k_off(complete, off):
    wide = choice_of(complete(seed=11, temperature=1.5))["text"]
    assert choice_of(complete(seed=11, temperature=1.5, top_k=off))["text"] == wide


def test_penalties(complete):
    """Over generated tokens: from the second on, no repeats when they are high; over the prompt too: the first one already."""
    def ids(**fields):
        return choice_of(complete("One, one, one, one, one,", max_tokens=12, return_token_ids=True, ignore_eos=True, **fields))["token_ids"]

    plain = ids()
    repeats = len(plain) - len(set(plain))
    assert repeats > 3
    for fields in ({"frequency_penalty": 2}, {"presence_penalty": 2}, {"repetition_penalty": 5}):
        penalised = ids(**fields)
        assert len(penalised) - len(set(penalised)) < repeats, fields
        assert (penalised[0] == plain[0]) == ("repetition_penalty" not in fields)
    assert len(set(ids(frequency_penalty=-2))) <= len(set(plain))


def test_logit_bias(complete, greedy):
    wanted, banned = 4093, greedy["token_ids"][0]
    ids = choice_of(complete(return_token_ids=True, logit_bias={str(wanted): 100}))["token_ids"]
    assert ids == [wanted] * 8
    assert choice_of(complete(return_token_ids=True, logit_bias={str(banned): -100}))["token_ids"][0] != banned
    # reported numbers are the model's own, whatever the bias
    biased = choice_of(complete(logprobs=0, max_tokens=1, logit_bias={str(banned): 5}))["logprobs"]["token_logprobs"]
    assert biased == choice_of(complete(logprobs=0, max_tokens=1))["logprobs"]["token_logprobs"]


# ---- where it ends ----

def test_stop_token_ids(complete, greedy):
    stop = greedy["token_ids"][3]
    first = greedy["token_ids"].index(stop)
    answer = complete(return_token_ids=True, stop_token_ids=[stop])
    choice = choice_of(answer)
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    assert greedy["text"].startswith(choice["text"]) and len(choice["text"]) < len(greedy["text"])
    assert answer["usage"]["completion_tokens"] == first + 1


def test_min_tokens(complete, greedy):
    """Ids that end are masked before that, stop strings are not looked for."""
    stop = greedy["token_ids"][1]
    choice = choice_of(complete(return_token_ids=True, stop_token_ids=[stop], min_tokens=4))
    assert len(choice["token_ids"]) >= 4 and stop not in choice["token_ids"][:3]
    word = greedy["text"].split()[0]
    answer = complete(stop=word, min_tokens=6)
    assert answer["usage"]["completion_tokens"] >= 6 and word in choice_of(answer)["text"]
    assert complete(stop=word)["usage"]["completion_tokens"] < 6


def test_max_completion_tokens_wins(complete, chat):
    assert complete(max_tokens=8, max_completion_tokens=3, ignore_eos=True)["usage"]["completion_tokens"] == 3
    assert chat(max_tokens=2, max_completion_tokens=3, ignore_eos=True)["usage"]["completion_tokens"] == 3


def test_default_and_clamped_lengths(new_server):
    server = new_server("--max-model-len", "64")
    for path, prompt, fields, made in (("completions", [1000] * 4, {}, 16), ("completions", [1000] * 59, {"max_tokens": 100}, 5),
                                       ("completions", [1000] * 59, {"max_tokens": 0}, 0), ("chat/completions", None, {}, None)):
        body = {"model": "m", "ignore_eos": True, "messages": [{"role": "user", "content": "a"}], "prompt": prompt, **fields}
        status, answer = server.post(f"/v1/{path}", body)
        usage = answer["usage"]
        assert status == 200 and choice_of(answer)["finish_reason"] == "length"
        assert usage["completion_tokens"] == (64 - usage["prompt_tokens"] if made is None else made)
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@pytest.mark.parametrize("fields, dead", [({"allowed_token_ids": [2], "min_tokens": 1}, True), ({"allowed_token_ids": [2, 5], "min_tokens": 1}, False),
                                          ({"allowed_token_ids": [28], "bad_words": [","]}, True), ({"allowed_token_ids": [2]}, False)])
def test_dead_ends_are_told(server, model, fields, dead):
    """Masks that leave no token: never an unconstrained one, and no fault of the numbers."""
    assert server.post("/detokenize", {"tokens": [28]})[1]["prompt"] == ","
    for stream in (False, True):
        request = urllib.request.Request(server.url + "/v1/completions", json.dumps({"model": model, "prompt": PROMPT, "max_tokens": 2, "stream": stream,
                                                                                      **fields}).encode())
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                assert not dead and answer.status == 200
        except urllib.error.HTTPError as error:
            assert dead and (error.code, json.loads(error.read())["error"]["code"]) == (500, "grammar_dead_end")
            assert error.headers["x-should-retry"] == "false"
    assert server.metric("vllm:corrupted_requests_total") == 0


# ---- what is shown ----

def test_special_tokens_in_prompts_and_answers(complete, chat):
    text = "<|im_start|>user"
    parsed = complete(text, return_token_ids=True)
    plain = complete(text, return_token_ids=True, parse_special_tokens=False)
    assert choice_of(parsed)["prompt_token_ids"][0] == 1
    assert 1 not in choice_of(plain)["prompt_token_ids"] and plain["usage"]["prompt_tokens"] > parsed["usage"]["prompt_tokens"]
    for field, shown in ((True, ""), (False, "<|im_start|>" * 8)):
        answer = complete(skip_special_tokens=field, logit_bias={"1": 100}, ignore_eos=True)
        assert choice_of(answer)["text"] == shown
    assert chat("<|im_start|>")["usage"]["prompt_tokens"] > chat("a")["usage"]["prompt_tokens"]


def test_tokens_as_token_ids(complete, chat, greedy):
    plain, named = (choice_of(complete(logprobs=2, return_tokens_as_token_ids=flag))["logprobs"] for flag in (False, True))
    assert named["tokens"] == [f"token_id:{i}" for i in greedy["token_ids"]]
    assert named["token_logprobs"] == plain["token_logprobs"] and named["text_offset"] == plain["text_offset"]
    assert all(key.startswith("token_id:") for row in named["top_logprobs"] for key in row)
    ids = choice_of(chat(return_token_ids=True))["token_ids"]
    entries = choice_of(chat(logprobs=True, top_logprobs=2, return_tokens_as_token_ids=True))["logprobs"]["content"]
    assert [entry["token"] for entry in entries] == [f"token_id:{i}" for i in ids]
    assert all(len(entry["top_logprobs"]) == 2 and entry["top_logprobs"][0]["token"].startswith("token_id:") for entry in entries)
    assert b"".join(bytes(entry["bytes"]) for entry in entries)          # always the true bytes


def test_chat_ids(chat):
    answer = chat(return_token_ids=True)
    assert answer["prompt_token_ids"][0] == 1 and len(answer["prompt_token_ids"]) == answer["usage"]["prompt_tokens"]
    assert "prompt_token_ids" not in chat() and "token_ids" not in choice_of(chat())


def test_continuing_a_message(server, model, chat):
    whole = choice_of(chat(max_tokens=12))["message"]["content"]
    messages = [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": whole[:5]}]
    body = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 12, "return_token_ids": True}
    status, answer = server.post("/v1/chat/completions", {**body, "continue_final_message": True})
    assert status == 200 and answer["prompt_token_ids"][-1] not in (1, 2)
    _, closed = server.post("/v1/chat/completions", {**body, "add_generation_prompt": False})
    _, opened = server.post("/v1/chat/completions", body)
    n = len(closed["prompt_token_ids"])
    assert opened["prompt_token_ids"][:n] == closed["prompt_token_ids"] and len(opened["prompt_token_ids"]) > n
    assert len(answer["prompt_token_ids"]) < n
    status, answer = server.post("/v1/chat/completions", {**body, "continue_final_message": True, "add_generation_prompt": True})
    assert (status, answer["error"]["param"]) == (400, "continue_final_message")


def test_usage_in_streams(server, model):
    body = {"model": model, "prompt": PROMPT, "max_tokens": 4, "temperature": 0, "ignore_eos": True, "stream": True}
    assert all("usage" not in frame for frame in frames(server, "/v1/completions", body))
    some = frames(server, "/v1/completions", {**body, "stream_options": {"include_usage": True}})
    assert all(frame["usage"] is None for frame in some[:-1]) and some[-1]["choices"] == []
    running = frames(server, "/v1/completions", {**body, "stream_options": {"include_usage": True, "continuous_usage_stats": True}})
    counts = [frame["usage"]["completion_tokens"] for frame in running]
    assert counts == sorted(counts) and counts[-1] == 4 and running[-1]["choices"] == []
    lone = frames(server, "/v1/completions", {**body, "stream_options": {"continuous_usage_stats": True}})
    assert all("usage" not in frame for frame in lone)
    for key in ("id", "created", "model", "system_fingerprint", "object"):
        assert len({frame[key] for frame in running}) == 1


# ---- who shares, who waits ----

def test_cache_salt(complete):
    prompt = list(range(5000, 5200))

    def cached(**fields):
        return complete(prompt, max_tokens=1, **fields)["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached(cache_salt="a") == 0
    assert cached(cache_salt="a") >= 128
    assert cached(cache_salt="b") == 0 and cached() == 0 and cached() >= 128


@pytest.mark.parametrize("fields", [{"timeout_total_ms": 150}, {"timeout_ms": 150}, {"timeout_total_ms": 60000, "timeout_ms": 150}])
def test_time_limit_of_a_request(server, model, fields):
    status, answer = server.post("/v1/completions", {"model": model, "prompt": PROMPT, "max_tokens": 2000, "ignore_eos": True, **fields})
    assert (status, answer["error"]["code"], answer["error"]["type"]) == (503, "total_timeout", "server_error")


def test_time_limit_of_a_stream(server, model):
    body = {"model": model, "prompt": PROMPT, "max_tokens": 2000, "ignore_eos": True, "stream": True, "timeout_ms": 3000}
    last = frames(server, "/v1/completions", body)[-1]
    assert last["error"]["code"] in ("total_timeout", "ttft_timeout")


# ---- what changes nothing ----

def test_ignored_fields_change_nothing(complete, chat, greedy):
    ignored = {"user": "u", "safety_identifier": "s", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "prompt_cache_key": "k",
               "prompt_cache_retention": "24h", "prediction": {"type": "content", "content": "x"}, "verbosity": "low", "request_id": "r",
               "session_id": "s", "stream_interval": 5, "spaces_between_special_tokens": False, "length_penalty": 2, "early_stopping": True,
               "return_prompt_text": True, "return_token_offsets": True, "mm_processor_kwargs": {}, "media_io_kwargs": {}, "made_up": [1]}
    assert choice_of(complete(**ignored))["text"] == greedy["text"]
    plain = choice_of(chat())["message"]
    assert choice_of(chat(**ignored, include_reasoning=False, parallel_tool_calls=True, reasoning_effort="high", tool_choice="auto",
                          chat_template_kwargs={"no_such_variable": 1}))["message"] == plain


# ---- what tokenizer clients ask ----

def test_tokenizer_routes(server):
    status, text = server.get("/tokenizer_info")
    info = json.loads(text)
    assert status == 200 and info["eos_token"] == "<|im_end|>" and info["model_max_length"] > 1000
    assert {"bos_token", "pad_token", "unk_token", "chat_template", "tokenizer_class"} <= set(info)
    assert "<|im_start|>" in info["chat_template"]
    ids = server.post("/tokenize", {"prompt": info["eos_token"], "add_special_tokens": False})[1]["tokens"]
    assert ids == [2]
    ids = server.post("/tokenize", {"prompt": "é", "add_special_tokens": False})[1]["tokens"]
    assert server.post("/detokenize", {"tokens": ids})[1] == {"prompt": "é"}
    if len(ids) > 1:
        assert server.post("/detokenize", {"tokens": ids[:1]})[1] == {"prompt": "\ufffd"}
    for body in ({"tokens": [10**7]}, {"tokens": [-1]}, {"tokens": "a"}, {}):
        assert server.post("/detokenize", body)[0] == 400
    shown = server.post("/tokenize", {"prompt": "Hello world", "return_token_strs": True})[1]
    assert "".join(shown["token_strs"]) == "Hello world" and shown["count"] == len(shown["tokens"])
    chat = {"messages": [{"role": "user", "content": "a"}]}
    opened, closed = (server.post("/tokenize", {**chat, "add_generation_prompt": flag})[1]["count"] for flag in (True, False))
    assert opened > closed


def test_priority_is_refused_where_it_means_nothing(server, model):
    status, answer = server.post("/v1/completions", {"model": model, "prompt": "a", "max_tokens": 1, "priority": -1})
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "unsupported_parameter", "priority")
    assert server.post("/v1/completions", {"model": model, "prompt": "a", "max_tokens": 1, "priority": 0})[0] == 200
    with Server("--scheduling-policy", "priority") as other:
        assert other.post("/v1/completions", {"model": "m", "prompt": "a", "max_tokens": 1, "priority": -1})[0] == 200


def test_defaults_of_the_model_can_be_turned_off(complete, new_server):
    """SmolLM2's file has no generation defaults of its own: then both settings are the table's."""
    plain = complete(temperature=None, seed=5)
    other = new_server("--generation-config", "none")
    status, answer = other.post("/v1/completions", {"model": "m", "prompt": PROMPT, "max_tokens": 8, "seed": 5})
    assert status == 200 and choice_of(answer)["text"] == choice_of(plain)["text"]
