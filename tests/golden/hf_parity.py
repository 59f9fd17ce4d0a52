#!/usr/bin/env python3
"""Compares sluice's forward with Hugging Face transformers in fp32 on random models of each architecture.

  hf_parity.py --tool build-cuda/tests/logits_tool --device cuda [--dtype float16]

Models of 4 layers are made with transformers, saved in --dtype, and read by both sides; the reference computes in fp32 from these
weights. Per position: |logits - reference| / |reference| at most --limit (0.01; float16 0.002), whatever the prompt was chunked into
(whole, 64, 7, 1 token at a time: then each step is a decode, on a GPU a captured one), alone or with others in mixed steps.
64 greedy tokens of a batch, each drawn from the step before: the reference's logit of each is at most a tenth of the logits'
spread below its best; the same with steps submitted ahead (a GPU times its products at each start, so tokens that nearly tie may
differ between two runs: each that differs is held against the reference). One JSON line per model. Exit status 1 when a limit is missed, 77 without torch and transformers."""
import argparse
import concurrent.futures
import json
import pathlib
import subprocess
import sys
import tempfile
import time

try:
    import numpy as np
    import torch
    import transformers
except ImportError as missing:
    print(f"hf_parity.py: skipped, torch and transformers are not both importable ({missing})")
    sys.exit(77)

NUM_GREEDY = 64
GREEDY_GAP = 0.1                     # of the standard deviation of a position's logits
PROMPT_LENGTHS = (1, 17, 130, 700)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 256}


def shape(hidden, heads, kv_heads, head_dim, vocab, tied, **more):
    return {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim,
            "vocab_size": vocab, "tie_word_embeddings": tied, "intermediate_size": hidden * 5 // 2 // 16 * 16,
            "num_hidden_layers": 4, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, **more}


CASES = [
    ("llama-64-gqa2-llama3", "Llama", shape(256, 4, 2, 64, 1003, True, rope_parameters=LLAMA3)),
    ("llama-128-gqa4-llama3", "Llama", shape(1024, 8, 2, 128, 5021, False, rope_parameters=LLAMA3)),
    ("llama-64-mha", "Llama", shape(512, 8, 8, 64, 2050, False)),
    ("llama-80-gqa4", "Llama", shape(320, 4, 1, 80, 1003, False)),
    ("llama-96-gqa2", "Llama", shape(384, 4, 2, 96, 1003, True)),
    ("llama-256-gqa2", "Llama", shape(512, 4, 2, 256, 1003, False)),
    ("qwen2-64-gqa7", "Qwen2", shape(896, 14, 2, 64, 4001, True)),
    ("qwen2-128-gqa4", "Qwen2", shape(512, 4, 1, 128, 1501, False)),
    ("qwen3-128-gqa2", "Qwen3", shape(1024, 16, 8, 128, 3007, True)),
    ("qwen3-64-gqa8", "Qwen3", shape(320, 8, 1, 64, 2005, False)),
]


# Standard deviation of a matrix's outputs for inputs of unit variance: attention has to tell positions apart, or a wrong
# rotation would not show; what each layer adds stays below the residual, so that bf16 itself is not what is measured.
GAINS = {"q_proj": 1.5, "k_proj": 1.5, "o_proj": 0.5, "down_proj": 0.5}


def make_model(kind, config, seed, dtype):
    """Random, with norms and biases that are not their defaults."""
    torch.manual_seed(seed)
    config_class, model_class = getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}ForCausalLM")
    model = model_class(config_class(**config, attn_implementation="eager"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            part = name.split(".")[-2]
            if name.endswith("bias"):
                weight.normal_(0, 0.3)
            elif weight.dim() == 1:
                weight.normal_(1.5 if part in ("q_norm", "k_norm") else 1, 0.1)
            elif part == "embed_tokens":
                weight.normal_(0, 1)
            else:
                weight.normal_(0, GAINS.get(part, 1) * weight.shape[1] ** -0.5)
    model.tie_weights()
    return model.to(dtype).eval()


class Reference:
    """What transformers makes of the saved files, in fp32 or in --dtype. Loaded, not cast: a cast would round the rotation's table too."""

    def __init__(self, folder, device, dtype):
        self.device = device
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").to(device).eval()

    def logits(self, ids):
        with torch.no_grad():
            return self.model(torch.tensor([ids], device=self.device), use_cache=False).logits[0].float().cpu().numpy()


def run_tool(args, mode, folder, prompts, *more):
    lines = "".join(" ".join(map(str, prompt)) + "\n" for prompt in prompts)
    command = [args.tool, mode, folder, args.device, str(args.threads), *map(str, more), "--dtype", args.dtype]
    try:
        done = subprocess.run(command, input=lines.encode(), capture_output=True, check=False, timeout=args.timeout)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{' '.join(command)}: no end after {args.timeout} s") from None
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.decode()[-600:]}")
    return done.stdout


def relative_errors(found, wanted):
    return np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)


