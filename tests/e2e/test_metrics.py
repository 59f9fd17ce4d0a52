"""/metrics of a real server after some work: what promtool says of the native part, that the numbers add up, that every name is
there which vLLM's dashboards and its bench read, and that docs/metrics.md tells all of them."""
import json
import re
import shutil
import socket
import subprocess

import pytest

from server import PATIENCE, ROOT

BARE = ("sluice_log_dropped_total", "sluice_start_time_seconds", "sluice_build_info")       # without model_name

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


def families(text):
    """name -> (type, set of its labels)"""
    found = {}
    for line in text.splitlines():
        if line.startswith("# TYPE"):
            name, kind = line.split()[2:]
            assert name not in found, name
            found[name] = (kind, set())
        elif not line.startswith("#"):
            series, labels = re.fullmatch(r"([\w:]+)(?:\{(.*)\})? \S+", line).groups()
            name = series if series in found else re.sub("_(bucket|sum|count)$", "", series)
            found[name][1].update(re.findall(r'(\w+)="', labels or ""))
    return found


def documented():
    """docs/metrics.md: what is sent, as families() has it, and the names that wait for something."""
    sent, waiting = {}, set()
    for line in (ROOT / "docs" / "metrics.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 4 and cells[0].startswith("`"):
            sent[cells[0].strip("`")] = (cells[1], set(filter(None, cells[2].split(", "))))
        elif len(cells) == 2 and cells[0].startswith("`"):
            assert cells[1], f"{cells[0]}: no reason"
            waiting.add(cells[0].strip("`"))
    return sent, waiting


def promtool(lines):
    """What it complains of; where it is not installed the rules that it checks and that concern us, by hand."""
    if shutil.which("promtool"):
        done = subprocess.run(["promtool", "check", "metrics"], input=lines, capture_output=True, text=True, timeout=60)
        return (done.stdout + done.stderr).splitlines()
    helps = [line.split()[2] for line in lines.splitlines() if line.startswith("# HELP")]
    kinds = {name: kind for name, (kind, _) in families(lines).items()}
    assert sorted(kinds) == sorted(helps)
    return [name for name, kind in kinds.items()
            if (kind == "counter") != name.endswith("_total") or name.endswith(("_milliseconds", "_ms", "_kib"))]


def test_native_part_is_clean(text):
    lines = "".join(line + "\n" for line in text.splitlines() if "vllm:" not in line)
    assert lines.count("# TYPE sluice_") >= 40
    assert promtool(lines) == []


def test_vllm_part_is_as_vllm_has_it(text):
    """Its names break two rules, ours none beside them."""
    lines = "".join(line + "\n" for line in text.splitlines() if "vllm:" in line)
    allowed = ("should not contain ':'", 'iteration_tokens_total non-counter metrics should not have "_total" suffix')
    assert [line for line in promtool(lines) if not line.endswith(allowed) and line != "vllm:iteration_tokens_total"] == []
    for name in DASHBOARD:
        assert f"\nvllm:{name}{{" in text, name


def test_every_name_is_as_documented(new_server, text):
    """All of the contract, what is not sent yet with its reason; types and labels too."""
    sent, waiting = documented()
    found = families(new_server("--kv-cache-metrics=true").get("/metrics")[1])
    appear = {"sluice_http_rejected_total"}        # with their first count
    for name, (kind, labels) in sent.items():
        assert name in found, name
        assert found[name][0] == kind, name
        ours = found[name][1] - {"model_name", "le"} - ({"engine"} if name.startswith("vllm:") else set())
        assert ours == labels or (name in appear and not ours), name
        assert ("model_name" in found[name][1]) == (name not in BARE) or name in appear, name
    assert sorted(set(found) - set(sent)) == []
    assert sorted(set(found) & waiting) == [] and len(waiting) >= 15
    assert {name for name in found if not name.startswith("vllm:kv_block_")} == set(families(text))


def test_aliases_can_be_left_out(new_server):
    text = new_server("--metrics-compat", "none").get("/metrics")[1]
    assert "vllm:" not in text and "sluice_requests_running" in text


def test_blocks_of_the_prefix_cache(new_server, client, model):
    """16 blocks of 16 tokens: the second time a prompt is found, others then push it out."""
    server = new_server("--data-parallel-size", "1", "--kv-cache-metrics=true", "--block-size", "16",
                        "--num-gpu-blocks-override", "16", "--max-model-len", "200")
    ids = [list(range(1000 * i, 1000 * i + 100)) for i in range(1, 5)]
    for prompt in (ids[0], ids[0], *ids[1:]):
        assert server.post("/v1/completions", {"model": "m", "prompt": prompt, "max_tokens": 1})[0] == 200
    server.wait_idle()
    assert server.metric("vllm:kv_block_reuse_gap_seconds_count") == 6
    evicted = server.metric("vllm:kv_block_lifetime_seconds_count")
    assert evicted > 0 and server.metric("vllm:kv_block_idle_before_evict_seconds_count") == evicted
    assert server.metric("vllm:kv_block_lifetime_seconds_sum") >= server.metric("vllm:kv_block_idle_before_evict_seconds_sum") > 0
    assert server.metric("vllm:cache_config_info", block_size="16", num_gpu_blocks="16", enable_prefix_caching="True") == 1


def test_each_replica_tells_its_own(new_server):
    server = new_server("--data-parallel-size", "2", "--cpu-threads", "1")
    server.wait_until(lambda: server.metric("sluice_replica_up") == 2, 60, "both replicas")
    for i in range(8):
        assert server.post("/v1/completions", {"model": "m", "prompt": [100 + i, 7, 8], "max_tokens": 3, "ignore_eos": True})[0] == 200
    server.wait_idle()
    for replica in ("0", "1"):
        server.wait_until(lambda: server.metric("sluice_memory_bytes", replica=replica, kind="free") > 0, 10, "a reading of the memory")
        free = server.metric("sluice_memory_bytes", replica=replica, kind="free")
        assert 0 < free - server.metric("sluice_memory_bytes", replica=replica, kind="headroom") < free
        assert f'sluice_admission_throttled{{model_name="m",replica="{replica}"}} 0' in server.get("/metrics")[1]
        steps = server.metric("sluice_step_tokens_count", replica=replica)
        assert steps > 0 and steps == server.metric("sluice_step_seconds_count", replica=replica)
        assert steps == server.metric("sluice_step_host_seconds_count", replica=replica)
        assert steps == server.metric("vllm:iteration_tokens_total_count", engine=replica)
        assert server.metric("sluice_kv_blocks", replica=replica) == server.metric("sluice_kv_blocks", replica="0") > 0
    assert server.metric("sluice_step_tokens_sum") == 8 * (3 + 2)


def test_a_cancel_is_timed(new_server):
    server = new_server()
    body = json.dumps({"model": "m", "prompt": "a", "max_tokens": 1500, "stream": True, "ignore_eos": True})
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        sock.recv(100)
    server.wait_until(lambda: server.metric("sluice_cancel_latency_seconds_count") == 1, 10, "the cancel's time")
    server.wait_idle()
    assert 0 < server.metric("sluice_cancel_latency_seconds_sum") < 10 * PATIENCE
    assert server.metric("sluice_requests_aborted_total", cause="client_gone") == 1


def test_numbers_add_up(server, client, model, text):
    made = server.metric("sluice_generation_tokens_total")
    asked = server.metric("sluice_prompt_tokens_total")
    steps, ended = server.metric("sluice_step_tokens_sum"), server.metric("vllm:request_success_total", finished_reason="length")
    cached = server.metric("sluice_prefix_cache_hit_tokens_total")
    computed = server.metric("vllm:request_prefill_kv_computed_tokens_sum")
    answer = client.completions.create(model=model, prompt="Some prompt that was not sent before.", max_tokens=7, extra_body={"ignore_eos": True})
    server.wait_idle()
    prompt = answer.usage.prompt_tokens
    assert server.metric("sluice_generation_tokens_total") == made + 7
    assert server.metric("sluice_prompt_tokens_total") == asked + prompt == asked + server.metric("vllm:prompt_tokens_total") - asked
    hits = server.metric("sluice_prefix_cache_hit_tokens_total") - cached
    assert server.metric("sluice_step_tokens_sum") == steps + 6 + prompt - hits           # the last token is not computed
    assert server.metric("vllm:request_prefill_kv_computed_tokens_sum") == computed + prompt - hits
    assert server.metric("vllm:request_success_total", finished_reason="length") == ended + 1
    assert 0 < server.metric("sluice_step_sequences_count") <= server.metric("sluice_step_sequences_sum") <= server.metric("sluice_step_tokens_sum")
    server.wait_until(lambda: server.metric("sluice_step_stall_seconds") == 0, 10, "no stall while idle")
    assert server.metric("vllm:iteration_tokens_total_sum") == server.metric("sluice_step_tokens_sum")
    total = sum(server.metric("sluice_kv_blocks", state=state) for state in ("free", "used", "cached"))
    assert total > 0 and server.metric("sluice_kv_usage_ratio") <= 1
