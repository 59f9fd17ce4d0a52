#!/usr/bin/env python3
"""cpu.py - decode and prefill speed of a server on this machine's CPUs, over HTTP, and of llama.cpp's beside it.

    bench/serve/cpu.py --model models/SmolLM2-135M-Instruct.Q4_1.gguf --threads 1,2 --streams 1,8
    bench/serve/cpu.py ... --llama-server /path/to/llama-server       the same load on the same file, in the same run

Each point starts a fresh server. decode: streams x (16-token prompt, 256 new tokens); rate = tokens after the first of every
stream / time between the first token of the slowest and the end. prefill: one fresh prompt of --prefill-tokens tokens, one new
token; rate = tokens / time to first token. Prints JSON lines; the last ones are a table.
"""
import argparse
import concurrent.futures
import http.client
import json
import os
import pathlib
import platform
import random
import re
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORDS = "river stone light under paper green window seven music table cloud garden bread silver north quiet".split()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def machine():
    text = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.*)", text)
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {"cpu": model.group(1) if model else platform.machine(), "cores": os.cpu_count(), "commit": commit}


class Server:
    def __init__(self, kind, binary, model, threads):
        self.kind, self.port = kind, free_port()
        if kind == "sluice":
            argv = [binary, "--model", model, "--port", str(self.port), "--served-model-name", "m", "--cpu-threads", str(threads),
                    "--max-num-seqs", "16"]
        else:
            argv = [binary, "-m", model, "--port", str(self.port), "-t", str(threads), "-tb", str(threads), "-np", "16", "-c", "32768", "--no-webui"]
        started = time.monotonic()
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while self.get("/health") != 200:
            if self.process.poll() is not None:
                sys.exit(f"{kind} exited with {self.process.returncode}: {' '.join(argv)}")
            time.sleep(0.005)
        self.ready_s = time.monotonic() - started

    def get(self, path):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0

    def resident_mib(self):
        """Of the server and its children."""
        total, pids = 0, [self.process.pid]
        out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True).stdout
        for pid in pids + [int(line) for line in out.split()]:
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            total += int(re.search(r"VmRSS:\s+(\d+)", status).group(1))
        return total / 1024

    def stream(self, prompt, max_tokens):
        """Times of the tokens of one streamed completion, from the moment of sending."""
        body = json.dumps({"model": "m", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True,
                           "ignore_eos": True, "cache_prompt": False})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        start = time.monotonic()
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            sys.exit(f"{self.kind}: {answer.status} {answer.read()[:300]}")
        times = []
        while line := answer.readline():
            if line.startswith(b"data: {") and b'"choices":[{' in line:
                times.append(time.monotonic())
        return start, times

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def prompt_of(words, seed):
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words))


def decode_point(server, streams, tokens):
    with concurrent.futures.ThreadPoolExecutor(streams) as pool:
        runs = list(pool.map(lambda i: server.stream(prompt_of(12, i), tokens), range(streams)))
    first = max(times[0] for _, times in runs)
    last = max(times[-1] for _, times in runs)
    counted = sum(sum(1 for t in times if t > first) for _, times in runs)
    return counted / (last - first)


def prefill_point(server, tokens):
    best = 0
    for i in range(3):                                    # a fresh prompt each time: nothing to find in a prefix cache
        start, times = server.stream(prompt_of(tokens, 1000 + i), 1)
        best = max(best, tokens / (times[0] - start))
    return best


def measure(kind, binary, args, threads):
    server = Server(kind, binary, args.model, threads)
    row = {"server": kind, "threads": threads, "ready_s": round(server.ready_s, 3)}
    try:
        server.stream(prompt_of(8, 7), 8)
        row["prefill_tok_s"] = round(prefill_point(server, args.prefill_tokens), 1)
        start, times = server.stream(prompt_of(128, 55), 1)
        row["ttft_128_ms"] = round((times[0] - start) * 1e3, 1)
        for streams in args.streams:
            row[f"decode_tok_s_{streams}"] = round(max(decode_point(server, streams, args.tokens) for _ in range(args.repeat)), 1)
        row["resident_mib"] = round(server.resident_mib())
    finally:
        server.stop()
    return row


def main():
    ints = lambda text: [int(part) for part in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--threads", type=ints, default=[1, 2])
    parser.add_argument("--streams", type=ints, default=[1, 8])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--prefill-tokens", type=int, default=512)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--sluiced", default=str(ROOT / "build" / "bin" / "sluiced"))
    parser.add_argument("--llama-server", default=None, help="llama.cpp's server; found on PATH as llama-server if not given")
    args = parser.parse_args()
    peer = args.llama_server or next((p for d in os.environ["PATH"].split(":") if os.access(p := f"{d}/llama-server", os.X_OK)), None)
    about = {**machine(), "command": " ".join(sys.argv), "model": os.path.basename(args.model)}
    rows = []
    for threads in args.threads:
        for kind, binary in [("sluice", args.sluiced)] + ([("llama.cpp", peer)] if peer else []):
            rows.append(measure(kind, binary, args, threads))
            print(json.dumps({**about, **rows[-1]}), flush=True)
    if not peer:
        print("llama.cpp: llama-server is not on PATH and --llama-server was not given; measured sluice alone")
    keys = list(rows[0])
    print("\n| " + " | ".join(keys) + " |\n|" + "---|" * len(keys))
    for row in rows:
        print("| " + " | ".join(str(row[key]) for key in keys) + " |")


if __name__ == "__main__":
    main()
