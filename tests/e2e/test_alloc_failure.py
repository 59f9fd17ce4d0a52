"""Every allocation of the request path fails once, N = 1, 2, 3, ...: the answer is whole, or 500 or 503, or the connection drops;
the server lives, and what it holds afterwards does not grow."""
import contextlib
import http.client
import json
import mmap
import os
import pathlib
import re
import struct
import subprocess
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = pathlib.Path(os.environ.get("SLUICE_BIN_DIR", ROOT / "build" / "bin")).parent / "tests"
LIBRARY = FOLDER / "libfail_malloc.so"
pytestmark = pytest.mark.skipif(not LIBRARY.exists(), reason="a build with a sanitizer, which brings its own allocator")
MOST = 2000                    # allocations of one request; more would be a leak of their own

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1.0}"}}
CHAT = {"model": "tiny", "max_tokens": 6, "logprobs": True, "top_logprobs": 2, "stop": ["zz", "yy"], "logit_bias": {"5": 1},
        "messages": [{"role": "system", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b\u0000"}]},
                     {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c", "content": "x"}]}
TEXT = {"model": "tiny", "prompt": ["hello", "you"], "max_tokens": 3, "n": 2, "echo": True, "logprobs": 1, "bad_words": ["x y"], "return_token_ids": True}
REQUESTS = {
    "chat": ("POST", "/v1/chat/completions", CHAT),
    "chat_stream": ("POST", "/v1/chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}),
    "completion": ("POST", "/v1/completions", {**TEXT, "prompt_logprobs": 1, "best_of": 3}),
    "completion_stream": ("POST", "/v1/completions", {**TEXT, "stream": True}),
    "tokenize": ("POST", "/tokenize", {"messages": CHAT["messages"], "return_token_strs": True}),
    "models": ("GET", "/v1/models", None),
    "openapi": ("GET", "/openapi.json", None),
    "metrics": ("GET", "/metrics", None),
}


class Gateway:
    def __init__(self, folder):
        path = folder / "countdown"
        path.write_bytes(bytes(8))
        self.file = open(path, "r+b")
        self.countdown = mmap.mmap(self.file.fileno(), 8)
        env = {**os.environ, "LD_PRELOAD": str(LIBRARY), "SLUICE_FAIL_MALLOC": str(path), "MALLOC_ARENA_MAX": "2"}
        self.process = subprocess.Popen([FOLDER / "echo_gateway"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        text=True, env=env)
        parts = urllib.parse.urlparse(self.process.stdout.readline().strip())
        self.address = parts.hostname, parts.port

    def left(self):
        return struct.unpack("q", self.countdown[:])[0]

    def ask(self, method, path, body, fail_at=0):
        """(status, body) or None when the connection dropped."""
        data = json.dumps(body) if body else None
        self.countdown[:] = struct.pack("q", fail_at)
        try:
            with contextlib.closing(http.client.HTTPConnection(*self.address, timeout=20)) as client:
                client.request(method, path, data)
                answer = client.getresponse()
                return answer.status, answer.read()
        except (http.client.HTTPException, ConnectionError):
            return None

    def resident_kib(self):
        return int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{self.process.pid}/status").read_text()).group(1))


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    gateway = Gateway(tmp_path_factory.mktemp("fail"))
    try:
        yield gateway
    finally:
        gateway.countdown[:] = bytes(8)
        gateway.process.stdin.close()
        assert gateway.process.wait(20) == 0


def is_whole(answer, path, wanted):
    status, body = answer
    if status != 200:
        assert status in (500, 503, 429), answer
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        return
    if body.startswith(b"data: "):
        events = body.decode().split("\n\n")
        assert events[-1] == "" and events[-2] == "data: [DONE]"
        assert [json.loads(event[6:]) for event in events[:-2]]
    elif path != "/metrics":
        assert set(json.loads(body)) == set(json.loads(wanted))


@pytest.mark.parametrize("name", REQUESTS)
def test_each_allocation_may_fail(failing, name):
    method, path, body = REQUESTS[name]
    wanted = failing.ask(method, path, body)
    assert wanted[0] == 200, wanted
    failed = 0
    for n in range(1, MOST):
        answer = failing.ask(method, path, body, fail_at=n)
        if failing.left() > 0:
            break
        failed += 1
        assert failing.process.poll() is None, n
        if answer is not None:
            is_whole(answer, path, wanted[1])
    assert 1 < failed < MOST - 1
    again = failing.ask(method, path, body)
    assert again is not None and again[0] == 200


def test_nothing_is_left_behind(failing):
    method, path, body = REQUESTS["chat_stream"]

    def round_of_failures():
        for n in range(1, 120):
            failing.ask(method, path, body, fail_at=n)
        return failing.resident_kib()

    round_of_failures()
    before = round_of_failures()
    after = [round_of_failures() for _ in range(4)][-1]
    assert after - before < 1024, (before, after)
