#!/usr/bin/env python3
"""scheduling.py - what the scheduler promises, shown on a real server over HTTP.

    SLUICE_BIN_DIR=build/bin bench/scheduling.py fairness     4 prompts of near-maximum length arrive with 40 short ones
    SLUICE_BIN_DIR=build/bin bench/scheduling.py pressure     2,000 requests on 40 KV blocks; same text as with enough blocks
    SLUICE_BIN_DIR=build/bin bench/scheduling.py prefix       prompts that share 90 % and 0 % of their tokens
    SLUICE_BIN_DIR=build/bin bench/scheduling.py choices      n = 8 on a long prompt
    SLUICE_BIN_DIR=build/bin bench/scheduling.py flood        5,000 requests at once at a queue of 100
    SLUICE_BIN_DIR=build/bin bench/scheduling.py foreign      another process takes memory of the GPU, and gives it back

Each prints a table and exits 1 when a promise is broken. Prompts are random token ids, so that nothing is cached by accident.
The model is the one of the end-to-end tests; pressure takes a tiny one with dummy weights. On a GPU, with the shape of an 8B:
    bench/scheduling.py fairness --model bench/models/llama-3.1-8b --context 32768 --budget 8192 --server-args="--load-format dummy"
"""
import argparse
import asyncio
import collections
import ctypes
import http.client
import json
import pathlib
import random
import re
import resource
import statistics
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "e2e"))
from server import MODEL, Server  # noqa: E402

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
    return finish(calls)


def finish(calls):
    for call in calls:
        call.join()
    for call in calls:
        if call.status != 200 or call.first is None:
            sys.exit(f"a request failed: status {call.status}")
    return calls


# ---- many at once ----

class Answer:
    """status, headers, body of one request, and when it was complete."""

    def __init__(self, raw):
        head, _, body = raw.partition(b"\r\n\r\n")
        lines = head.decode("latin1").split("\r\n")
        self.status = int(lines[0].split()[1]) if lines[0].startswith("HTTP/") else 0
        self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
        self.body, self.at = json.loads(body) if self.status else None, time.monotonic()

    @property
    def text(self):
        return self.body["choices"][0]["text"]


async def post_one(port, body):
    for _ in range(50):                        # the kernel's queue of connections is shorter than what comes at once
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        except OSError:
            await asyncio.sleep(0.1)
    data = json.dumps(body).encode()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
                 b"Content-Length: %d\r\n\r\n" % len(data) + data)
    try:
        return Answer(await reader.read())
    finally:
        writer.close()


