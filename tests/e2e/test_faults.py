"""Faults: an engine that dies, a client that leaves, a server that is told to stop, a model that is damaged."""

import concurrent.futures
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import threading
import time

import pytest

from server import BIN, MODEL, PATIENCE, SANITIZED, Server

PROMPTS = [f"Question {i}: name {i + 2} things that are" for i in range(64)]


def complete(server, prompt, max_tokens=48, **more):
    status, body = server.post("/v1/completions", {"model": server.name, "prompt": prompt, "max_tokens": max_tokens,
                                                    "temperature": 0, "ignore_eos": True, **more})
    assert status == 200, body
    return body["choices"][0]["text"]


def stream_socket(server, prompt, max_tokens):
    """A raw connection with a streaming request on it, so that it can be cut at any byte."""
    body = json.dumps({"model": server.name, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "stream": True}).encode()
    s = socket.create_connection(("127.0.0.1", server.port), timeout=30 * PATIENCE)
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return s


def test_streams_are_the_same_alone_and_together():
    with Server("--max-num-seqs", "64", "--max-num-batched-tokens", "256") as server:
        alone = [complete(server, prompt, 24) for prompt in PROMPTS]
        sampled = [complete(server, prompt, 24, temperature=0.9, seed=i) for i, prompt in enumerate(PROMPTS[:16])]
        with concurrent.futures.ThreadPoolExecutor(64) as pool:
            together = list(pool.map(lambda prompt: complete(server, prompt, 24), PROMPTS))
            jobs = [pool.submit(complete, server, prompt, 24, temperature=0.9, seed=i) for i, prompt in enumerate(PROMPTS[:16])]
            sampled_together = [job.result() for job in jobs]
        assert together == alone
        assert sampled_together == sampled
        assert len(set(alone)) > 32


def test_killed_engine_comes_back_and_streams_continue():
    with Server() as server:
        expected = [complete(server, prompt, 96) for prompt in PROMPTS[:8]]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            jobs = [pool.submit(complete, server, prompt, 96) for prompt in PROMPTS[:8]]
            server.wait_until(lambda: server.metric("sluice_generation_tokens_total") > 8 * 96 + 16, 30, "streams under way")
            killed = server.engines()              # all replicas there are
            for engine in killed:
                os.kill(engine, signal.SIGKILL)
            server.wait_until(lambda: server.status("/health/ready") == 503, 5, "down after the kill")
            assert server.status("/health/live") == 200
            status, body = server.post("/v1/completions", {"model": server.name, "prompt": "x", "max_tokens": 1})
            assert status == 503 and body["error"]["code"] == "no_replica_available"
            assert [job.result(timeout=120 * PATIENCE) for job in jobs] == expected
        assert server.status("/health/ready") == 200
        server.wait_until(lambda: server.metric("sluice_replica_up") == len(killed), 30, "every replica is back")
        assert server.metric("sluice_replica_restarts_total", cause="signal") == len(killed)
        assert server.metric("sluice_streams_resumed_total") >= 1
        assert complete(server, PROMPTS[0], 96) == expected[0]


def test_clients_that_leave_free_their_sequences():
    with Server("--max-num-seqs", "16") as server:
        complete(server, "warm", 2)
        base_used = server.metric("sluice_kv_blocks", state="used")
        room = 16 * len(server.engines())
        sockets = [stream_socket(server, prompt, 2000) for prompt in PROMPTS[:room + 8]]     # more than run at once: some queue
        server.wait_until(lambda: server.metric("sluice_requests_running") == room, 30, "as many running as there is room for")
        for s in sockets:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")     # close with a reset
            s.close()
        server.wait_idle()
        assert server.metric("sluice_kv_blocks", state="used") == base_used
        assert server.metric("sluice_requests_aborted_total", cause="client_gone") == len(sockets)
        assert complete(server, "still here", 4)


def test_no_leak_over_2000_requests_with_random_disconnects():
    rng = random.Random(7)
    with Server("--max-num-seqs", "32", "--num-gpu-blocks-override", "72") as server:
        def one(i):
            s = stream_socket(server, PROMPTS[i % 64], rng.choice([1, 2, 4, 8] if SANITIZED else [1, 4, 16, 64]))
            want = rng.choice([0, 1, 100, 1000, 1 << 30])     # bytes to read before leaving
            got = 0
            try:
                while got < want:
                    data = s.recv(4096)
                    if not data or data.endswith(b"0\r\n\r\n"):
                        break
                    got += len(data)
            finally:
                s.close()

        def run(n):
            with concurrent.futures.ThreadPoolExecutor(24) as pool:
                list(pool.map(one, range(n)))
            server.wait_idle(30)

        run(300)                                              # arenas, caches and pools reach their size
        engines = server.engines()
        free = server.metric("sluice_kv_blocks", state="free") + server.metric("sluice_kv_blocks", state="cached")
        server.wait_until(lambda: server.metric("sluice_http_connections") <= 1, 10, "connections closed")
        descriptors, rss = server.descriptors(), server.rss_kib()
        engine_rss = [server.rss_kib(engine) for engine in engines]
        run(1700)
        server.wait_until(lambda: server.metric("sluice_http_connections") <= 1, 10, "connections closed")
        assert server.metric("sluice_kv_blocks", state="free") + server.metric("sluice_kv_blocks", state="cached") == free
        assert abs(server.descriptors() - descriptors) <= 4
        print(f"\n2,000 requests: descriptors {descriptors} -> {server.descriptors()}")
        server.keeps_memory(rss, 8 << 10, lambda: run(300))
        for engine, before in zip(engines, engine_rss):
            server.keeps_memory(before, 48 << 10, lambda: run(300), engine)
        assert server.engines() == engines


