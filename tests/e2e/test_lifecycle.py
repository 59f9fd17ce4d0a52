"""Hang-ups, health, keys, drain: what happens around requests."""
import json
import re
import signal
import socket
import threading
import time

import httpx
import openai
import pytest

from server import PATIENCE, Server

LONG = {"max_tokens": 4000, "extra_body": {"ignore_eos": True}}


def wait_until(what, seconds=30):
    end = time.monotonic() + seconds * PATIENCE
    while time.monotonic() < end:
        if what():
            return
        time.sleep(0.02)
    assert what()


def test_closing_a_stream_frees_its_sequence(server, client, model):
    aborted = server.metric("sluice_requests_aborted_total")
    stream = client.completions.create(model=model, prompt="Once upon a time", stream=True, **LONG)
    next(iter(stream))
    assert server.load()["server_load"] >= 1
    stream.close()
    wait_until(lambda: server.load()["server_load"] == 0)
    wait_until(lambda: server.metric("sluice_requests_aborted_total") == aborted + 1)


def test_closing_while_waiting_for_a_body_frees_its_sequence(server, model):
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"model": model, "prompt": "Once", "max_tokens": 4000, "ignore_eos": True}).encode()
    with socket.create_connection((host, int(port)), timeout=30) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: server.load()["server_load"] == 1)
    wait_until(lambda: server.load()["server_load"] == 0)


def test_cancelled_async_task(server, async_client, model):
    import asyncio

    async def run():
        task = asyncio.create_task(async_client.completions.create(model=model, prompt="Once", **LONG))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    wait_until(lambda: server.load()["server_load"] == 0)


def test_connection_is_reused(server, model):
    with httpx.Client(base_url=server.url, timeout=60) as http:
        ports = set()
        for i in range(4):
            stream = i % 2 == 0
            answer = http.post("/v1/completions", json={"model": model, "prompt": "a", "max_tokens": 2, "stream": stream})
            assert answer.status_code == 200
            ports.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
        assert len(ports) == 1


def test_health_and_metrics(server):
    assert server.get("/health") == (200, '{"status":"ok"}')
    assert server.get("/health/live")[0] == server.get("/health/ready")[0] == server.get("/ping")[0] == 200
    text = server.get("/metrics")[1]
    for name in ("sluice_http_requests_total", "sluice_requests_total", "vllm:num_requests_running", "vllm:num_requests_waiting",
                 "vllm:kv_cache_usage_perc"):
        assert f"# TYPE {name} " in text
    assert server.get("/version")[1].startswith('{"version":"')


def test_api_key(new_server):
    server = new_server("--api-key", "tester:0123456789abcdef")
    good = openai.OpenAI(base_url=server.url + "/v1", api_key="0123456789abcdef", max_retries=0)
    bad = openai.OpenAI(base_url=server.url + "/v1", api_key="0123456789abcdeX", max_retries=0)
    model = good.models.list().data[0].id
    assert good.completions.create(model=model, prompt="a", max_tokens=1).usage.completion_tokens == 1
    with pytest.raises(openai.AuthenticationError) as error:
        bad.completions.create(model=model, prompt="a", max_tokens=1)
    assert error.value.code == "invalid_api_key"
    assert server.stop() == 0


def test_keys_are_read_again_on_sighup(tmp_path):
    keys = tmp_path / "keys"

    def write(*names):
        keys.write_text("# name:key\n" + "".join(f"{name}:secret-of-{name}-0123456789\n" for name in names))
        keys.chmod(0o600)

    write("alice", *(f"n{i}" for i in range(700)))
    with Server("--api-keys-file", str(keys), env={"SLUICE_API_KEY": "eve:secret-of-eve-0123456789"}) as server:
        def opens(name):
            headers = {"Authorization": f"Bearer secret-of-{name}-0123456789"}
            return httpx.get(server.url + "/v1/models", headers=headers, timeout=30).status_code == 200

        def reload(result):
            before = metric(result)
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: metric(result) == before + 1)

        def metric(result):
            text = httpx.get(server.url + "/metrics", headers={"Authorization": "Bearer secret-of-eve-0123456789"}, timeout=30).text
            return int(re.search(r'sluice_config_reloads_total\{.*result="%s"\} (\d+)' % result, text).group(1))

        assert opens("alice") and opens("n699") and opens("eve") and not opens("bob")
        body = json.dumps({"model": "m", "prompt": "Once", "max_tokens": 200, "ignore_eos": True, "stream": True})
        ask = {"content": body, "headers": {"Authorization": "Bearer secret-of-alice-0123456789"}, "timeout": 120}
        with httpx.stream("POST", server.url + "/v1/completions", **ask) as answer:
            lines = answer.iter_lines()
            next(lines)
            write("bob")
            reload("ok")
            assert opens("bob") and opens("eve") and not opens("alice") and not opens("n699")
            assert list(lines)[-2] == "data: [DONE]"                 # what runs goes on
        for wrong in ("no colon in this line\n", "bob:\n", "x" * 5000 + "\n", "a:b\0c\n"):
            keys.write_text(wrong)
            reload("rejected")
            assert opens("bob") and not opens("alice")
        write("carol")
        keys.chmod(0o644)                                           # others could read it
        reload("rejected")
        assert opens("bob") and not opens("carol")
        keys.unlink()
        reload("rejected")
        write("carol")
        reload("ok")
        assert opens("carol") and opens("eve") and not opens("bob")
        assert server.stop() == 0 and "secret-of" not in server.output()


def test_sighup_never_opens_a_server(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("alice:secret-of-alice-0123456789\n")
    keys.chmod(0o600)
    with Server("--api-keys-file", str(keys)) as server:
        keys.write_text("# nobody\n")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "reload_rejected" in server.output())
        assert httpx.get(server.url + "/v1/models", timeout=30).status_code == 401


def test_sigterm_lets_running_streams_finish(new_server):
    server = new_server()
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    model = client.models.list().data[0].id
    stream = client.completions.create(model=model, prompt="Once", stream=True, max_tokens=200, extra_body={"ignore_eos": True},
                                       stream_options={"include_usage": True})
    events = iter(stream)
    next(events)
    stopped = []
    thread = threading.Thread(target=lambda: stopped.append(server.stop()))
    thread.start()
    last = None
    for last in events:
        pass
    assert last.usage.completion_tokens == 200
    thread.join(60)
    assert stopped == [0]
