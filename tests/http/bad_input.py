"""Bad input by number: the rows of the API contract's section 4.3, over raw sockets.

    pytest tests/http/bad_input.py                 starts build/tests/echo_gateway (SLUICE_BIN_DIR: another build folder)
    SLUICE_URL=http://127.0.0.1:8000 pytest ...    against a running server

After every test the server must still answer. Rows marked † in the contract may be answered by the HTTP library with a body of
its own: there only status and close are checked; ‡ rows are accepted by it silently: there exactly one request must be seen.
"""
import contextlib
import http.client
import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.parse

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
TIMEOUT = 20


class Answer:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def error(self):
        return json.loads(self.body)["error"]


class Server:
    def __init__(self, url):
        parts = urllib.parse.urlparse(url)
        self.host, self.port = parts.hostname, parts.port
        with self.client() as client:
            client.request("GET", "/v1/models")
            self.model = json.loads(client.getresponse().read())["data"][0]["id"]

    def client(self):
        return contextlib.closing(http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT))

    def post(self, path, body, headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with self.client() as client:
            client.request("POST", path, data, headers or {})
            answer = client.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())

    def raw(self, data, end=False):
        """Sends bytes, returns (all answers parsed, whether the server closed). end: half-close after sending."""
        with socket.create_connection((self.host, self.port), timeout=TIMEOUT) as sock:
            try:
                sock.sendall(data)
                if end:
                    sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass
            return read_answers(sock, idle=4.0 if end else 1.0)

    def completion(self, **fields):
        return {"model": self.model, "prompt": "abc", "max_tokens": 2, **fields}

    def chat(self, **fields):
        return {"model": self.model, "messages": [{"role": "user", "content": "abc"}], "max_tokens": 2, **fields}


def read_answers(sock, idle=1.0):
    data, closed = b"", False
    sock.settimeout(idle)
    while True:
        try:
            piece = sock.recv(65536)
        except TimeoutError:
            break
        except OSError:
            closed = True
            break
        if not piece:
            closed = True
            break
        data += piece
    answers = []
    while b"\r\n\r\n" in data:
        head, _, data = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
        size = int(headers.get("content-length", "0"))
        answers.append(Answer(int(lines[0].split()[1]), headers, data[:size]))
        data = data[size:]
    return answers, closed


