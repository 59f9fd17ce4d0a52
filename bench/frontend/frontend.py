#!/usr/bin/env python3
"""What the gateway itself costs, with an engine that answers at once (tests/fake_engine): CPU per short request, CPU per streamed
token, resident memory and CPU of many idle and slow streams, idle keep-alive connections. One JSON line per measurement.

    bench/frontend/frontend.py [--bin build/bin] [--model FILE] [--streams 10000] [--seconds 5]

CPU is that of sluiced alone (user + system of its process, read from /proc), so the load generator's own work does not count."""
import argparse
import contextlib
import json
import os
import pathlib
import re
import resource
import selectors
import socket
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
REPLICAS = ("--data-parallel-size", "3")     # one engine runs 4,096 sequences at most
TICK = os.sysconf("SC_CLK_TCK")


class Gateway:
    def __init__(self, args, script, *flags):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        argv = [args.bin / "sluiced", "--model", args.model, "--port", str(self.port), "--served-model-name", "m", "--engine-path",
                args.bin / "fake-engine", "--max-queue-requests", "60000", "--max-num-seqs", "4096", "--max-connections", "20000", "--log-level", "error",
                *flags]
        self.process = subprocess.Popen([str(a) for a in argv], env={**os.environ, "SLUICE_FAKE_ENGINE": script}, stdout=subprocess.DEVNULL)
        self.wait_ready()

    def wait_ready(self):
        for _ in range(600):
            if self.process.poll() is not None:
                raise SystemExit(f"sluiced exited with {self.process.returncode}")
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/ready", timeout=2).status == 200:
                    return
            time.sleep(0.05)
        raise SystemExit("sluiced is not ready")

    def cpu_s(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def resident_mib(self):
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text).group(1)) / 1024

    def connect(self):
        sock = socket.create_connection(("127.0.0.1", self.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def stop(self):
        self.process.terminate()
        self.process.wait(120)


def request(body):
    data = json.dumps({"model": "m", **body}).encode()
    return b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(data) + data


def report(name, **figures):
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    print(json.dumps({"bench": "frontend", "name": name, **figures, "cores": os.cpu_count(), "commit": commit, "command": " ".join(sys.argv)}), flush=True)


def complete_answers(data):
    """How many whole JSON answers are in data, and what is left of it."""
    n = 0
    while b"\r\n\r\n" in data:
        head, rest = data.split(b"\r\n\r\n", 1)
        size = int(re.search(rb"(?i)content-length: (\d+)", head).group(1))
        if len(rest) < size:
            break
        if not head.startswith(b"HTTP/1.1 200"):
            raise SystemExit(f"not answered: {(head + rest)[:400]}")
        data, n = rest[size:], n + 1
    return n, data


def short_requests(args):
    """20 tokens, not streamed, 32 connections, each with one request at a time."""
    gateway = Gateway(args, "rule=count,eos_after=-1")
    data = request({"prompt": "Tell me a story about a sluice.", "max_tokens": 20, "ignore_eos": True})
    selector, answered = selectors.DefaultSelector(), 0
    for _ in range(32):
        sock = gateway.connect()
        sock.sendall(data)
        selector.register(sock, selectors.EVENT_READ, [b""])
    time.sleep(0.2)
    cpu, start = gateway.cpu_s(), time.monotonic()
    while time.monotonic() - start < args.seconds:
        for key, _ in selector.select(1):
            n, key.data[0] = complete_answers(key.data[0] + key.fileobj.recv(1 << 16))
            answered += n
            if n:
                key.fileobj.sendall(data)
    took, used = time.monotonic() - start, gateway.cpu_s() - cpu
    report("short_request", requests=answered, seconds=round(took, 2), requests_per_s=round(answered / took),
           cpu_us_per_request=round(used / answered * 1e6, 1), goal_us=300)
    for key in list(selector.get_map().values()):
        key.fileobj.close()
    gateway.stop()


def read_streams(selector, until, enough=None):
    """Reads whatever comes. Returns the number of events."""
    events = 0
    while time.monotonic() < until and (enough is None or events < enough):
        for key, _ in selector.select(0.2):
            piece = key.fileobj.recv(1 << 16)
            events += piece.count(b"data: ")
            if not piece:
                selector.unregister(key.fileobj)
    return events


def open_streams(gateway, n, body):
    selector, data = selectors.DefaultSelector(), request({"stream": True, "ignore_eos": True, **body})
    for _ in range(n):
        sock = gateway.connect()
        sock.sendall(data)
        selector.register(sock, selectors.EVENT_READ)
    return selector


def close_streams(selector):
    for key in list(selector.get_map().values()):
        key.fileobj.close()


def streamed_tokens(args):
    """64 streams, one token each per millisecond: each token is a frame and a send of its own."""
    gateway = Gateway(args, "rule=count,eos_after=-1,delay_ms=4")
    selector = open_streams(gateway, 64, {"prompt": "a", "max_tokens": 1900})
    time.sleep(0.5)
    cpu, start = gateway.cpu_s(), time.monotonic()
    events = read_streams(selector, start + args.seconds)
    used = gateway.cpu_s() - cpu
    report("streamed_token", streams=64, tokens=events, tokens_per_s=round(events / args.seconds),
           cpu_us_per_token=round(used / max(events, 1) * 1e6, 2), goal_us=8)
    close_streams(selector)
    gateway.stop()


def idle_streams(args):
    """Open streams whose first token is still far away."""
    gateway = Gateway(args, "rule=count,eos_after=-1,delay_ms=600000", *REPLICAS)
    base = gateway.resident_mib()
    selector = open_streams(gateway, args.streams, {"prompt": "a", "max_tokens": 1900})
    time.sleep(2)
    cpu, start = gateway.cpu_s(), time.monotonic()
    time.sleep(args.seconds)
    report("idle_streams", streams=args.streams, resident_mib=round(gateway.resident_mib(), 1), resident_mib_before=round(base, 1),
           cpu_percent=round((gateway.cpu_s() - cpu) / (time.monotonic() - start) * 100, 1), goal_mib=400)
    close_streams(selector)
    gateway.stop()


def slow_streams(args):
    gateway = Gateway(args, "rule=count,eos_after=-1,delay_ms=200", *REPLICAS)
    selector = open_streams(gateway, args.streams, {"prompt": "a", "max_tokens": 1900})
    read_streams(selector, time.monotonic() + 3)
    cpu, start = gateway.cpu_s(), time.monotonic()
    events = read_streams(selector, start + args.seconds)
    report("streams_5_tokens_per_s", streams=args.streams, tokens_per_s=round(events / args.seconds), resident_mib=round(gateway.resident_mib(), 1),
           cpu_percent_of_one_core=round((gateway.cpu_s() - cpu) / (time.monotonic() - start) * 100, 1), goal_percent=50 * 2)
    close_streams(selector)
    gateway.stop()


def idle_connections(args):
    gateway = Gateway(args, "rule=count")
    sockets, base = [], gateway.resident_mib()
    for _ in range(args.streams):
        sock = gateway.connect()
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        sock.recv(4096)
        sockets.append(sock)
    start = time.monotonic()
    with urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/v1/models", timeout=20) as answer:
        answer.read()
    report("idle_connections", connections=args.streams, resident_mib=round(gateway.resident_mib(), 1), resident_mib_before=round(base, 1),
           request_ms_meanwhile=round((time.monotonic() - start) * 1e3, 2))
    for sock in sockets:
        sock.close()
    gateway.stop()


MEASUREMENTS = {"short": short_requests, "token": streamed_tokens, "idle": idle_streams, "slow": slow_streams, "connections": idle_connections}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build" / "bin")
    parser.add_argument("--model", default=ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf", help="its tokenizer is used")
    parser.add_argument("--streams", type=int, default=10000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--only", choices=MEASUREMENTS, action="append", help="one of the measurements; may be repeated")
    args = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < args.streams + 100:
        args.streams = hard - 100
    for name in args.only or MEASUREMENTS:
        MEASUREMENTS[name](args)


if __name__ == "__main__":
    main()
