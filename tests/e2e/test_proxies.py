"""Behind nginx and haproxy: events arrive one by one, connections to the server are kept, requests that smuggle die. Each runs where
its program is installed (scripts/test.sh installs both)."""
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse

import httpx
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "http"))

from bad_input import gateway  # noqa: E402
from server import free_port  # noqa: E402

NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    upstream sluice {{ server {host}:{port}; keepalive 8; }}
    server {{
        listen 127.0.0.1:{listen};
        location / {{ proxy_pass http://sluice; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_read_timeout 300s; }}
    }}
}}
"""
HAPROXY = """
global
    maxconn 256
defaults
    mode http
    timeout connect 5s
    timeout client 300s
    timeout server 300s
    option http-keep-alive
    http-reuse always
frontend front
    bind 127.0.0.1:{listen}
    default_backend sluice
backend sluice
    server one {host}:{port}
"""
PROGRAMS = {"nginx": (NGINX, ["-c", "{config}"]), "haproxy": (HAPROXY, ["-f", "{config}"])}
INSTALLED = [name for name in PROGRAMS if shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin")]
PAUSE_S = 0.05                  # of the echoing engine between two tokens


@pytest.fixture(params=INSTALLED)
def proxy(request, tmp_path):
    template, arguments = PROGRAMS[request.param]
    program = shutil.which(request.param, path="/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/sbin:/usr/local/bin")
    with gateway(env={"SLUICE_ECHO_PAUSE_US": str(int(PAUSE_S * 1e6))}) as url:
        parts, listen = urllib.parse.urlparse(url), free_port()
        config = tmp_path / "config"
        config.write_text(template.format(folder=tmp_path, host=parts.hostname, port=parts.port, listen=listen))
        process = subprocess.Popen([program, *(a.format(config=config) for a in arguments)], cwd=tmp_path)
        try:
            wait_listening(listen)
            yield f"http://127.0.0.1:{listen}", url
        finally:
            process.terminate()
            process.wait(20)


def wait_listening(port):
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the proxy does not listen")


def requests_seen(url):
    text = httpx.get(url + "/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("sluice_http_requests_total{") and 'route="metrics"' not in line)


def connections(url):
    text = httpx.get(url + "/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("sluice_http_connections{"))


def test_events_arrive_one_by_one(proxy):
    front, _ = proxy
    body = {"model": "tiny", "prompt": "x" * 20, "max_tokens": 20, "stream": True}
    pieces = 0
    with httpx.stream("POST", front + "/v1/completions", json=body, timeout=60) as answer:
        assert answer.status_code == 200 and answer.headers["content-type"] == "text/event-stream"
        text = ""
        for piece in answer.iter_raw():
            pieces += 1
            text += piece.decode()
    assert pieces > 8, "the proxy waited for more"
    assert text.endswith("data: [DONE]\n\n")
    events = [json.loads(event[6:]) for event in text.split("\n\n")[:-2]]
    assert "".join(event["choices"][0]["text"] for event in events) == "x" * 20


def test_connections_are_kept(proxy):
    front, url = proxy
    with httpx.Client(timeout=60) as http:
        for i in range(20):
            answer = http.post(front + "/v1/completions", json={"model": "tiny", "prompt": "ab", "max_tokens": 2, "stream": i % 2 == 0})
            assert answer.status_code == 200
        assert connections(url) <= 4
        bad = http.post(front + "/v1/completions", json={"model": "nope", "prompt": "ab"})
        assert (bad.status_code, bad.json()["error"]["code"]) == (404, "model_not_found") and bad.headers["x-request-id"]


@pytest.mark.parametrize("fields", [
    b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"Content-Length: 3\r\nContent-Length: 40\r\n\r\nabc",
    b"Transfer-Encoding: chunked\r\nContent-Length : 4\r\n\r\n0\r\n\r\n", b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
])
def test_smuggling_is_seen_by_nobody(proxy, fields):
    """Every answer of the server belongs to a request that the proxy knows of: none is left over for somebody else."""
    front, url = proxy
    parts = urllib.parse.urlparse(front)
    before = requests_seen(url)
    hidden = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n" + fields + hidden)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    answers = [line for line in answer.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    ours = answer.lower().count(b"x-request-id: ")
    assert 1 <= len(answers) <= 2
    assert requests_seen(url) - before == ours
