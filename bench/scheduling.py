#!/usr/bin/env python3
"""scheduling.py - what the scheduler promises, shown on a real server with a real model over HTTP.

    SLUICE_BIN_DIR=build/bin bench/scheduling.py fairness     4 prompts of near-maximum length arrive with 40 short ones
    SLUICE_BIN_DIR=build/bin bench/scheduling.py pressure     many requests on 40 KV blocks; same text as with enough blocks
    SLUICE_BIN_DIR=build/bin bench/scheduling.py prefix       prompts that share 90 % and 0 % of their tokens
    SLUICE_BIN_DIR=build/bin bench/scheduling.py choices      n = 8 on a long prompt

Each prints a table and exits 1 when a promise is broken. Prompts are random token ids, so that nothing is cached by accident.
"""
import argparse
import http.client
import json
import pathlib
import random
import statistics
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "e2e"))
from server import Server  # noqa: E402

BLOCK = 64
broken = []


def promise(holds, text):
    print(("  holds:  " if holds else "  BROKEN: ") + text)
    if not holds:
        broken.append(text)


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, max(0, round(share * len(values) + 0.4999999) - 1))]


def prompt(n, seed):
    rng = random.Random(seed)
    return [rng.randrange(1000, 40000) for _ in range(n)]


class Call(threading.Thread):
    """One streamed completion; times are relative to `zero`."""

    def __init__(self, server, ids, max_tokens, zero, n=1, delay=0.0):
        super().__init__(daemon=True)
        self.server, self.zero, self.delay = server, zero, delay
        self.body = {"model": server.name, "prompt": ids, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, "n": n,
                     "stream": True, "stream_options": {"include_usage": True}}
        self.sent = self.first = self.end = None
        self.text, self.usage, self.status = "", None, 0

    def run(self):
        if self.delay:
            time.sleep(self.delay)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=1800)
        self.sent = time.monotonic() - self.zero
        connection.request("POST", "/v1/completions", json.dumps(self.body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        self.status = answer.status
        for line in answer:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            frame = json.loads(line[6:])
            if frame.get("usage"):
                self.usage = frame["usage"]
            for choice in frame.get("choices", []):
                if self.first is None:
                    self.first = time.monotonic() - self.zero
                self.text += choice["text"]
        self.end = time.monotonic() - self.zero

    @property
    def ttft(self):
        return self.first - self.sent


def run_all(calls):
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    for call in calls:
        if call.status != 200 or call.first is None:
            sys.exit(f"a request failed: status {call.status}")
    return calls


# ---- fairness ----

LONG, SHORT, CONTEXT, BUDGET = 4, 40, 4096, 256


def fairness_run(policy, num_long):
    flags = ["--scheduling-policy", policy, "--max-model-len", str(CONTEXT), "--max-num-batched-tokens", str(BUDGET),
             "--max-num-seqs", "64", "--headroom", "0.1"]
    with Server(*flags) as server:
        run_all([Call(server, prompt(32, 1), 4, time.monotonic())])              # first use of memory and code
        zero = time.monotonic()
        calls = [Call(server, prompt(CONTEXT - 64, 100 + i), 32, zero) for i in range(num_long)]
        calls += [Call(server, prompt(16 + i % 17, 200 + i), 16, zero) for i in range(SHORT)]
        run_all(calls)
        return calls[:num_long], calls[num_long:]


def one_chunk():
    """Seconds of a step that computes nothing but one full chunk, at the end of a long prompt where it costs most."""
    flags = ["--max-model-len", str(CONTEXT), "--max-num-batched-tokens", str(BUDGET), "--max-num-seqs", "64"]
    with Server(*flags) as server:
        times = []
        for n in (CONTEXT - 64 - 2 * BUDGET, CONTEXT - 64):
            times.append(run_all([Call(server, prompt(n, n), 1, time.monotonic())])[0].ttft)
        return (times[1] - times[0]) / 2


def fairness(_):
    chunk = one_chunk()
    alone = percentile([c.ttft for c in fairness_run("fair", 0)[1]], 0.95)
    rows = {}
    for policy in ("fair", "fcfs"):
        longs, shorts = fairness_run(policy, LONG)
        rows[policy] = (percentile([c.ttft for c in shorts], 0.95), statistics.median(c.ttft for c in shorts), max(c.end for c in longs))
    print(f"{LONG} prompts of {CONTEXT - 64} tokens with {SHORT} of 16..32; {BUDGET} tokens a step; one chunk {chunk:.3f} s")
    print(f"  short TTFT p95 without the long ones: {alone:.3f} s")
    print("  policy   short TTFT p95   p50       last long one ends")
    for policy, (p95, p50, end) in rows.items():
        print(f"  {policy:6}   {p95:8.3f} s     {p50:6.3f} s  {end:7.2f} s")
    fair, fcfs = rows["fair"], rows["fcfs"]
    promise(fair[0] <= 1.5 * alone + chunk, f"short p95 {fair[0]:.3f} <= 1.5 x {alone:.3f} + {chunk:.3f} = {1.5 * alone + chunk:.3f} s")
    promise(5 * fair[0] <= fcfs[0], f"{fcfs[0] / fair[0]:.1f} times better than fcfs (>= 5)")
    promise(fair[2] <= 1.15 * fcfs[2], f"long ones end {100 * (fair[2] / fcfs[2] - 1):+.1f} % later (<= 15 %)")


# ---- pressure ----

def pressure_run(requests, blocks):
    flags = ["--num-gpu-blocks-override", str(blocks), "--max-model-len", "1024", "--max-num-seqs", "64"]
    rng = random.Random(5)
    with Server(*flags) as server:
        zero = time.monotonic()
        calls = []
        for i in range(requests):
            n, out = rng.choice((20, 60, 100, 250)), rng.choice((8, 16, 40, 90))
            calls.append(Call(server, prompt(n, 1000 + i), out, zero))
        run_all(calls)
        server.wait_idle()
        time.sleep(0.3)
        return calls, server.metric("sluice_preemptions_total"), time.monotonic() - zero


def pressure(args):
    tight, preempted, tight_s = pressure_run(args.requests, 40)
    wide, wide_preempted, wide_s = pressure_run(args.requests, 2048)
    same = sum(a.text == b.text for a, b in zip(tight, wide))
    print(f"{args.requests} requests at once on 40 KV blocks of {BLOCK} tokens: {tight_s:.1f} s, {preempted:.0f} preemptions")
    print(f"the same on 2048 blocks: {wide_s:.1f} s, {wide_preempted:.0f} preemptions")
    promise(same == args.requests, f"{same} of {args.requests} answers have the same text")
    promise(preempted > 0, "sequences were preempted")


# ---- prefix cache ----

def prefix(_):
    n, count = 1280, 8
    results = {}
    with Server("--max-model-len", "2048", "--max-num-seqs", "8") as server:
        run_all([Call(server, prompt(32, 1), 4, time.monotonic())])
        for share in (0, 90):
            head = prompt(n * share // 100, 7)
            calls = []
            for i in range(count):
                calls += run_all([Call(server, head + prompt(n - len(head), 50 + 100 * share + i), 1, time.monotonic())])
            cached = [c.usage["prompt_tokens_details"]["cached_tokens"] for c in calls]
            results[share] = (calls[0].ttft, statistics.median(c.ttft for c in calls[1:]), cached)
    with Server("--max-model-len", "2048", "--max-num-seqs", "8", "--no-enable-prefix-caching") as server:
        run_all([Call(server, prompt(32, 1), 4, time.monotonic())])
        off = statistics.median(run_all([Call(server, prompt(n, 900 + i), 1, time.monotonic())])[0].ttft for i in range(count))
    by_hand = n * 90 // 100 // BLOCK * BLOCK
    print(f"prompts of {n} tokens, one after the other")
    print(f"  90 % shared: first {results[90][0]:.3f} s, later ones {results[90][1]:.3f} s, cached tokens {results[90][2]}")
    print(f"   0 % shared: {results[0][1]:.3f} s, cached tokens {results[0][2]};  cache off: {off:.3f} s")
    promise(results[90][2] == [0] + [by_hand] * (count - 1), f"each later one finds {by_hand} tokens: the full blocks of 1152")
    promise(results[0][2] == [0] * count, "nothing is found where nothing is shared")
    left = (n - by_hand) / n
    print(f"  {100 * left:.0f} % of the tokens are left to compute; TTFT ratio {results[90][1] / results[90][0]:.3f}")
    promise(results[90][1] < (left + 0.1) * results[90][0], "TTFT falls as the tokens left to compute")
    promise(results[0][1] < 1.05 * off, f"0 % shared costs {100 * (results[0][1] / off - 1):+.1f} % (noise of this measurement: some %)")


# ---- n > 1 ----

def choices(_):
    n = 1900
    with Server("--max-model-len", "2048", "--max-num-seqs", "16", "--max-num-batched-tokens", "256") as server:
        run_all([Call(server, prompt(32, 1), 4, time.monotonic())])
        one = run_all([Call(server, prompt(n, 10), 8, time.monotonic())])[0]
        hits, misses = (server.metric(f"sluice_prefix_cache_{x}_tokens_total") for x in ("hit", "miss"))
        eight = run_all([Call(server, prompt(n, 11), 8, time.monotonic(), n=8)])[0]
        server.wait_idle()
        time.sleep(0.3)
        hits, misses = (server.metric(f"sluice_prefix_cache_{x}_tokens_total") - y for x, y in (("hit", hits), ("miss", misses)))
    full = (n - 1) // BLOCK * BLOCK
    print(f"prompt of {n} tokens: n = 1 takes {one.end:.2f} s, n = 8 takes {eight.end:.2f} s")
    print(f"  n = 8: {misses:.0f} prompt tokens computed, {hits:.0f} found")
    promise(misses == n + 7 * (n - full) and hits == 7 * full, f"one prefill, and the last {n - full} tokens of seven more")


def main():
    commands = {"fairness": fairness, "pressure": pressure, "prefix": prefix, "choices": choices}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=commands)
    parser.add_argument("--requests", type=int, default=120, help="of pressure")
    args = parser.parse_args()
    commands[args.what](args)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