def greedy_gap(reference, prompts, tokens):
    """How far below the best, in standard deviations of its position, the worst drawn token is."""
    worst = 0.0
    for prompt, drawn in zip(prompts, tokens):
        logits = reference.logits(list(prompt) + drawn[:-1])[len(prompt) - 1:]
        gaps = (logits.max(-1) - logits[np.arange(len(drawn)), drawn]) / logits.std(-1)
        worst = max(worst, float(gaps.max()))
    return worst


def check(args, pool, seed, name, kind, config):
    rng = np.random.default_rng(seed)
    vocab = config["vocab_size"]
    prompts = [rng.integers(0, vocab, length).tolist() for length in PROMPT_LENGTHS]
    few = prompts[:3] * 4                       # twelve sequences, some the same
    dtype = getattr(torch, args.dtype)
    row = {"case": name, "device": args.device, "dtype": args.dtype}
    with tempfile.TemporaryDirectory() as folder:
        make_model(kind, config, seed, dtype).save_pretrained(folder)
        block = ["--block-size", 16 if seed % 2 else 64]
        layout = [args.tp, args.pp]
        jobs = {f"chunk_{n}": pool.submit(run_tool, args, "logits", folder, prompts, *layout, "--chunk", n, *block) for n in (1, 7, 64)}
        jobs["whole"] = pool.submit(run_tool, args, "logits", folder, prompts, *layout, *block)
        jobs["together"] = pool.submit(run_tool, args, "logits", folder, prompts, *layout, "--together", "--chunk", 100, *block)
        for way, flags in (("greedy", []), ("ahead", ["--ahead"] if args.pp == 1 else [])):
            jobs[way] = pool.submit(run_tool, args, "greedy", folder, few, *layout, NUM_GREEDY, "--together", *flags, *block)
        reference = Reference(folder, args.reference_device, torch.float32)
        in_dtype = Reference(folder, args.reference_device, dtype)
        wanted = np.concatenate([reference.logits(prompt) for prompt in prompts])
        rounded = np.concatenate([in_dtype.logits(prompt) for prompt in prompts])
        out = {way: job.result() for way, job in jobs.items()}
    logits = {way: np.frombuffer(data, np.float32).reshape(-1, vocab) for way, data in out.items() if way not in ("greedy", "ahead")}
    errors = {way: relative_errors(found, wanted) for way, found in logits.items()}
    row["error_max"] = {way: round(float(error.max()), 5) for way, error in errors.items()}
    row["error_mean"] = round(float(errors["whole"].mean()), 5)
    row["transformers_same_dtype"] = round(float(relative_errors(rounded, wanted).max()), 5)
    row["worst_position"] = int(errors["whole"].argmax())
    row["between_chunks"] = max(round(float(relative_errors(found, logits["whole"]).max()), 5) for found in logits.values())
    tokens = {way: np.frombuffer(out[way], np.int32).reshape(len(few), NUM_GREEDY).tolist() for way in ("greedy", "ahead")}
    differ = [i for i in range(len(few)) if tokens["ahead"][i] != tokens["greedy"][i]]
    held = sorted({0, 1, 2, *differ})
    row["greedy_gap"] = round(max(greedy_gap(reference, [few[i] for i in held], [tokens[way][i] for i in held]) for way in tokens), 4)
    row["ahead_differs"] = len(differ)
    row["ok"] = bool(max(row["error_max"].values()) <= args.limit and row["between_chunks"] <= args.limit and
                     row["greedy_gap"] <= GREEDY_GAP and (args.device == "cuda" or not differ))
    return row


def main():
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", default=str(root / "build-cuda/tests/logits_tool"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "ref", "fast"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--pp", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=8, help="runs of the tool at the same time")
    parser.add_argument("--limit", type=float, help="default: 0.01, float16 0.002")
    parser.add_argument("--timeout", type=int, default=120, help="seconds for one run of the tool")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--reference-device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.limit = args.limit or (2e-3 if args.dtype == "float16" else 1e-2)
    torch.backends.cuda.matmul.allow_tf32 = False
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        for seed, (name, kind, config) in enumerate(CASES):
            if args.only not in name or config["num_key_value_heads"] % args.tp:
                continue                        # ranks share KV heads, they do not split one
            start = time.time()
            try:
                row = check(args, pool, seed, name, kind, config)
            except RuntimeError as error:
                row = {"case": name, "device": args.device, "ok": False, "error": str(error)}
            row["seconds"] = round(time.time() - start, 1)
            failed += not row["ok"]
            print(json.dumps(row), flush=True)
    print(f"{'FAIL' if failed else 'ok  '} {failed} models outside the limits (relative error {args.limit:g})")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
