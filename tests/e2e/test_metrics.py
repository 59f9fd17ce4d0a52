"""/metrics of a real server after some work: what promtool says of the native part, that the numbers add up, and that every name is
there which vLLM's dashboards and its bench read."""
import shutil
import subprocess

import pytest

DASHBOARD = ["e2e_request_latency_seconds_bucket", "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
             "prompt_tokens_total", "generation_tokens_total", "iteration_tokens_total_count", "kv_cache_usage_perc",
             "num_requests_running", "num_requests_waiting", "request_decode_time_seconds_sum", "request_prefill_time_seconds_sum",
             "request_queue_time_seconds_sum", "request_max_num_generation_tokens_sum", "request_prompt_tokens_bucket",
             "request_generation_tokens_bucket", "request_success_total", "request_time_per_output_token_seconds_bucket",
             "request_inference_time_seconds_sum", "prefix_cache_queries_total", "prefix_cache_hits_total", "num_preemptions_total",
             "request_params_n_bucket", "request_params_max_tokens_sum"]


@pytest.fixture(scope="module")
def text(server, client, model):
    for n in (1, 2):
        client.completions.create(model=model, prompt="One, two, three,", max_tokens=4, n=n, extra_body={"ignore_eos": True})
    server.wait_idle()
    return server.get("/metrics")[1]


def native(text):
    return "".join(line + "\n" for line in text.splitlines() if "vllm:" not in line)


def check(lines):
    """promtool where it is installed; else the rules that it checks and that concern us, by hand."""
    if shutil.which("promtool"):
        done = subprocess.run(["promtool", "check", "metrics"], input=lines, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    kinds = dict(line.split()[2:4] for line in lines.splitlines() if line.startswith("# TYPE"))
    helps = [line.split()[2] for line in lines.splitlines() if line.startswith("# HELP")]
    assert sorted(kinds) == sorted(helps)
    for name, kind in kinds.items():
        assert (kind == "counter") == name.endswith("_total") or name == "vllm:iteration_tokens_total"
        assert not name.endswith(("_milliseconds", "_ms", "_kib"))


def test_native_part_is_clean(text):
    assert text.count("# TYPE sluice_") >= 35
    check(native(text))


def test_names_of_vllm(text):
    for name in DASHBOARD:
        assert f"\nvllm:{name}{{" in text, name
    check(text.split("# HELP vllm:", 1)[0])


def test_numbers_add_up(server, client, model, text):
    made = server.metric("sluice_generation_tokens_total")
    asked = server.metric("sluice_prompt_tokens_total")
    steps, ended = server.metric("sluice_step_tokens_sum"), server.metric("vllm:request_success_total", finished_reason="length")
    cached = server.metric("sluice_prefix_cache_hit_tokens_total")
    answer = client.completions.create(model=model, prompt="Some prompt that was not sent before.", max_tokens=7, extra_body={"ignore_eos": True})
    server.wait_idle()
    prompt = answer.usage.prompt_tokens
    assert server.metric("sluice_generation_tokens_total") == made + 7
    assert server.metric("sluice_prompt_tokens_total") == asked + prompt == asked + server.metric("vllm:prompt_tokens_total") - asked
    hits = server.metric("sluice_prefix_cache_hit_tokens_total") - cached
    assert server.metric("sluice_step_tokens_sum") == steps + 7 + prompt - hits
    assert server.metric("vllm:request_success_total", finished_reason="length") == ended + 1
    assert 0 < server.metric("sluice_step_sequences_count") <= server.metric("sluice_step_sequences_sum") <= server.metric("sluice_step_tokens_sum")
    server.wait_until(lambda: server.metric("sluice_step_stall_seconds") == 0, 10, "no stall while idle")
    assert server.metric("vllm:iteration_tokens_total_sum") == server.metric("sluice_step_tokens_sum")
    total = sum(server.metric("sluice_kv_blocks", state=state) for state in ("free", "used", "cached"))
    assert total > 0 and server.metric("sluice_kv_usage_ratio") <= 1
