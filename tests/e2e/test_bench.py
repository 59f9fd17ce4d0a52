"""The benchmark commands, on a dummy model that a CPU steps through in no time: what they count has to be right."""
import json
import shutil
import subprocess

import pytest

from server import BIN, Server

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
          "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512,
          "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "tiny"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def engine_bench(*args, code=0):
    argv = [BIN / "sluice-engine", "bench", *args, "--log-level", "warning", "--kv-cache-memory-bytes", "8MiB"]
    argv += ["--bandwidth-gbs", "20"] if args[0] == "step" else []
    done = subprocess.run([str(arg) for arg in argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_step(tiny):
    lines, _ = engine_bench("step", tiny, "--load-format", "dummy", "--batch", "1,3", "--context", "100", "--output-len", "16")
    assert [line["batch"] for line in lines] == [1, 3]
    for line in lines:
        assert line["steps"] == 16 and line["bench"] == "step"
        assert abs(line["context"] - 100) < 4
        assert line["step_ms_p10"] <= line["step_ms"] <= line["step_ms_p90"]
        assert {"commit", "command", "gpu", "device", "model", "idle_pct"} <= line.keys()
        # two layers of q, k, v, o, gate, up, down and the head, 2 bytes each; K and V of two layers, 2 heads of 16, f16
        weights = 2 * (2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 512 * 64)
        expected = weights + line["batch"] * line["context"] * 2 * 2 * 2 * 16 * 2
        assert abs(line["step_bytes"] / expected - 1) < 0.02
        assert line["floor_ms"] == pytest.approx(line["step_bytes"] / 20e6, rel=1e-3)


def test_step_with_plans_ahead(tiny):
    lines, _ = engine_bench("step", tiny, "--load-format", "dummy", "--batch", "1,8", "--context", "100", "--output-len", "16",
                            "--async-scheduling=true")
    assert [line["plans_in_flight"] for line in lines] == [2, 2] and [line["steps"] for line in lines] == [16, 16]


def test_step_in_a_pipeline(tiny):
    lines, _ = engine_bench("step", tiny, "--load-format", "dummy", "--batch", "4", "--context", "100", "--output-len", "16", "-pp", "2")
    assert lines[0]["plans_in_flight"] >= 2 and lines[0]["steps"] == 16


def test_ttft(tiny):
    lines, _ = engine_bench("ttft", tiny, "--load-format", "dummy", "--input-len", "16,600", "--repeat", "3")
    assert [line["input_len"] for line in lines] == [16, 600]
    for line in lines:
        assert 0 < line["ttft_ms_min"] <= line["ttft_ms"] <= line["ttft_ms_max"]


def test_throughput(tiny):
    lines, _ = engine_bench("throughput", tiny, "--load-format", "dummy", "--input-len", "20", "--output-len", "10-30", "--num-prompts", "40",
                            "--max-num-seqs", "8")
    (line,) = lines
    assert line["total_input_tokens"] == 800
    assert 400 <= line["total_output_tokens"] <= 1200
    assert line["output_throughput"] == pytest.approx(line["total_output_tokens"] / line["duration"], rel=1e-3)
    assert 1 <= line["mean_batch"] <= 8


def test_throughput_datasets(tiny):
    for dataset in ("uniform:5-15", "sharegpt-like"):
        (line,), _ = engine_bench("throughput", tiny, "--load-format", "dummy", "--dataset", dataset, "--num-prompts", "4")
        assert line["num_prompts"] == 4


@pytest.mark.parametrize("args, message", [
    (("step", "--batch", "none"), "--batch"),
    (("step", "--batch", "512"), "max_num_seqs"),
    (("step", "--context", "4000", "--batch", "1"), "max_model_len"),
    (("ttft", "--input-len", "2048"), "max_model_len"),
    (("throughput", "--dataset", "sharegpt"), "--dataset"),
    (("step", "--no-such-option", "1"), "--no-such-option"),
])
def test_refusals(tiny, args, message):
    _, stderr = engine_bench(*args, "--model", tiny, "--load-format", "dummy", code=78)
    assert message in stderr


def test_kernels_runs_what_lies_beside_it(tmp_path):
    engine = tmp_path / "sluice-engine"
    shutil.copy(BIN / "sluice-engine", engine)
    done = subprocess.run([engine, "bench", "kernels"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 78 and "kernel_benches" in done.stderr
    for name, code in (("gemv", 0), ("norm", 3), ("scheduler", 0)):
        program = tmp_path / f"{name}_bench"
        program.write_text(f"#!/bin/sh\necho {name} $*\nexit {code}\n")
        program.chmod(0o755)
    done = subprocess.run([engine, "bench", "kernels"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and done.stdout == "gemv\nnorm\n"
    done = subprocess.run([engine, "bench", "kernels", "gemv", "8b"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == "gemv 8b\n"


@pytest.fixture(scope="module")
def dummy_server(tiny):
    with Server("--load-format", "dummy", "--max-num-seqs", "16", "--kv-cache-memory-bytes", "8MiB", model=tiny) as server:
        yield server


def serve_bench(server, *args, model="m", code=0):
    argv = [BIN / "sluice", "bench", "serve", "--base-url", server.url, "--model", model, "--vocab-size", "512", *args]
    done = subprocess.run([str(arg) for arg in argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    return (json.loads(done.stdout) if done.stdout else None), done.stderr


def test_dummy_weights_are_served_by_ids(dummy_server):
    body = {"model": "m", "prompt": [1, 2, 3], "max_tokens": 4, "ignore_eos": True, "return_token_ids": True}
    status, answer = dummy_server.post("/v1/completions", body)
    choice = answer["choices"][0]
    assert status == 200 and choice["text"] == "".join(f" t{i}" for i in choice["token_ids"])
    status, answer = dummy_server.post("/v1/completions", {"model": "m", "prompt": "text"})
    assert status == 400 and "token ids" in answer["error"]["message"]


def test_serve_closed_loop(dummy_server):
    before = dummy_server.metric("vllm:generation_tokens_total")
    line, table = serve_bench(dummy_server, "--num-prompts", "60", "--concurrency", "8", "--input-len", "20", "--output-len", "16",
                              "--ignore-eos", "--num-warmups", "0", "--goodput", "ttft:60000")
    assert line["completed"] == 60 and line["failed"] == 0 and line["uneven"] == 0
    assert line["total_input_tokens"] == 1200 and line["total_output_tokens"] == 960
    assert dummy_server.metric("vllm:generation_tokens_total") - before == 960
    assert line["max_concurrent_requests"] == 8
    assert line["request_goodput"] == pytest.approx(line["request_throughput"])
    for name in ("ttft", "tpot", "itl", "e2el"):
        assert 0 <= line[f"median_{name}_ms"] <= line[f"p99_{name}_ms"]
    assert line["mean_e2el_ms"] == pytest.approx(line["mean_ttft_ms"] + 15 * line["mean_tpot_ms"], rel=1e-3)
    assert "time to first token" in table


def test_serve_open_loop(dummy_server):
    line, _ = serve_bench(dummy_server, "--num-prompts", "40", "--request-rate", "100", "--burstiness", "0.5", "--input-len", "10-20",
                          "--output-len-range", "4-12", "--ignore-eos", "--threads", "2")
    assert line["completed"] == 40 and line["request_rate"] == 100
    assert line["duration"] > 0.1
    assert 160 <= line["total_output_tokens"] <= 480


def test_serve_counts_failures(dummy_server):
    # some prompts and answers are longer than the context
    line, table = serve_bench(dummy_server, "--num-prompts", "30", "--concurrency", "4", "--input-len", "1000-3000", "--output-len", "2",
                              "--num-warmups", "0", "--ignore-eos")
    assert line["completed"] + line["failed"] == 30 and line["failed"] > 0 and line["completed"] > 0
    assert "HTTP 400" in line["first_error"] and "failed; the first" in table


def test_serve_refusals(dummy_server):
    _, stderr = serve_bench(dummy_server, model="other", code=78)
    assert "model_not_found" in stderr
    for args, message in [(("--goodput", "itl:3"), "--goodput"), (("--num-prompts", "0"), "--num-prompts"), (("--endpoint", "x"), "--endpoint"),
                          (("--bogus", "1"), "--bogus"), (("--base-url", "ftp://x"), "--base-url"), (("--base-url", "http://127.0.0.1:1"), "refused")]:
        _, stderr = serve_bench(dummy_server, *args, code=78)
        assert message in stderr


def test_ramp(dummy_server):
    argv = [BIN / "sluice", "ramp", "--base-url", dummy_server.url, "--model", "m", "--vocab-size", "512", "--input-len", "10-50",
            "--output-len", "4-8", "--max-concurrency", "4"]
    for target in (60000, 0.001):
        done = subprocess.run([str(arg) for arg in argv] + ["--ttft-target-ms", str(target)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        *levels, end = [json.loads(line) for line in done.stdout.splitlines()]
        if target == 60000:
            assert [level["concurrency"] for level in levels] == [1, 2, 4]
            assert end["max_streams"] == 4 and end["bound"] is None
        else:
            assert end["max_streams"] == 0 and end["bound"]
        assert all(level["failed"] == 0 and level["mean_prefill_ms"] is not None for level in levels)
