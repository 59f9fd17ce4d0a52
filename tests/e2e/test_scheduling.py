"""The scheduler behind a real server: a tiny model with dummy weights on few KV blocks, so that steps cost nothing and memory is short."""

import concurrent.futures
import json
import pathlib
import subprocess
import urllib.error
import urllib.request

import pytest

from server import BIN, Server

TINY = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 4096, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
        "torch_dtype": "bfloat16"}
FEW_BLOCKS = ["--num-gpu-blocks-override", "40", "--block-size", "16", "--max-model-len", "512"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "config.json").write_text(json.dumps(TINY))
    return folder


def start(tiny, *flags):
    return Server("--load-format", "dummy", "--data-parallel-size", "1", *flags, model=tiny)


def body(i, **more):
    return {"model": "m", "prompt": [(7 * i + j) % 4000 + 3 for j in range(10 + i % 90)], "max_tokens": 8 + i % 60, "temperature": 1, "seed": i,
            "ignore_eos": True, **more}


def post(server, request):
    """Status, headers, body."""
    question = urllib.request.Request(server.url + "/v1/completions", json.dumps(request).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(question, timeout=300) as answer:
            return answer.status, answer.headers, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.loads(error.read())


def post_all(server, requests):
    with concurrent.futures.ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda request: post(server, request), requests))


def test_few_blocks_change_no_text_and_the_trace_is_replayed(tiny, tmp_path):
    requests = [body(i, n=1 + i % 3, priority=i % 2) for i in range(80)]
    texts = {}
    for flags in (FEW_BLOCKS, []):
        with start(tiny, *flags, "--scheduling-policy", "priority", "--trace", str(tmp_path / "trace")) as server:
            answers = post_all(server, requests)
            server.wait_idle()
            assert [status for status, _, _ in answers] == [200] * len(requests)
            texts[len(flags)] = [[choice["text"] for choice in answer["choices"]] for _, _, answer in answers]
            server.wait_until(lambda: server.metric("sluice_kv_blocks", state="used") == 0, what="no block in use")
            if flags:
                assert server.metric("sluice_preemptions_total") > 0
        trace = next(pathlib.Path(tmp_path).glob("trace*"))
        replay = subprocess.run([str(BIN / "sluice-engine"), "replay", str(trace)], capture_output=True, text=True)
        assert replay.returncode == 0 and replay.stdout.endswith("identical\n"), replay.stdout + replay.stderr
        trace.unlink()
    assert texts[0] == texts[len(FEW_BLOCKS)]


def test_a_full_queue_answers_everyone(tiny):
    with start(tiny, "--max-num-seqs", "2", "--max-queue-requests", "5") as server:
        answers = post_all(server, [body(i, max_tokens=400) for i in range(60)])
        refused = [(headers, answer) for status, headers, answer in answers if status == 429]
        assert {status for status, _, _ in answers} == {200, 429} and len(refused) < 60 - 6
        for headers, answer in refused:
            assert 1 <= int(headers["Retry-After"]) <= 120
            assert answer["error"]["code"] == "queue_full" and answer["error"]["type"] == "rate_limit_error"


def test_what_waits_too_long_is_dropped(tiny):
    with start(tiny, "--max-num-seqs", "1", "--max-model-len", "4096") as server:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(post, server, body(1, max_tokens=3900))
            server.wait_until(lambda: server.metric("sluice_requests_running") == 1, what="one runs")
            computed = server.metric("sluice_prefix_cache_miss_tokens_total")
            status, headers, answer = post(server, body(2, timeout_queue_ms=100))
            assert (status, answer["error"]["code"]) == (503, "queue_timeout") and int(headers["Retry-After"]) >= 1
            status, headers, answer = post(server, body(3, timeout_ttft_ms=100))
            assert (status, answer["error"]["code"]) == (503, "ttft_timeout") and headers["x-should-retry"] == "false"
            assert server.metric("sluice_prefix_cache_miss_tokens_total") == computed      # no step was spent on them
            assert running.result()[0] == 200
        status, _, _ = post(server, body(4, timeout_queue_ms=60000))
        assert status == 200
        assert server.metric("sluice_requests_aborted_total", cause="queue_timeout") == 1


def test_memory_is_watched(tiny):
    with start(tiny) as server:
        server.wait_until(lambda: server.metric("sluice_memory_bytes", kind="free") > 0, what="a reading")
        floor = server.metric("sluice_memory_bytes", kind="free") - server.metric("sluice_memory_bytes", kind="headroom")
        assert floor > 0 and server.metric("sluice_admission_throttled") == 0
