#!/usr/bin/env python3
"""Compares sluice's forward with an independent float64 numpy forward (numpy_forward.py) of the same files.

  logits_parity.py --tool build/tests/logits_tool --model models/SmolLM2-135M-Instruct.Q4_1.gguf

GGUF, 20 prompts: the oracle (cpu ref) within 1e-3 of every logit, its 64 greedy tokens equal on all prompts, alone and over
tensor- and pipeline-parallel ranks; the fast path within 0.02 of the log-probabilities on average, greedy tokens equal on at
least 18. Hugging Face directories: random models of each architecture and rope scaling, sharded over two files.
The numpy result of the GGUF file is kept under --cache, keyed by the file's hash. Exit status 1 when a limit is missed."""
import argparse
import hashlib
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

import numpy_forward as reference

NUM_GREEDY = 64
PROMPTS = [
    "The capital of France is",
    "Water boils at 100 degrees Celsius, which in Fahrenheit is",
    "Once upon a time, in a small village by the sea, there lived",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "The three primary colors are red, blue and",
    "In 1969, astronauts landed on the Moon for the first time. The mission was called",
    "Dear Sir or Madam,\n\nI am writing to complain about",
    "Photosynthesis is the process by which plants",
    "To make a simple omelette you need eggs, butter and",
    "SELECT name, age FROM users WHERE",
    "The quick brown fox jumps over the lazy dog. Then the dog",
    "Q: What is 12 times 12?\nA:",
    "My favourite season is autumn because",
    "The mitochondria is the powerhouse of",
    "Shakespeare wrote many plays, among them Hamlet, Macbeth and",
    "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n",
    "A list of European countries:\n1. Germany\n2. Spain\n3.",
    "Le chat est assis sur la table et",
    "In economics, inflation means that",
    "The distance between the Earth and the Sun is about",
]


def run_tool(tool, mode, model, backend, threads, prompts, *more):
    lines = "".join(" ".join(map(str, prompt)) + "\n" for prompt in prompts)
    command = [tool, mode, str(model), backend, str(threads), *map(str, more)]
    done = subprocess.run(command, input=lines.encode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr.decode()}")
    return done.stdout


def tool_logits(tool, model, backend, threads, prompts, vocab):
    data = np.frombuffer(run_tool(tool, "logits", model, backend, threads, prompts), np.float32)
    return data.reshape(sum(map(len, prompts)), vocab)


def tool_greedy(tool, model, backend, threads, prompts, tp=1, pp=1, n=NUM_GREEDY):
    data = np.frombuffer(run_tool(tool, "greedy", model, backend, threads, prompts, tp, pp, n), np.int32)
    return data.reshape(len(prompts), n).tolist()


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


class Report:
    def __init__(self):
        self.failed = False

    def at_most(self, what, found, limit):
        ok = found <= limit
        self.failed |= not ok
        print(f"{'ok  ' if ok else 'FAIL'} {what}: {found:.3g} (limit {limit:g})", flush=True)

    def at_least(self, what, found, limit, of):
        ok = found >= limit
        self.failed |= not ok
        print(f"{'ok  ' if ok else 'FAIL'} {what}: {found} of {of} (at least {limit})", flush=True)


def gguf_reference(path, prompts, cache):
    """Logits of every prompt position and the greedy tokens, computed once per file, prompts and program."""
    here = pathlib.Path(__file__).parent
    key = reference.file_hash(path) + reference.file_hash(here / "numpy_forward.py") + repr((prompts, NUM_GREEDY))
    kept = pathlib.Path(cache) / f"logits-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    if kept.exists():
        found = np.load(kept)
        return found["logits"], found["greedy"].tolist()
    start = time.time()
    logits, greedy = reference.load_gguf(path).run(prompts, NUM_GREEDY)
    kept.parent.mkdir(parents=True, exist_ok=True)
    np.savez(kept, logits=logits.astype(np.float32), greedy=np.array(greedy))
    print(f"     numpy reference: {time.time() - start:.0f} s, kept in {kept}", flush=True)
    return logits, greedy


def count_equal(a, b):
    return sum(x == y for x, y in zip(a, b))


