#!/usr/bin/env python3
"""Compares a device with the CPU oracle on a real model, in two halves that may run on two machines.

  device_oracle.py make  --tool build/tests/logits_tool --model models/SmolLM2-135M-Instruct.Q4_1.gguf --out oracle.npz
  device_oracle.py check --tool build-cuda/tests/logits_tool --device cuda --model ... --oracle oracle.npz

make (needs tokenizers): the prompts of logits_parity.py, 64 greedy tokens of each, and along those tokens the log-probabilities
of each position's 32 likeliest tokens and of 256 tokens chosen once. check (numpy only): greedy tokens equal for at least 18
of 20 prompts, and mean |d logprob| <= 0.02 with prompts whole, in chunks, token by token, and in mixed steps. Exit status 1
when a limit is missed."""
import argparse
import pathlib
import subprocess
import sys
import time

import numpy as np

NUM_GREEDY, TOP, CHOSEN = 64, 32, 256
GREEDY_EQUAL, LOGPROB_MEAN = 0.9, 0.02


def run_tool(args, device, mode, prompts, *more):
    lines = "".join(" ".join(map(str, prompt)) + "\n" for prompt in prompts)
    command = [args.tool, mode, args.model, device, str(args.threads), "1", "1", *map(str, more), "--dtype", args.dtype]
    start = time.time()
    done = subprocess.run(command, input=lines.encode(), capture_output=True, check=False, timeout=args.timeout)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.decode()[-1000:]}")
    facts = [line for line in done.stderr.decode().splitlines() if "decode steps" in line or "loaded" in line]
    print(f"     {device} {mode} {' '.join(map(str, more))}: {time.time() - start:.1f} s; {'; '.join(facts)}", flush=True)
    return done.stdout


def greedy(args, device, prompts, *more):
    return np.frombuffer(run_tool(args, device, "greedy", prompts, NUM_GREEDY, *more), np.int32).reshape(len(prompts), NUM_GREEDY)


def log_softmax(logits):
    """In pieces: float64 of all positions would be gigabytes."""
    out = np.empty_like(logits)
    for at in range(0, len(logits), 64):
        x = logits[at:at + 64].astype(np.float64)
        x -= x.max(-1, keepdims=True)
        out[at:at + 64] = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return out


def logprobs(args, device, prompts, vocab, *more):
    return log_softmax(np.frombuffer(run_tool(args, device, "logits", prompts, *more), np.float32).reshape(-1, vocab))


def continued(prompts, tokens):
    return [list(map(int, prompt)) + list(map(int, drawn[:-1])) for prompt, drawn in zip(prompts, tokens)]


def make(args):
    import logits_parity
    import numpy_forward
    tokenizer = numpy_forward.gguf_tokenizer(args.model)
    prompts = [tokenizer.encode(text).ids for text in logits_parity.PROMPTS]
    vocab = len(run_tool(args, "ref", "logits", prompts[:1])) // 4 // len(prompts[0])
    tokens = greedy(args, "ref", prompts)
    found = logprobs(args, "ref", continued(prompts, tokens), vocab)
    top = np.argsort(-found, axis=-1)[:, :TOP].astype(np.int32)
    chosen = np.sort(np.random.default_rng(1).choice(vocab, CHOSEN, replace=False)).astype(np.int32)
    np.savez_compressed(args.out, vocab=vocab, tokens=tokens, top=top, top_logprobs=np.take_along_axis(found, top, -1), chosen=chosen,
                        chosen_logprobs=found[:, chosen], lengths=np.array([len(p) for p in prompts]),
                        prompts=np.concatenate(prompts).astype(np.int32))
    print(f"{args.out}: {len(prompts)} prompts, {len(found)} positions, {pathlib.Path(args.out).stat().st_size} bytes")


def check(args):
    oracle = np.load(args.oracle)
    vocab, wanted = int(oracle["vocab"]), oracle["tokens"]
    prompts = np.split(oracle["prompts"], np.cumsum(oracle["lengths"])[:-1])
    failed = False

    def verdict(ok, text):
        nonlocal failed
        failed |= not ok
        print(f"{'ok  ' if ok else 'FAIL'} {text}", flush=True)

    for more in ([], ["--ahead"], ["--together", "--chunk", 24]):
        found = greedy(args, args.device, prompts, *more)
        equal = int((found == wanted).all(-1).sum())
        first = [int(np.argmax(a != b)) for a, b in zip(found, wanted) if (a != b).any()]
        verdict(equal >= GREEDY_EQUAL * len(prompts), f"greedy {' '.join(map(str, more))}: {NUM_GREEDY} tokens equal in {equal} of "
                f"{len(prompts)} prompts (at least {GREEDY_EQUAL * len(prompts):.0f}); first differences at {first}")
    for more in ([], ["--chunk", 16], ["--chunk", 1], ["--together", "--chunk", 20]):
        found = logprobs(args, args.device, continued(prompts, wanted), vocab, *more)
        chosen = np.abs(found[:, oracle["chosen"]] - oracle["chosen_logprobs"])
        top = np.abs(np.take_along_axis(found, oracle["top"], -1) - oracle["top_logprobs"])
        mean = max(float(chosen.mean()), float(top.mean()), float(top[:, 0].mean()))
        verdict(mean <= LOGPROB_MEAN, f"logprobs {' '.join(map(str, more))}: mean |d logprob| of {CHOSEN} chosen {chosen.mean():.5f}, of the "
                f"{TOP} likeliest {top.mean():.5f}, of the likeliest {top[:, 0].mean():.5f} (limit {LOGPROB_MEAN}); max {max(chosen.max(), top.max()):.4f}")
    sys.exit(1 if failed else 0)


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["make", "check"])
    parser.add_argument("--tool", default=str(root / "build/tests/logits_tool"))
    parser.add_argument("--model", default=str(root / "models/SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float16"], help="of a GPU")
    parser.add_argument("--out", "--oracle", dest="oracle", default="oracle.npz")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--timeout", type=int, default=900, help="seconds for one run of the tool")
    args = parser.parse_args()
    args.out = args.oracle
    make(args) if args.what == "make" else check(args)


if __name__ == "__main__":
    main()