def post_all(server, bodies, seconds=1800):
    """All requests at once; an answer for each, in order."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    async def run():
        return await asyncio.wait_for(asyncio.gather(*(post_one(server.port, {"model": server.name, **body}) for body in bodies)), seconds)
    return asyncio.run(run())


def tiny_model(folder):
    """A model whose steps cost nothing, with dummy weights: served by ids."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
              "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 49152,
              "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
              "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16"}
    (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
    return folder


# ---- fairness ----

LONG, SHORT = 4, 40


POLICIES = {"fair": ["fair"], "fcfs": ["fcfs", "--long-prefill-chunk", "0"], "fcfs, chunks of 512": ["fcfs", "--long-prefill-chunk", "512"]}


def fairness_run(args, policy, num_long):
    flags = ["--scheduling-policy", *POLICIES[policy], "--max-model-len", str(args.context), "--max-num-batched-tokens", str(args.budget),
             "--max-num-seqs", "64", "--headroom", "0.1", *args.server_args.split()]
    with Server(*flags, model=args.model) as server:
        for warm in (32, 2 * args.budget):                                       # first use of memory and code
            run_all([Call(server, prompt(min(warm, args.context - 8), warm), 4, time.monotonic())])
        zero = time.monotonic()
        longs = [Call(server, prompt(args.context - 64, 100 + i), 32, zero) for i in range(num_long)]
        shorts = [Call(server, prompt(16 + i % 17, 200 + i), 16, zero) for i in range(SHORT)]
        for call in longs:
            call.start()
        # A long prompt takes longer to send and to read than forty short ones: they come when it is there, before its first token.
        server.wait_until(lambda: server.metric("sluice_requests_running") + server.metric("sluice_requests_waiting") >= num_long,
                          what="the long prompts in the queue")
        for call in shorts:
            call.start()
        finish(longs + shorts)
        if any(long.first < short.sent for long in longs for short in shorts):
            sys.exit("a long prompt was served before the short ones came: nothing is compared")
        return longs, shorts


def one_chunk(args):
    """Seconds of a step that computes nothing but one full chunk, at the end of a long prompt where it costs most."""
    flags = ["--max-model-len", str(args.context), "--max-num-batched-tokens", str(args.budget), "--max-num-seqs", "64"]
    with Server(*flags, *args.server_args.split(), model=args.model) as server:
        times = []
        for n in (args.context - 64 - 2 * args.budget, args.context - 64):
            run_all([Call(server, prompt(n, n + 1), 1, time.monotonic())])
            times.append(run_all([Call(server, prompt(n, n), 1, time.monotonic())])[0].ttft)
        return (times[1] - times[0]) / 2


def fairness(args):
    chunk = one_chunk(args)
    alone = percentile([c.ttft for c in fairness_run(args, "fair", 0)[1]], 0.95)
    rows = {}
    for policy in POLICIES:
        longs, shorts = fairness_run(args, policy, LONG)
        rows[policy] = (percentile([c.ttft for c in shorts], 0.95), statistics.median(c.ttft for c in shorts), max(c.end for c in longs))
    print(f"{LONG} prompts of {args.context - 64} tokens with {SHORT} of 16..32; {args.budget} tokens a step; one chunk {chunk:.3f} s")
    print(f"  short TTFT p95 without the long ones: {alone:.3f} s")
    print("  policy                short TTFT p95   p50       last long one ends")
    for policy, (p95, p50, end) in rows.items():
        print(f"  {policy:19}   {p95:8.3f} s     {p50:6.3f} s  {end:7.2f} s")
    fair, fcfs = rows["fair"], rows["fcfs"]
    promise(fair[0] <= 1.5 * alone + chunk, f"short p95 {fair[0]:.3f} <= 1.5 x {alone:.3f} + {chunk:.3f} = {1.5 * alone + chunk:.3f} s")
    promise(5 * fair[0] <= fcfs[0], f"{fcfs[0] / fair[0]:.1f} times better than fcfs (>= 5)")
    promise(fair[2] <= 1.15 * fcfs[2], f"long ones end {100 * (fair[2] / fcfs[2] - 1):+.1f} % later (<= 15 %)")


# ---- pressure ----

def pressure_run(args, blocks, model, more):
    flags = ["--num-gpu-blocks-override", str(blocks), "--block-size", "16", "--max-model-len", "512", "--max-num-seqs", "64"]
    rng = random.Random(5)
    bodies = []
    for i in range(args.requests):
        n, out = rng.choice((10, 30, 50, 120)), rng.choice((8, 16, 40, 90))
        bodies.append({"prompt": prompt(n, 1000 + i), "max_tokens": out, "temperature": 1, "seed": i, "ignore_eos": True})
    with Server(*flags, "--max-queue-requests", str(args.requests), *more, model=model) as server:
        begun = time.monotonic()
        answers = post_all(server, bodies)
        took = time.monotonic() - begun
        server.wait_idle()
        time.sleep(0.3)
        return answers, server.metric("sluice_preemptions_total"), took, server.metric("sluice_kv_blocks", state="used")


def pressure(args):
    with tempfile.TemporaryDirectory() as folder:
        tiny = args.model == MODEL
        model, more = (tiny_model(folder), ["--load-format", "dummy"]) if tiny else (args.model, args.server_args.split())
        tight, preempted, tight_s, tight_used = pressure_run(args, 40, model, more)
        wide, wide_preempted, wide_s, _ = pressure_run(args, 4096, model, more)
    same = sum(a.status == b.status == 200 and a.text == b.text for a, b in zip(tight, wide))
    print(f"{args.requests} requests at once on 40 KV blocks of 16 tokens: {tight_s:.1f} s, {preempted:.0f} preemptions")
    print(f"the same on 4096 blocks: {wide_s:.1f} s, {wide_preempted:.0f} preemptions")
    promise(sum(a.status == 200 for a in tight) == args.requests, f"all {args.requests} are answered with 200")
    promise(same == args.requests, f"{same} of {args.requests} sampled answers have the same text")
    promise(preempted > 0 and wide_preempted == 0, "sequences were preempted, and counted")
    promise(tight_used == 0, "no block is held afterwards")


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
            results[share] = (calls[0].ttft, min(c.ttft for c in calls[1:]), cached)
    with Server("--max-model-len", "2048", "--max-num-seqs", "8", "--no-enable-prefix-caching") as server:
        run_all([Call(server, prompt(32, 1), 4, time.monotonic())])
        off = min(run_all([Call(server, prompt(n, 900 + i), 1, time.monotonic())])[0].ttft for i in range(count))
    by_hand = n * 90 // 100 // BLOCK * BLOCK
    print(f"prompts of {n} tokens, one after the other")
    print(f"  90 % shared: first {results[90][0]:.3f} s, later ones {results[90][1]:.3f} s, cached tokens {results[90][2]}")
    print(f"   0 % shared: {results[0][1]:.3f} s, cached tokens {results[0][2]};  cache off: {off:.3f} s")
    promise(results[90][2] == [0] + [by_hand] * (count - 1), f"each later one finds {by_hand} tokens: the full blocks of 1152")
    promise(results[0][2] == [0] * count, "nothing is found where nothing is shared")
    left = (n - by_hand) / n
    print(f"  {100 * left:.0f} % of the tokens are left to compute; TTFT ratio {results[90][1] / results[90][0]:.3f}")
    promise(results[90][1] < (left + 0.1) * results[90][0], "TTFT falls as the tokens left to compute")
    print(f"  0 % shared costs {100 * (results[0][1] / off - 1):+.1f} % here, in the noise: scheduler_bench counts what it costs")


# ---- n > 1 ----

def choices(_):
    n, out = 1900, 16
    used = []
    with Server("--max-model-len", "2048", "--max-num-seqs", "16", "--max-num-batched-tokens", "256") as server:
        run_all([Call(server, prompt(32, 1), 4, time.monotonic())])
        one = run_all([Call(server, prompt(n, 10), 8, time.monotonic())])[0]
        hits, misses = (server.metric(f"sluice_prefix_cache_{x}_tokens_total") for x in ("hit", "miss"))
        call = Call(server, prompt(n, 11), out, time.monotonic(), n=8)
        call.start()
        while call.is_alive():
            used.append(server.metric("sluice_kv_blocks", state="used"))
            time.sleep(0.05)
        server.wait_idle()
        time.sleep(0.3)
        hits, misses = (server.metric(f"sluice_prefix_cache_{x}_tokens_total") - y for x, y in (("hit", hits), ("miss", misses)))
    full = (n - 1) // BLOCK * BLOCK
    blocks = full // BLOCK + 8 * -(-(n + out - full) // BLOCK)
    print(f"prompt of {n} tokens, answers of {out}: n = 1 takes {one.end:.2f} s, n = 8 takes {call.end:.2f} s")
    print(f"  n = 8: {misses:.0f} prompt tokens computed, {hits:.0f} found; at most {max(used):.0f} KV blocks in use")
    promise(misses == n + 7 * (n - full) and hits == 7 * full, f"one prefill, and the last {n - full} tokens of seven more")
    promise(max(used) == blocks, f"{blocks} blocks: {full // BLOCK} shared and 8 of their own; 8 x {-(-(n + out) // BLOCK)} without sharing")


# ---- more than the queue holds ----

def flood(args):
    flags = ["--max-num-seqs", "8", "--max-queue-requests", "100", "--max-model-len", "512", *args.server_args.split()]
    bodies = [{"prompt": prompt(8, i), "max_tokens": 8, "temperature": 0, "ignore_eos": True} for i in range(args.requests)]
    with Server(*flags, model=args.model) as server:
        memory = []
        for turn in range(9):                                                    # the first one makes what later ones use again
            begun = time.monotonic()
            answers = post_all(server, bodies)
            took = time.monotonic() - begun
            server.wait_idle()
            memory.append([server.rss_kib()] + [server.rss_kib(pid) for pid in server.engines()])
            statuses = collections.Counter(a.status for a in answers)
            waits = [int(a.headers.get("retry-after", 0)) for a in answers if a.status == 429]
            served = [a.at - begun for a in answers if a.status == 200]
            print(f"{len(answers)} requests at once, {args.requests / took:.0f} answers/s: {dict(statuses)}; the last one served after {max(served):.2f} s; "
                  f"Retry-After {min(waits)}..{max(waits)} s; resident {' + '.join(str(kib) for kib in memory[-1])} KiB")
            promise(set(statuses) == {200, 429} and len(answers) == len(bodies), "each is answered, with 200 or 429")
            promise(statuses[200] >= 108, "as many as may run and wait are served")
            promise(all(1 <= wait <= 120 for wait in waits), "each 429 says when to come again")
            promise(all(a.body["error"]["code"] == "queue_full" for a in answers if a.status == 429), "and why")
            if turn:                                                             # before that the rate is not known
                promise(max(waits) <= 2 + 2 * max(served), "about when the queue has drained")
        totals = [sum(turn) for turn in memory]                                  # a turn's own peak comes and goes; a leak stays
        grown = min(totals[5:]) - min(totals[1:5])
        promise(grown < 4096, f"memory is flat: the least after turns 6 to 9 is {grown:+d} KiB of that after turns 2 to 5")


# ---- somebody else's memory ----

class Foreign:
    """Memory of the first GPU, held by this process."""

    def __init__(self):
        self.runtime, self.place = ctypes.CDLL("libcudart.so"), ctypes.c_void_p()

    def free_bytes(self):
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        if self.runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)):
            sys.exit("cudaMemGetInfo failed")
        return free.value

    def take(self, n):
        if self.runtime.cudaMalloc(ctypes.byref(self.place), ctypes.c_size_t(n)):
            sys.exit(f"cudaMalloc of {n} bytes failed")

    def give(self):
        self.runtime.cudaFree(self.place)