def check_gguf(report, tool, model, threads, cache):
    tokenizer = reference.gguf_tokenizer(model)
    prompts = [tokenizer.encode(text).ids for text in PROMPTS]
    want, want_greedy = gguf_reference(model, prompts, cache)
    n = len(prompts)
    print(f"{pathlib.Path(model).name}: {n} prompts, {len(want)} positions, {want.shape[1]} logits each")

    got = tool_logits(tool, model, "ref", threads, prompts, want.shape[1])
    report.at_most("ref: max |d logit|", float(np.abs(got - want).max()), 1e-3)
    found = tool_greedy(tool, model, "ref", threads, prompts)
    report.at_least(f"ref: {NUM_GREEDY} greedy tokens equal", count_equal(found, want_greedy), n, n)
    few, short = 5, 24
    for tp, pp in [(2, 1), (3, 1), (1, 2), (1, 3), (2, 2)]:
        found = tool_greedy(tool, model, "ref", 1, prompts[:few], tp, pp, short)
        equal = count_equal(found, [tokens[:short] for tokens in want_greedy])
        report.at_least(f"ref: tp {tp} pp {pp}, {short} greedy tokens equal", equal, few, few)

    got = log_softmax(tool_logits(tool, model, "fast", threads, prompts, want.shape[1]).astype(np.float64))
    wanted = log_softmax(want.astype(np.float64))
    top = wanted.argmax(axis=-1)[:, None]
    report.at_most("fast: mean |d logprob|, all entries", float(np.abs(got - wanted).mean()), 0.02)
    report.at_most("fast: mean |d logprob|, most likely token",
                   float(np.abs(np.take_along_axis(got - wanted, top, -1)).mean()), 0.02)
    found = tool_greedy(tool, model, "fast", threads, prompts)
    report.at_least(f"fast: {NUM_GREEDY} greedy tokens equal", count_equal(found, want_greedy), n - 2, n)
    same = tool_greedy(tool, model, "fast", threads, prompts[:1])
    report.at_least("fast: a prompt alone equals itself in the batch", count_equal(same, found[:1]), 1, 1)


BASE = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 32, "vocab_size": 307, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "hidden_act": "silu"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
DIRECTORIES = [
    ("llama", "LlamaForCausalLM", "llama", "F32", False, {}),
    ("llama, bf16, llama3 rope", "LlamaForCausalLM", "llama", "BF16", True, {"rope_scaling": LLAMA3}),
    ("llama, f16, linear rope", "LlamaForCausalLM", "llama", "F16", False, {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    ("llama, yarn rope", "LlamaForCausalLM", "llama", "F32", True, {"rope_scaling": YARN}),
    ("mistral, window of 20", "MistralForCausalLM", "mistral", "BF16", False, {"sliding_window": 20}),
    ("qwen2, bf16", "Qwen2ForCausalLM", "qwen2", "BF16", True, {}),
    ("qwen2, yarn rope", "Qwen2ForCausalLM", "qwen2", "F32", False, {"rope_scaling": YARN}),
    ("qwen3", "Qwen3ForCausalLM", "qwen3", "F32", False, {}),
    ("qwen3, f16", "Qwen3ForCausalLM", "qwen3", "F16", True, {"rope_theta": 1000000.0}),
]


def check_directories(report, tool, threads):
    for seed, (title, architecture, kind, dtype, tied, extra) in enumerate(DIRECTORIES):
        config = BASE | {"architectures": [architecture], "model_type": kind, "tie_word_embeddings": tied} | extra
        rng = np.random.default_rng(1000 + seed)
        prompts = [rng.integers(0, config["vocab_size"], length).tolist() for length in (1, 17, 130)]
        with tempfile.TemporaryDirectory() as folder:
            model = reference.write_random_model(folder, config, dtype, seed)
            want, want_greedy = model.run(prompts, 24)
            got = tool_logits(tool, folder, "ref", threads, prompts, config["vocab_size"])
            what = f"{title}: ref max |d logit| (logits up to {np.abs(want).max():.1f})"
            report.at_most(what, float(np.abs(got - want).max()), 1e-3)
            for tp, pp in [(1, 1), (3, 2)]:
                found = tool_greedy(tool, folder, "ref", 1, prompts, tp, pp, 24)
                report.at_least(f"{title}: tp {tp} pp {pp} greedy tokens equal", count_equal(found, want_greedy), 3, 3)


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", default=str(root / "build/tests/logits_tool"))
    parser.add_argument("--model", default=str(root / "models/SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--cache", default=str(root / "build/golden"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    report = Report()
    check_directories(report, args.tool, args.threads)
    check_gguf(report, args.tool, args.model, args.threads, args.cache)
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