@pytest.mark.skipif(SANITIZED, reason="a sanitizer owns malloc")
def test_engine_thread_allocates_nothing_after_ready():
    guard = BIN.parent / "tests" / "fake_engine" / "libmalloc_guard.so"       # aborts the engine on its first allocation
    with Server("--max-num-seqs", "8", "--num-gpu-blocks-override", "24", env={"LD_PRELOAD": str(guard)}) as server:
        engines = server.engines()
        assert engines and all(str(guard) in pathlib.Path(f"/proc/{engine}/maps").read_text() for engine in engines)
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            jobs = [pool.submit(complete, server, prompt, 40, logprobs=3, n=2, presence_penalty=0.5) for prompt in PROMPTS[:12]]
            [job.result() for job in jobs]
        stream_socket(server, PROMPTS[0], 500).close()
        server.wait_idle()
        assert server.engines() == engines


def test_sigterm_drains_running_streams():
    with Server() as server:
        expected = complete(server, PROMPTS[3], 64)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(complete, server, PROMPTS[3], 64) for _ in range(4)]
            server.wait_until(lambda: server.metric("sluice_requests_running") >= 1, 10, "running")
            server.process.send_signal(signal.SIGTERM)
            server.wait_until(lambda: server.status("/health/ready") in (503, 0), 5, "draining")
            assert [job.result(timeout=60 * PATIENCE) for job in jobs] == [expected] * 4
        assert server.process.wait(30 * PATIENCE) == 0


def test_second_sigterm_ends_at_once():
    with Server() as server:
        s = stream_socket(server, PROMPTS[0], 4000)
        assert s.recv(100)
        engine = server.engines()[0]
        server.process.send_signal(signal.SIGTERM)
        server.wait_until(lambda: server.status("/health/ready") == 503, 5, "draining")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5 * PATIENCE) == 0
        deadline = time.monotonic() + 5 * PATIENCE
        while pathlib.Path(f"/proc/{engine}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not pathlib.Path(f"/proc/{engine}").exists()


def test_killed_gateway_leaves_no_engine():
    with Server() as server:
        engines = server.engines()
        assert engines
        server.process.kill()
        server.process.wait()
        deadline = time.monotonic() + 5 * PATIENCE
        while any(pathlib.Path(f"/proc/{pid}").exists() for pid in engines) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(pathlib.Path(f"/proc/{pid}").exists() for pid in engines)


def run_refused(*args):
    done = subprocess.run([str(BIN / "sluiced"), "--port", "0", *args], capture_output=True, text=True, timeout=60 * PATIENCE)
    lines = [line for line in done.stderr.splitlines() if line.startswith("sluiced:")]
    return done.returncode, lines


@pytest.mark.parametrize("keep", [0, 3, 100, 5000, 1 << 20, 90 << 20])
def test_input_62_truncated_model_is_refused(tmp_path, keep):
    path = tmp_path / "cut.gguf"
    with open(MODEL, "rb") as source:
        path.write_bytes(source.read(keep))
    code, lines = run_refused("--model", str(path))
    assert code == 78
    assert len(lines) == 1 and "cut.gguf" in lines[0]


def test_input_62_absurd_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 1 << 40, "num_attention_heads": 8,
        "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 128}))
    code, lines = run_refused("--model", str(tmp_path))
    assert code == 78
    assert len(lines) == 1 and "hidden_size" in lines[0]


def test_unknown_option_names_the_nearest(tmp_path):
    config = tmp_path / "s.yaml"
    config.write_text("port: 0\nmax_num_seq: 8\n")
    code, lines = run_refused("--model", str(MODEL), "--config", str(config))
    assert code == 78
    assert "s.yaml:2" in lines[0] and "max_num_seqs" in lines[0]


def test_taken_port_is_one_clear_line():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        done = subprocess.run([str(BIN / "sluiced"), "--model", str(MODEL), "--port", str(port)], capture_output=True, text=True, timeout=60 * PATIENCE)
    assert done.returncode == 78
    assert any(line.startswith("sluiced:") and str(port) in line for line in done.stderr.splitlines())