def foreign(args):
    flags = ["--max-model-len", str(args.context), "--device", "cuda", *args.server_args.split()]
    other = Foreign()
    other.free_bytes()                                                           # what the driver takes for this process is taken now
    with Server(*flags, model=args.model) as server:
        def gauges():
            return [server.metric("sluice_memory_bytes", kind=kind) for kind in ("free", "headroom")] + [server.metric("sluice_admission_throttled")]
        time.sleep(1.2)
        before = gauges()
        other.take(int(other.free_bytes() * 0.7))
        server.wait_until(lambda: gauges()[2] == 1, 5, "throttled")
        during = gauges()
        call = run_all([Call(server, prompt(16, 1), 8, time.monotonic())])[0]
        other.give()
        server.wait_until(lambda: gauges()[2] == 0, 5, "normal again")
        after = gauges()
        lines = re.findall(r'.*"memory_(?:short|back)".*', server.output())
    for name, (free, headroom, throttled) in (("before", before), ("taken", during), ("back", after)):
        print(f"  {name:7} {free / 2**20:9.0f} MiB free, {headroom / 2**20:+9.0f} MiB above the floor, throttled {throttled:.0f}")
    print("\n".join(lines))
    promise(during[0] < before[0] and after[0] > during[0] and before[2] == 0, "gauges follow")
    promise(call.status == 200, "one after the other they are still served")
    promise(len(lines) == 2, "one line in the log per change")


def main():
    commands = {"fairness": fairness, "pressure": pressure, "prefix": prefix, "choices": choices, "flood": flood, "foreign": foreign}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=commands)
    parser.add_argument("--requests", type=int, help="of pressure (2000) and flood (5000)")
    parser.add_argument("--model", default=MODEL, help="of fairness, pressure, flood and foreign")
    parser.add_argument("--server-args", default="", help="for sluiced, with --model")
    parser.add_argument("--context", type=int, default=4096, help="of fairness and foreign: tokens")
    parser.add_argument("--budget", type=int, default=256, help="of fairness: tokens of a step")
    args = parser.parse_args()
    args.requests = args.requests or {"flood": 5000}.get(args.what, 2000)
    commands[args.what](args)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