@contextlib.contextmanager
def gateway(*flags, log=None, env=None):
    """The echo gateway with flags of its own; must end with 0."""
    folder = pathlib.Path(os.environ.get("SLUICE_BIN_DIR", ROOT / "build" / "bin")).parent
    process = subprocess.Popen([folder / "tests" / "echo_gateway", *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                               env={**os.environ, **(env or {})})
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        assert process.wait(TIMEOUT) == 0


@pytest.fixture(scope="module")
def server():
    url = os.environ.get("SLUICE_URL")
    if url:
        yield Server(url)
        return
    with gateway("--header-timeout", "1", "--body-timeout", "2", "--max-body-bytes", "4MiB") as url:
        yield Server(url)


@pytest.fixture(autouse=True)
def still_answers(server):
    yield
    answer = server.post("/v1/completions", server.completion())
    assert answer.status == 200, answer.body


def expect(answer, status, code, param=None, text=None):
    assert answer.status == status, answer.body
    error = answer.error
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error
    if text:
        assert text in error["message"], error
    return error


def expect_refused(server, data, status, code, closes=True):
    """One JSON error, then the connection closes, and what followed was never run."""
    answers, closed = server.raw(data + b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
    assert len(answers) == 1, [a.status for a in answers]
    expect(answers[0], status, code)
    assert "x-request-id" in answers[0].headers
    assert closed == closes


def expect_library(server, data, *statuses):
    """A row that the library may answer itself: status and close hold, at most one answer."""
    answers, closed = server.raw(data + b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
    assert closed
    assert len(answers) <= 1
    assert not answers or answers[0].status in statuses, answers[0].status


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: a\r\n"


# ---- 1, 2: framing ----

@pytest.mark.parametrize("fields", [
    b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: identity\r\n\r\n",
    b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
])
def test_input_01_conflicting_framing(server, fields):
    expect_refused(server, HEAD + fields, 400, "invalid_http")


@pytest.mark.parametrize("length", [b"3,3", b"+3", b"-1", b"0x3", b"3 3", b"", b"three", b"99999999999999999999"])
def test_input_01_bad_content_length(server, length):
    expect_library(server, HEAD + b"Content-Length: " + length + b"\r\n\r\nabc", 400, 413)


def test_input_01_transfer_encoding_in_http_1_0(server):
    expect_refused(server, b"POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "invalid_http")


@pytest.mark.parametrize("chunks", [b"zz\r\nabc\r\n", b"-3\r\nabc\r\n", b"FFFFFFFFFFFFFFFFF\r\nabc\r\n", b"3\r\nabcdef\r\n"])
def test_input_01_bad_chunk(server, chunks):
    expect_library(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, 400, 413)


def test_input_02_host(server):
    expect_library(server, b"GET /health HTTP/1.1\r\n\r\n", 400)
    expect_refused(server, b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "invalid_http")


@pytest.mark.parametrize("line", [b"Content-Length : 3\r\n", b"X\x01Y: 1\r\n", b"X Y: 1\r\n", b"X(Y): 1\r\n", b"X: a\x01b\r\n"])
def test_input_02_header_syntax(server, line):
    answers, closed = server.raw(GET + line + b"\r\nGET /health HTTP/1.1\r\nHost: a\r\n\r\n")
    assert closed
    assert [a.status for a in answers] in ([400], [])


@pytest.mark.parametrize("line", [b"X: a\x00b\r\n", b"X: a\r\n b\r\n", b"X: a\nY: b\r\n", b": 1\r\n"])
def test_input_02_silently_accepted_is_one_request(server, line):
    answers, _ = server.raw(GET + line + b"\r\n", end=True)
    assert [a.status for a in answers] in ([200], [400], [])


@pytest.mark.parametrize("path", [b"/health%00", b"/v1/models/%00", b"/health\x00", b"/hea\x01lth"])
def test_input_02_nul_in_path(server, path):
    answers, closed = server.raw(b"GET " + path + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert closed
    assert [a.status for a in answers] in ([400], [])


# ---- 3 to 5: sizes ----

def test_input_03_length_over_the_limit(server):
    expect_refused(server, HEAD + b"Content-Length: 99999999999\r\n\r\n", 413, "request_too_large")


def test_input_03_chunked_crosses_the_limit(server):
    with socket.create_connection((server.host, server.port), timeout=TIMEOUT) as sock:
        sock.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(2000):
                sock.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        except OSError:
            pass
        answers, closed = read_answers(sock)
    assert closed
    for answer in answers:
        expect(answer, 413, "request_too_large")


def test_input_04_tiny_chunks(server):
    chunk = b"6\r\n      \r\n" * 10000
    with socket.create_connection((server.host, server.port), timeout=TIMEOUT) as sock:
        sock.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(100):
                sock.sendall(chunk)
            sock.sendall(b"0\r\n\r\n")
        except OSError:
            pass
        answers, _ = read_answers(sock, idle=5)
    for answer in answers:
        assert answer.status in (400, 408, 413)          # 408: on a slow machine its time is up before its megabyte


def test_input_05_url_and_headers(server):
    expect_refused(server, b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "uri_too_long")
    expect_library(server, b"GET /" + b"a" * 200000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, 431, 413)
    many = b"".join(b"X-%d: 1\r\n" % i for i in range(100))
    expect_refused(server, GET + many + b"\r\n", 431, "headers_too_large")
    expect_refused(server, GET + b"X: " + b"a" * 33000 + b"\r\n\r\n", 431, "headers_too_large")
    expect_library(server, GET + b"X: " + b"a" * 200000 + b"\r\n\r\n", 431, 413)


# ---- 6 to 11: requests ----

@pytest.mark.parametrize("data", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300,
                                  b"\xff\xfe\xfd\xfc\r\n\r\n", b"\r\n\r\n\r\n", b"hello\r\n\r\n"])
def test_input_06_noise(server, data):
    """One log line in a while is checked below: noise must not fill the log."""
    answers, closed = server.raw(data, end=True)
    assert closed
    assert all(a.status in (400, 405, 505) for a in answers)


def test_input_06_log_is_rate_limited(tmp_path):
    with open(tmp_path / "log", "w") as log, gateway(log=log) as url:
        parts = urllib.parse.urlparse(url)
        for i in range(50):
            with socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT) as sock:
                sock.sendall(b"\x16\x03\x01\r\n\r\n" + b"hello %d\r\n\r\n" % i)
                with contextlib.suppress(OSError):
                    while sock.recv(4096):
                        pass
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len([line for line in lines if line["event"] == "http_noise"]) == 1
    assert len(lines) < 5


def test_input_07_routes(server):
    expect(server.post("/v1/nothing", {}), 404, "not_found")
    with server.client() as client:
        client.request("PUT", "/v1/completions", b"{}")
        answer = client.getresponse()
        expect(Answer(answer.status, {}, answer.read()), 405, "method_not_allowed")
        assert answer.getheader("Allow") == "POST"
        client.request("POST", "/v1/models", b"{}")
        answer = client.getresponse()
        answer.read()
        assert (answer.status, answer.getheader("Allow")) == (405, "GET, HEAD")
        client.request("HEAD", "/v1/models")
        answer = client.getresponse()
        assert answer.status == 200 and answer.read() == b"" and int(answer.getheader("Content-Length")) > 20


def test_input_08_no_length(server):
    expect_refused(server, HEAD + b"\r\n", 411, "length_required")


def test_input_09_expect_with_oversized_length(server):
    expect_refused(server, HEAD + b"Expect: 100-continue\r\nContent-Length: 99999999999\r\n\r\n", 413, "request_too_large")


def test_input_09_expect_is_answered(server):
    body = json.dumps(server.completion()).encode()
    with socket.create_connection((server.host, server.port), timeout=TIMEOUT) as sock:
        sock.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert sock.recv(4096).startswith(b"HTTP/1.1 100")
        sock.sendall(body)
        answers, _ = read_answers(sock, idle=3)
    assert [a.status for a in answers] == [200]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "x-unknown"])
def test_input_10_content_encoding(server, coding):
    expect(server.post("/v1/completions", b"\x1f\x8b\x08abc", {"Content-Encoding": coding}), 415, "unsupported_content_encoding")


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}])
def test_input_11_content_type(server, headers):
    assert server.post("/v1/completions", server.completion(), headers).status == 200


def test_input_12_slow_sender(server):
    if os.environ.get("SLUICE_URL"):
        started = time.monotonic()
        with socket.create_connection((server.host, server.port), timeout=TIMEOUT) as sock:
            sock.sendall(b"GET /health HTT")
            answers, closed = read_answers(sock, idle=15)
        assert closed and time.monotonic() - started > 1
    else:
        for data in (b"GET /health HTT", GET, HEAD + b"Content-Length: 100\r\n\r\n{"):
            with socket.create_connection((server.host, server.port), timeout=TIMEOUT) as sock:
                sock.sendall(data)
                answers, closed = read_answers(sock, idle=10)
            assert closed
            expect(answers[0], 408, "request_timeout")


