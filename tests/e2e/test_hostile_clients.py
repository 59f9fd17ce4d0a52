"""Clients that mean no good, many at a time: streams reset at any point, readers that do not read. Afterwards nothing is left of
them in the gateway: no request, no connection, no descriptor, no memory. The scripted engine answers; what a real one frees is
test_faults.py's."""
import concurrent.futures
import itertools
import json
import random
import socket
import time

from server import BIN, PATIENCE, SANITIZED, Server

RESETS, SLOW = (60, 40) if SANITIZED else (300, 200)
RESET = b"\1\0\0\0\0\0\0\0"      # linger 0 s


def send_request(server, sock, **fields):
    body = json.dumps({"model": server.name, "ignore_eos": True, "stream": True, **fields}).encode()
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def reset_somewhere(server, seed):
    """Half of the request, all of it, or some of the answer; then RST."""
    rng = random.Random(seed)
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=60 * PATIENCE)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    with sock:
        if rng.random() < 0.2:
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{" + b" " * rng.randrange(400))
            return
        send_request(server, sock, prompt=f"Story number {seed}:", max_tokens=rng.choice([4, 40, 4000]))
        time.sleep(rng.choice([0, 0, 0.01, 0.2]))
        left, data = rng.choice([0, 1, 300, 3000]), b""
        while left > 0 and b"[DONE]" not in data:
            piece = sock.recv(left)
            if not piece:
                break
            left, data = left - len(piece), data + piece


def slow_reader(server):
    """Small segments and a small buffer: the server's own buffer is as small then, and full after some tens of frames."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    sock.settimeout(60 * PATIENCE)
    sock.connect(("127.0.0.1", server.port))
    send_request(server, sock, prompt="Once upon a time", max_tokens=4000, logprobs=20)
    return sock


def is_cut(sock):
    """What was sent is read; then the end or a reset, not more text."""
    try:
        while sock.recv(1 << 16):
            pass
        return True
    except ConnectionError:
        return True


def test_resets_and_slow_readers_leave_nothing_behind(monkeypatch):
    monkeypatch.setenv("SLUICE_FAKE_ENGINE", "rule=count,eos_after=-1,delay_ms=5")
    with Server("--engine-path", str(BIN / "fake-engine"), "--max-num-seqs", "256", "--slow-client-timeout", "2s",
                "--max-queue-requests", "1000") as server:
        def resets(seeds):
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda seed: reset_somewhere(server, seed), seeds))

        def connections():
            return sum(server.metric("sluice_http_connections", state=state) for state in ("idle", "active", "suspended"))

        def settle(descriptors):
            server.wait_until(lambda: server.descriptors() <= descriptors and connections() <= 8, 20, "connections closed")

        def aborted():
            return server.metric("sluice_requests_aborted_total", cause="slow_reader")

        storms = itertools.count()

        def storm():
            number = next(storms)
            slow = [slow_reader(server) for _ in range(SLOW)]
            resets(range(number * RESETS, (number + 1) * RESETS))
            server.wait_until(lambda: aborted() == (number + 1) * SLOW, 60, "slow readers are cut")
            assert all(is_cut(sock) for sock in slow)
            for sock in slow:
                sock.close()
            settle(descriptors)

        descriptors = server.descriptors() + 8                # those that ask for metrics, again and again
        storm()                                               # arenas, pools and caches reach their size,
        storm()                                               # those of each thread
        resident = server.rss_kib()
        storm()
        server.keeps_memory(resident, 8 << 10, storm)
        status, body = server.post("/v1/completions", {"model": server.name, "prompt": "Once", "max_tokens": 4, "temperature": 0})
        assert status == 200 and body["usage"]["completion_tokens"] == 4