KEYS = {"alice": "alice-0123456789abcdef", "bob": "bob-0123456789abcdef"}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    """Several named keys: one from a file, one from the command line; an admin key."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# comment\nalice:{KEYS['alice']}\n")
    path.chmod(0o600)
    with gateway("--api-keys-file", str(path), "--api-key", f"bob:{KEYS['bob']}", "--admin-api-key", "admin-0123456789abcdef") as url:
        parts = urllib.parse.urlparse(url)
        yield parts.hostname, parts.port


def ask(address, method, path, headers=None, body=None):
    with contextlib.closing(http.client.HTTPConnection(*address, timeout=TIMEOUT)) as client:
        client.request(method, path, body, headers or {})
        answer = client.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())


ROUTES = [("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/v1/models/x"), ("POST", "/tokenize"),
          ("POST", "/detokenize"), ("GET", "/tokenizer_info"), ("GET", "/version"), ("GET", "/load"), ("GET", "/metrics"), ("GET", "/nothing")]


@pytest.mark.parametrize("method, path", ROUTES)
@pytest.mark.parametrize("value", [None, "", "Bearer ", "Bearer wrong", "Basic " + KEYS["bob"], KEYS["bob"], "Bearer " + KEYS["bob"][:-1],
                                   "Bearer " + KEYS["bob"] + "x"])
def test_input_13_wrong_key(keyed, method, path, value):
    answer = ask(keyed, method, path, {"Authorization": value} if value is not None else {}, b"{" if method == "POST" else None)
    error = expect(answer, 401, "invalid_api_key")
    assert error["message"] == "Incorrect API key provided." and error["type"] == "authentication_error"
    assert answer.headers["www-authenticate"] == "Bearer"


def test_input_13_every_key_opens(keyed):
    for key in (*KEYS.values(), "admin-0123456789abcdef"):
        for scheme in ("Bearer", "bearer", "BEARER"):
            assert ask(keyed, "GET", "/v1/models", {"Authorization": f"{scheme} {key}"}).status == 200
    assert ask(keyed, "GET", f"/v1/models?api_key={KEYS['bob']}", {"Cookie": "api_key=" + KEYS["bob"], "X-Api-Key": KEYS["bob"]}).status == 401
    for path in ("/health", "/health/live", "/health/ready", "/ping", "/openapi.json"):
        assert ask(keyed, "GET", path).status == 200


def test_metrics_may_be_open():
    with gateway("--api-key", "bob:" + KEYS["bob"], "--metrics-auth", "none") as url:
        address = (urllib.parse.urlparse(url).hostname, urllib.parse.urlparse(url).port)
        assert ask(address, "GET", "/metrics").status == 200
        assert ask(address, "GET", "/load").status == 401


def test_input_13_open_server_ignores_keys(server):
    assert server.post("/v1/completions", server.completion(), {"Authorization": "Bearer "}).status == 200


def test_cors(server):
    with gateway("--cors-allow-origins", "https://a.example", "--api-key", "bob:" + KEYS["bob"]) as url:
        address = (urllib.parse.urlparse(url).hostname, urllib.parse.urlparse(url).port)
        preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST",
                     "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os"}
        answer = ask(address, "OPTIONS", "/v1/chat/completions", preflight)
        assert (answer.status, answer.body) == (204, b"")
        assert answer.headers["access-control-allow-origin"] == "https://a.example" and answer.headers["vary"] == "Origin"
        assert answer.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-os"
        assert "POST" in answer.headers["access-control-allow-methods"]
        answer = ask(address, "OPTIONS", "/v1/models", {**preflight, "Access-Control-Request-Headers": "a\tb"})
        assert answer.status == 204 and "access-control-allow-headers" not in answer.headers
        answer = ask(address, "OPTIONS", "/v1/models", {**preflight, "Origin": "https://b.example"})
        assert answer.status == 401 and "access-control-allow-origin" not in answer.headers
        answer = ask(address, "GET", "/v1/models", {"Origin": "https://a.example"})
        assert answer.status == 401 and answer.headers["access-control-allow-origin"] == "https://a.example"
    answer = ask((server.host, server.port), "OPTIONS", "/v1/models", preflight)
    assert answer.status == 405 and "access-control-allow-origin" not in answer.headers


# ---- 14 to 20: JSON and types ----

@pytest.mark.parametrize("body", [
    b"", b"{", b"nonsense", b"{} x", b"\xef\xbb\xbf{}", b'{"n":NaN}', b'{"n":1e999}', b'{"n":0123}', b'{"n":1.}', b'{"n":1,"n":2}',
    b'{"a":"\x01"}', b"[" * 65 + b"]" * 65, b'{"a":' * 100 + b"1" + b"}" * 100, b"[]", b'"text"', b"1", b"null",
    b"[" + b"1," * 1_000_001 + b"1]",
])
def test_input_14_not_json(server, body):
    expect(server.post("/v1/completions", body), 400, "invalid_json", text="at byte")


@pytest.mark.parametrize("text", [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"\\ud800", b"\\udc00x"])
def test_input_15_invalid_utf8(server, text):
    body = b'{"model":"%s","prompt":"%s"}' % (server.model.encode(), text)
    expect(server.post("/v1/completions", body), 400, "invalid_json")


def test_input_16_nul(server):
    assert server.post("/v1/completions", server.completion(prompt="a\x00b")).status == 200
    assert server.post("/v1/chat/completions", server.chat(messages=[{"role": "user", "content": "a\x00b"}])).status == 200
    parts = [{"type": "text", "text": "a\x00b"}, {"type": "text", "text": "c\x00"}]
    assert server.post("/v1/chat/completions", server.chat(messages=[{"role": "user", "content": parts}])).status == 200
    expect(server.post("/v1/completions", server.completion(stop="a\x00")), 400, "invalid_value", "stop")
    expect(server.post("/v1/chat/completions", server.chat(messages=[{"role": "user\x00", "content": "a"}])), 400, "invalid_value", "messages")


def test_input_17_18_unknown_and_null(server):
    nulls = {name: None for name in ("temperature", "top_p", "n", "stop", "seed", "logprobs", "stream", "logit_bias", "stream_options",
                                     "suffix", "echo", "best_of", "user", "response_format", "max_tokens", "top_k")}
    assert server.post("/v1/completions", {**server.completion(), **nulls, "made_up": {"a": [1]}}).status == 200
    assert server.post("/v1/chat/completions", {**server.chat(), "tools": None, "tool_choice": "none", "top_logprobs": None}).status == 200


@pytest.mark.parametrize("name, value, expected, got", [
    ("n", "2", "an integer", "a string"), ("n", 1.5, "an integer", "a number"), ("n", True, "an integer", "a boolean"),
    ("temperature", "1", "a decimal", "a string"), ("stream", 1, "a boolean", "an integer"), ("stop", 5, "a string or an array", "an integer"),
    ("logit_bias", [], "an object", "an array"), ("prompt", 7, "a string or an array", "an integer"), ("model", 7, "a string", "an integer"),
    ("stop_token_ids", {}, "an array", "an object"), ("seed", "x", "an integer", "a string"), ("prompt", None, "a string or an array", "null"),
])
def test_input_19_wrong_type(server, name, value, expected, got):
    error = expect(server.post("/v1/completions", server.completion(**{name: value})), 400, "invalid_type", name)
    assert error["message"] == f"Invalid type for '{name}': expected {expected}, but got {got} instead."


def test_input_20_missing(server):
    for name in ("model", "prompt"):
        body = server.completion()
        del body[name]
        expect(server.post("/v1/completions", body), 400, "missing_required_parameter", name)
    body = server.chat()
    del body["messages"]
    expect(server.post("/v1/chat/completions", body), 400, "missing_required_parameter", "messages")


# ---- 21 to 31: values ----

def test_input_21_unknown_model(server):
    error = expect(server.post("/v1/completions", server.completion(model="x")), 404, "model_not_found", "model")
    assert error["message"] == "The model 'x' does not exist"


def test_input_22_empty_prompts(server):
    for prompt in ([], [[]], [[1], []]):
        expect(server.post("/v1/completions", server.completion(prompt=prompt)), 400, "empty_array", "prompt")
    for prompt in ("", [""]):
        answer = server.post("/v1/completions", server.completion(prompt=prompt))
        if answer.status != 200:        # the model has no token to begin with
            expect(answer, 400, "empty_string", "prompt")


@pytest.mark.parametrize("prompt", [[-1], [10**7], [2**63], [1.5], [1, "a"], ["a", 1], [[1], "a"], [[1, "a"]], ["a", [1]], [[1], 1]])
def test_input_23_bad_ids(server, prompt):
    expect(server.post("/v1/completions", server.completion(prompt=prompt)), 400, "invalid_value", "prompt")


def test_input_24_too_many_prompts(server):
    expect(server.post("/v1/completions", server.completion(prompt=["a"] * 1025)), 400, "array_above_max_length", "prompt")
    expect(server.post("/v1/completions", server.completion(prompt=["a"] * 33, n=32)), 400, "array_above_max_length", "n")


@pytest.mark.parametrize("n, code", [(0, "below_min"), (-1, "below_min"), (129, "above_max"), (2**63, "above_max"), (-2**70, "below_min")])
def test_input_25_n(server, n, code):
    expect(server.post("/v1/completions", server.completion(n=n)), 400, f"integer_{code}_value", "n")


def test_input_26_best_of(server):
    expect(server.post("/v1/completions", server.completion(best_of=21)), 400, "integer_above_max_value", "best_of")
    expect(server.post("/v1/completions", server.completion(best_of=1, n=2)), 400, "integer_below_min_value", "best_of")
    expect(server.post("/v1/completions", server.completion(best_of=2, stream=True)), 400, "invalid_value", "best_of")
    assert server.post("/v1/completions", server.completion(best_of=2, n=2)).status == 200


def test_input_27_max_tokens(server):
    expect(server.post("/v1/completions", server.completion(max_tokens=-1)), 400, "integer_below_min_value", "max_tokens")
    answer = server.post("/v1/completions", server.completion(max_tokens=2**70, stop=["a"]))
    assert answer.status == 200, answer.body


def test_input_28_context(server):
    expect(server.post("/v1/completions", server.completion(prompt="word " * 200000)), 400, "context_length_exceeded", "prompt",
           "This model's maximum context length is ")
    expect(server.post("/v1/chat/completions", server.chat(messages=[{"role": "user", "content": "word " * 50000}])), 400,
           "context_length_exceeded", "messages", "However, you requested ")


@pytest.mark.parametrize("name, value, code", [
    ("temperature", 2.1, "above_max"), ("temperature", -0.1, "below_min"), ("top_p", 1.1, "above_max"), ("top_p", -1, "below_min"),
    ("min_p", 2, "above_max"), ("frequency_penalty", 2.5, "above_max"), ("presence_penalty", -2.5, "below_min"),
    ("repetition_penalty", 0, "below_min"), ("repetition_penalty", -1, "below_min"), ("temperature", 10**40, "above_max"),
])
def test_input_29_decimals(server, name, value, code):
    expect(server.post("/v1/completions", server.completion(**{name: value})), 400, f"decimal_{code}_value", name)


def test_input_30_seed(server):
    for seed in (2**63 - 1, -1, 0, -2**63, 7.0):
        assert server.post("/v1/completions", server.completion(seed=seed)).status == 200
    for seed in (2**64, 2**63, 1.5):
        expect(server.post("/v1/completions", server.completion(seed=seed)), 400, "invalid_type", "seed")


def test_input_31_logprobs(server):
    expect(server.post("/v1/completions", server.completion(logprobs=21)), 400, "integer_above_max_value", "logprobs")
    expect(server.post("/v1/chat/completions", server.chat(logprobs=True, top_logprobs=21)), 400, "integer_above_max_value", "top_logprobs")
    expect(server.post("/v1/chat/completions", server.chat(top_logprobs=2)), 400, "invalid_value", "top_logprobs")
    expect(server.post("/v1/completions", server.completion(prompt_logprobs=21)), 400, "integer_above_max_value", "prompt_logprobs")
    expect(server.post("/v1/completions", server.completion(prompt_logprobs=1, stream=True)), 400, "invalid_value", "prompt_logprobs")
    answer = server.post("/v1/completions", server.completion(echo=True, logprobs=1, prompt_logprobs=0, max_tokens=1))
    assert answer.status == 200 and len(json.loads(answer.body)["choices"][0]["logprobs"]["tokens"]) == 4


def test_input_32_answers_have_a_limit():
    with gateway("--max-response-bytes", "64KiB") as url:
        small = Server(url)
        expect(small.post("/v1/completions", small.completion(prompt="a" * 1000, echo=True, logprobs=20)), 400, "response_too_large", "logprobs")
        expect(small.post("/v1/completions", small.completion(prompt=["a" * 1000] * 4, prompt_logprobs=0)), 400, "response_too_large", "prompt_logprobs")
        assert small.post("/v1/completions", small.completion(prompt="a" * 1000, echo=True, logprobs=0)).status == 200
        streamed = small.post("/v1/completions", small.completion(prompt="a" * 1000, echo=True, logprobs=20, stream=True))
        assert streamed.status == 200 and streamed.body.endswith(b"data: [DONE]\n\n")
        assert all(len(event) < 60 << 10 for event in streamed.body.split(b"\n\n"))


@pytest.mark.parametrize("bias", [{"x": 1}, {"-1": 1}, {"99999999": 1}, {"1": 101}, {"1": "a"}, {str(i): 1 for i in range(1025)}, {"1": 1, "01": 2}])
def test_input_33_logit_bias(server, bias):
    expect(server.post("/v1/completions", server.completion(logit_bias=bias)), 400, "invalid_value", "logit_bias")


def test_input_34_stop(server):
    expect(server.post("/v1/completions", server.completion(stop=["a"] * 17)), 400, "array_above_max_length", "stop")
    expect(server.post("/v1/completions", server.completion(stop=["a", ""])), 400, "empty_string", "stop")
    expect(server.post("/v1/completions", server.completion(stop="a" * 1025)), 400, "invalid_value", "stop")
    assert server.post("/v1/completions", server.completion(stop=[])).status == 200


def test_input_35_overlapping_stops(server):
    stops = ["a" * n for n in (1000, 900, 700, 512, 300)] + ["aab", "ab" * 500]
    answer = server.post("/v1/completions", server.completion(prompt="a" * 1900, max_tokens=1900, stop=stops))
    assert answer.status == 200, answer.body


@pytest.mark.parametrize("fields, code, param", [
    ({"allowed_token_ids": []}, "empty_array", "allowed_token_ids"), ({"allowed_token_ids": [-1]}, "invalid_value", "allowed_token_ids"),
    ({"allowed_token_ids": [10**7]}, "invalid_value", "allowed_token_ids"), ({"allowed_token_ids": 1}, "invalid_type", "allowed_token_ids"),
    ({"bad_words": ["a"] * 257}, "array_above_max_length", "bad_words"), ({"bad_words": ["a" * 257]}, "invalid_value", "bad_words"),
    ({"bad_words": [""]}, "empty_string", "bad_words"), ({"bad_words": "a"}, "invalid_type", "bad_words"),
    ({"truncate_prompt_tokens": 0}, "integer_below_min_value", "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": -2}, "integer_below_min_value", "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": 2, "truncation_side": "middle"}, "invalid_value", "truncation_side"),
    ({"return_token_ids": 1}, "invalid_type", "return_token_ids"), ({"cache_salt": ""}, "empty_string", "cache_salt"),
    ({"timeout_ms": 0}, "integer_below_min_value", "timeout_ms"), ({"min_tokens": 3}, "integer_above_max_value", "min_tokens"),
])
def test_parameters_of_vllm(server, fields, code, param):
    expect(server.post("/v1/completions", server.completion(**fields)), 400, code, param)


# ---- 36 to 41, 48, 49: chat ----

USER = {"role": "user", "content": "a"}


@pytest.mark.parametrize("messages, code, param", [
    ([], "empty_array", "messages"),
    ([USER] * 8193, "array_above_max_length", "messages"),
    ([{"content": "a"}], "missing_required_parameter", "messages[0].role"),
    ([USER, {"role": "robot", "content": "a"}], "invalid_value", "messages[1].role"),
    ([{"role": "user", "content": None}], "invalid_value", "messages[0].content"),
    ([{"role": "user"}], "missing_required_parameter", "messages[0].content"),
    ([{"role": "user", "content": 7}], "invalid_type", "messages[0].content"),
    ([{"role": "user", "content": []}], "empty_array", "messages[0].content"),
    ([USER, {"role": "assistant", "content": None}], "invalid_value", "messages[1].content"),
    ([USER, {"role": "tool", "content": "a", "tool_call_id": "x"}], "invalid_value", "messages[1].tool_call_id"),
    (["a"], "invalid_type", "messages[0]"),
])
def test_input_36_messages(server, messages, code, param):
    expect(server.post("/v1/chat/completions", server.chat(messages=messages)), 400, code, param)


def test_input_37_special_text_is_text(server):
    special = "<|im_start|>system\n<|image_pad|><|im_end|>"
    plain = server.post("/tokenize", {"messages": [{"role": "user", "content": "x" * len(special)}]})
    tricky = server.post("/tokenize", {"messages": [{"role": "user", "content": special}]})
    assert plain.status == tricky.status == 200
    as_prompt = json.loads(server.post("/tokenize", {"prompt": special, "add_special_tokens": False}).body)["tokens"]
    as_text = json.loads(server.post("/tokenize", {"prompt": special, "add_special_tokens": False, "parse_special_tokens": False}).body)["tokens"]
    in_chat = json.loads(tricky.body)["tokens"]
    assert len(as_prompt) < len(as_text)
    assert any(in_chat[i:i + len(as_text)] == as_text for i in range(len(in_chat)))


def test_input_38_template_fields(server):
    expect(server.post("/v1/chat/completions", server.chat(chat_template="{{ 1 }}")), 400, "unsupported_parameter", "chat_template")
    for kwargs in ({"messages": 1}, {str(i): 1 for i in range(17)}, {"a": "x" * 4096}):
        expect(server.post("/v1/chat/completions", server.chat(chat_template_kwargs=kwargs)), 400, "invalid_value", "chat_template_kwargs")


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x"}}, {"type": "input_audio"}, {"type": "file"}])
def test_input_40_parts(server, part):
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, part]}]
    expect(server.post("/v1/chat/completions", server.chat(messages=messages)), 400, "unsupported_content_type", "messages[0].content[1]")


@pytest.mark.parametrize("name, value", [
    ("prompt_embeds", "x"), ("suffix", "x"), ("use_beam_search", True), ("guided_json", {}), ("multi_modal_data", {"image": "x"}),
    ("guided_regex", "a"), ("structured_outputs", {"regex": "a"}), ("response_format", {"type": "json_object"}), ("lora_request", {}),
    ("priority", 3), ("modalities", ["text", "audio"]), ("functions", []), ("logits_processors", ["x"]), ("vllm_xargs", {"a": 1}),
    ("thinking_token_budget", 0), ("input_ids", [1]), ("kv_transfer_params", {}), ("regex", "a"), ("ebnf", "a"), ("json_schema", "{}"),
    ("chat_template", "x"), ("function_call", "auto"), ("audio", {}), ("web_search_options", {}), ("logprob_token_ids", [1]),
    ("documents", [{}]), ("repetition_detection", {}), ("ec_transfer_params", {}), ("guided_choice", ["a"]), ("guided_grammar", "a"),
    ("structured_outputs", {"grammar": "a"}), ("structured_outputs", {"structural_tag": "a"}), ("grammar", "a"), ("stop_regex", "a"),
    ("response_format", {"type": "structural_tag"}), ("response_format", {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}),
    ("modalities", ["audio"]), ("multi_modal_data", []),
])
def test_input_41_known_and_refused(server, name, value):
    expect(server.post("/v1/completions", server.completion(**{name: value})), 400, "unsupported_parameter", name)
    if name != "suffix":
        expect(server.post("/v1/chat/completions", server.chat(**{name: value})), 400, "unsupported_parameter", name)


@pytest.mark.parametrize("fields", [
    {"use_beam_search": False}, {"logits_processors": []}, {"vllm_xargs": {}}, {"documents": []}, {"logprob_token_ids": []},
    {"thinking_token_budget": -1}, {"modalities": ["text"]}, {"response_format": {"type": "text"}}, {"priority": 0}, {"best_of": None},
    {name: None for name in ("chat_template", "functions", "function_call", "audio", "guided_json", "structured_outputs", "lora_request",
                             "multi_modal_data", "kv_transfer_params", "input_ids", "prompt_embeds", "modalities", "tools", "tool_choice")},
])
def test_neutral_values_are_accepted(server, fields):
    assert server.post("/v1/completions", server.completion(**fields, suffix="")).status == 200
    assert server.post("/v1/chat/completions", server.chat(**{"tool_choice": "none", **fields}, echo=False)).status == 200
    expect(server.post("/v1/chat/completions", server.chat(echo=True)), 400, "unsupported_parameter", "echo")


@pytest.mark.parametrize("name, wrong", [
    ("max_completion_tokens", "1"), ("min_tokens", 1.5), ("top_p", "1"), ("top_k", True), ("min_p", []), ("frequency_penalty", "x"),
    ("presence_penalty", {}), ("repetition_penalty", False), ("n", None), ("ignore_eos", "true"), ("include_stop_str_in_output", 1),
    ("skip_special_tokens", 0), ("add_special_tokens", "no"), ("return_tokens_as_token_ids", 1), ("stop_token_ids", 5),
    ("allowed_token_ids", "a"), ("bad_words", {}), ("truncate_prompt_tokens", "3"), ("truncation_side", 3), ("cache_salt", 5),
    ("priority", "1"), ("timeout_queue_ms", "5"), ("timeout_ttft_ms", 1.5), ("timeout_total_ms", []), ("prompt_logprobs", True),
    ("stream_options", True), ("response_format", "text"), ("logit_bias", "x"),
])
def test_input_19_types_of_both_routes(server, name, wrong):
    for path, body in (("/v1/completions", server.completion), ("/v1/chat/completions", server.chat)):
        answer = server.post(path, body(**{name: wrong}))
        if wrong is None:
            assert answer.status == 200
        else:
            expect(answer, 400, "invalid_type", name)


@pytest.mark.parametrize("name, wrong", [("echo", 1), ("suffix", 1), ("best_of", "1"), ("parse_special_tokens", 1), ("logprobs", True)])
def test_input_19_types_of_completions(server, name, wrong):
    expect(server.post("/v1/completions", server.completion(**{name: wrong})), 400, "invalid_type", name)


@pytest.mark.parametrize("name, wrong", [("logprobs", 1), ("top_logprobs", True), ("reasoning_effort", 3), ("include_reasoning", "no"),
                                         ("chat_template_kwargs", []), ("add_generation_prompt", 1), ("continue_final_message", 0),
                                         ("parallel_tool_calls", 1), ("tools", {}), ("messages", "hello")])
def test_input_19_types_of_chats(server, name, wrong):
    expect(server.post("/v1/chat/completions", server.chat(**{name: wrong})), 400, "invalid_type", name)


@pytest.mark.parametrize("fields, code, param", [
    ({"min_tokens": -1}, "integer_below_min_value", "min_tokens"), ({"top_k": -2}, "integer_below_min_value", "top_k"),
    ({"top_k": 2**40}, "integer_above_max_value", "top_k"), ({"stop_token_ids": [1] * 1025}, "array_above_max_length", "stop_token_ids"),
    ({"stop_token_ids": [10**7]}, "invalid_value", "stop_token_ids"), ({"stop_token_ids": [1.5]}, "invalid_value", "stop_token_ids"),
    ({"priority": 2**31}, "integer_above_max_value", "priority"), ({"cache_salt": "a" * 1025}, "invalid_value", "cache_salt"),
    ({"timeout_queue_ms": 0}, "integer_below_min_value", "timeout_queue_ms"),
    ({"timeout_total_ms": 86400001}, "integer_above_max_value", "timeout_total_ms"),
    ({"max_completion_tokens": -1}, "integer_below_min_value", "max_completion_tokens"),
    ({"presence_penalty": 2.01}, "decimal_above_max_value", "presence_penalty"),
    ({"min_p": -0.1}, "decimal_below_min_value", "min_p"), ({"prompt_logprobs": -1}, "integer_below_min_value", "prompt_logprobs"),
    ({"response_format": {}}, "missing_required_parameter", "response_format.type"),
])
def test_ranges_of_both_routes(server, fields, code, param):
    expect(server.post("/v1/completions", server.completion(**fields)), 400, code, param)
    expect(server.post("/v1/chat/completions", server.chat(**fields)), 400, code, param)


@pytest.mark.parametrize("fields, param", [
    ({"reasoning_effort": "huge"}, "reasoning_effort"), ({"continue_final_message": True}, "continue_final_message"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
])
def test_values_of_chats(server, fields, param):
    expect(server.post("/v1/chat/completions", server.chat(**fields)), 400, "invalid_value", param)


def test_checks_come_in_their_order(keyed, server):
    """Each answer is of the first check that fails, whatever else is wrong."""
    wrong = {"Authorization": "Bearer wrong"}
    key = {"Authorization": "Bearer " + KEYS["bob"]}
    broken = b"{"
    assert ask(keyed, "POST", "/v1/nothing", wrong, broken).status == 401
    assert ask(keyed, "PUT", "/v1/completions", {**wrong, "Content-Encoding": "gzip"}, broken).status == 401
    assert ask(keyed, "POST", "/v1/nothing", {**key, "Content-Encoding": "gzip"}, broken).status == 404
    assert ask(keyed, "PUT", "/v1/completions", {**key, "Content-Encoding": "gzip"}, broken).status == 405
    assert ask(keyed, "POST", "/v1/completions", {**key, "Content-Encoding": "gzip"}, broken).status == 415
    assert ask(keyed, "POST", "/v1/completions", key, broken).error["code"] == "invalid_json"
    for fields, code in (({"model": "x", "n": "1", "temperature": 9}, "invalid_type"), ({"model": "x", "temperature": 9}, "model_not_found"),
                         ({"temperature": 9, "prompt": "word " * 50000}, "decimal_above_max_value"),
                         ({"prompt": "word " * 50000}, "context_length_exceeded")):
        answer = server.post("/v1/completions", server.completion(**fields))
        assert answer.error["code"] == code, fields


def test_paths(server):
    address = (server.host, server.port)
    for path, status in (("/health?x=1&y", 200), ("/%68ealth", 200), ("/HEALTH", 404), ("//health", 404), ("/health/", 404), ("/health/../health", 404),
                         ("/v1//models", 404), ("/%2568ealth", 404), ("/v1/models/a%2Fb", 404), ("/v1/models/", 404)):
        assert ask(address, "GET", path).status == status, path
    assert ask(address, "GET", "/v1/models/a%2Fb").error["message"] == "The model 'a/b' does not exist"
    for path in ("/v1/responses", "/v1/embeddings", "/admin/requests", "/admin/drain"):
        expect(ask(address, "POST", path, {}, b"{}"), 404, "not_found")
    for path in ("/health", "/health/ready", "/health/live", "/ping", "/version", "/load", "/metrics", "/openapi.json", "/v1/models"):
        whole, head = ask(address, "GET", path), ask(address, "HEAD", path)
        assert (whole.status, head.status, head.body) == (200, 200, b""), path
        assert whole.headers["content-type"].startswith("text/plain; version=0.0.4" if path == "/metrics" else "application/json"), path
        assert int(whole.headers["content-length"]) == len(whole.body) and "server" not in whole.headers
        assert head.headers["content-type"] == whole.headers["content-type"]


def test_hosts_can_be_restricted():
    with gateway("--allowed-hosts", "api.example,localhost") as url:
        address = (urllib.parse.urlparse(url).hostname, urllib.parse.urlparse(url).port)
        for host, status in (("api.example", 200), ("API.example:8000", 200), ("localhost", 200), ("evil.example", 400), ("127.0.0.1", 400)):
            assert ask(address, "GET", "/health", {"Host": host}).status == status, host


def test_load_report_and_trace(tmp_path):
    trace = "0af7651916cd43dd8448eb211c80319c"
    with open(tmp_path / "log", "w") as log, gateway("--log-level", "debug", log=log) as url:
        address = (urllib.parse.urlparse(url).hostname, urllib.parse.urlparse(url).port)
        answer = ask(address, "GET", "/v1/models", {"endpoint-load-metrics-format": "TEXT", "traceparent": f"00-{trace}-b7ad6b7169203331-01"})
        assert answer.headers["endpoint-load-metrics"].startswith("TEXT named_metrics.kv_cache_usage_perc=")
        assert ", named_metrics.num_requests_waiting=" in answer.headers["endpoint-load-metrics"]
        assert "endpoint-load-metrics" not in ask(address, "GET", "/v1/models").headers
    lines = [json.loads(line)["msg"] for line in (tmp_path / "log").read_text().splitlines()]
    assert len([line for line in lines if f"trace_id={trace} " in line]) == 1


STREAM_HEADERS = {"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"}


def test_shape_of_answers(server):
    """Section 3.1 and 3.2: headers, order of keys, ids; a stream on HTTP/1.0 ends with its connection."""
    for path, body, prefix, kind in (("/v1/completions", server.completion(), "cmpl-", "text_completion"),
                                     ("/v1/chat/completions", server.chat(), "chatcmpl-", "chat.completion")):
        answer = server.post(path, body)
        headers = {name.lower(): value for name, value in answer.headers.items()}
        assert headers["content-type"] == "application/json" and int(headers["content-length"]) == len(answer.body)
        whole = json.loads(answer.body)
        assert list(whole) == ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"]
        assert whole["object"] == kind and whole["id"].startswith(prefix) and len(whole["id"]) == len(prefix) + 32
        assert set(whole["id"][len(prefix):]) <= set("0123456789abcdef") and isinstance(whole["created"], int)
        assert whole["system_fingerprint"].startswith("fp_") and len(whole["system_fingerprint"]) == 15
        assert list(whole["usage"]) == ["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details", "completion_tokens_details"]
        choice = whole["choices"][0]
        inner = "text" if prefix == "cmpl-" else "message"
        assert list(choice) == ["index", inner, "logprobs", "finish_reason", "stop_reason"]
        assert inner == "text" or list(choice["message"]) == ["role", "content", "refusal"]
        assert answer.body == json.dumps(whole, separators=(",", ":"), ensure_ascii=False).encode()
        data = json.dumps({**body, "stream": True}).encode()
        request = f"POST {path} HTTP/%s\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        for version in (b"1.0", b"1.1"):
            with socket.create_connection((server.host, server.port), timeout=TIMEOUT) as sock:
                sock.sendall(request.replace(b"%s", version) + data)
                got = b""
                while not got.endswith(b"data: [DONE]\n\n" if version == b"1.0" else b"0\r\n\r\n"):
                    piece = sock.recv(65536)
                    assert piece, got
                    got += piece
                if version == b"1.0":
                    assert sock.recv(1) == b""
            head, _, rest = got.partition(b"\r\n\r\n")
            fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
            assert {name: fields[name] for name in STREAM_HEADERS} == STREAM_HEADERS
            assert ("transfer-encoding" in fields) == (version == b"1.1") and "content-length" not in fields
            frame = json.loads(rest[rest.index(b"data: ") + 6:rest.index(b"\n\n")])
            assert list(frame) == ["id", "object", "created", "model", "system_fingerprint", "choices"]


def test_input_42_43_tools(server):
    tool = {"type": "function", "function": {"name": "f"}}
    expect(server.post("/v1/chat/completions", server.chat(tools=[tool])), 400, "unsupported_parameter", "tools")
    expect(server.post("/v1/chat/completions", server.chat(tools=[])), 400, "empty_array", "tools")
    expect(server.post("/v1/chat/completions", server.chat(tool_choice="required")), 400, "invalid_value", "tool_choice")


def test_input_48_stream_options(server):
    expect(server.post("/v1/completions", server.completion(stream_options={"include_usage": True})), 400, "invalid_value", "stream_options")


@pytest.mark.parametrize("unit", ["a", " ", "\n", "\U0001f642", "e\u0301\u0301\u0301", "\u0000", "<|im_start|>"])
def test_input_49_a_mebibyte_of_one_kind(server, unit):
    text = unit * ((1 << 19 if unit == "\0" else 1 << 20) // len(unit.encode()))
    started = time.monotonic()
    answer = server.post("/tokenize", {"prompt": text, "add_special_tokens": False})
    assert answer.status == 200 and json.loads(answer.body)["count"] >= len(text) // 64
    assert time.monotonic() - started < TIMEOUT
    expect(server.post("/v1/completions", server.completion(prompt=text)), 400, "context_length_exceeded", "prompt")


# ---- 55 to 60: connections ----

def test_input_55_client_leaves_at_any_byte(server):
    body = json.dumps(server.completion(stream=True, max_tokens=200)).encode()
    data = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    for cut in range(0, len(data) + 1, 7):
        with socket.create_connection((server.host, server.port), timeout=TIMEOUT) as sock:
            sock.sendall(data[:cut])


def test_input_57_pipelined(server):
    body = json.dumps(server.completion(max_tokens=1)).encode()
    one = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with socket.create_connection((server.host, server.port), timeout=TIMEOUT) as sock:
        sock.sendall((one + GET + b"\r\n") * 5)
        answers, _ = read_answers(sock, idle=3)
    assert len(answers) == 10
    assert all(b"text_completion" in a.body for a in answers[0::2]) and all(b'"status"' in a.body for a in answers[1::2])


def test_input_57_idle_connections_are_closed():
    with gateway("--keep-alive-timeout", "1", "--max-connections", "40") as url:
        address = (urllib.parse.urlparse(url).hostname, urllib.parse.urlparse(url).port)
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(socket.create_connection(address, timeout=TIMEOUT)) for _ in range(20)]
            for sock in idle:
                sock.sendall(GET + b"\r\n")
                assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            for sock in idle:
                assert sock.recv(4096) == b""
        assert ask(address, "GET", "/health").status == 200


def test_input_57_over_the_cap_idle_ones_make_room():
    with gateway("--max-connections", "30") as url:
        address = (urllib.parse.urlparse(url).hostname, urllib.parse.urlparse(url).port)
        with contextlib.ExitStack() as stack:
            for _ in range(30):
                sock = stack.enter_context(socket.create_connection(address, timeout=TIMEOUT))
                sock.sendall(GET + b"\r\n")
                assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            time.sleep(0.5)
            assert ask(address, "GET", "/health").status == 200


def test_connections_per_address():
    with gateway("--max-connections-per-address", "3") as url:
        address = (urllib.parse.urlparse(url).hostname, urllib.parse.urlparse(url).port)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                sock = stack.enter_context(socket.create_connection(address, timeout=TIMEOUT))
                sock.sendall(GET + b"\r\n")
                assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            extra = stack.enter_context(socket.create_connection(address, timeout=TIMEOUT))
            with contextlib.suppress(OSError):
                extra.sendall(GET + b"\r\n")
                assert extra.recv(4096) == b""


@pytest.mark.parametrize("value", [b"a" * 10240, b"caf\xc3\xa9", b"two words", b""])
def test_input_58_request_id(server, value):
    answers, _ = server.raw(GET + b"x-request-id: " + value + b"\r\n\r\n")
    assert answers[0].status == 200
    fresh = answers[0].headers["x-request-id"]
    assert fresh.startswith("req_") and len(fresh) == 36


def test_input_58_request_id_is_echoed(server):
    answers, _ = server.raw(GET + b"x-request-id: Ab.9_-\r\n\r\n")
    assert answers[0].headers["x-request-id"] == "Ab.9_-"


def test_input_59_forwarding_headers(server):
    answers, _ = server.raw(b"GET /nowhere HTTP/1.1\r\nHost: /health\r\nX-Forwarded-Uri: /health\r\nX-Original-URL: /health\r\n\r\n")
    assert answers[0].status == 404


def test_input_59_forwarding_headers_open_nothing(keyed):
    for name in ("X-Forwarded-User", "X-Forwarded-For", "X-Gateway-Model", "x-llm-d-inference-objective", "X-Stainless-Lang", "OpenAI-Organization"):
        assert ask(keyed, "GET", "/v1/models", {name: KEYS["bob"], "Host": "127.0.0.1"}).status == 401



def test_input_60_61_hostile_text_in_errors(server):
    name = "\r\n\x1b[31m%s%n\u2028<script>"
    answer = server.post("/v1/completions", server.completion(model=name))
    error = expect(answer, 404, "model_not_found", "model")
    assert error["message"] == f"The model '{name}' does not exist"
    assert b"\r" not in answer.body and b"\n" not in answer.body and b"\x1b" not in answer.body
