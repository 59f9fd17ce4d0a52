"""Layouts of ranks: the same text on every one, the plan in the log, impossible ones refused before anything loads."""

import json
import os
import subprocess

import pytest

from server import BIN, MODEL, Server

REF = ("--cpu-kernels", "ref", "--max-model-len", "256", "--max-num-seqs", "4", "--max-num-batched-tokens", "64")
REQUESTS = [
    {"prompt": "The capital of France is", "temperature": 0},
    {"prompt": "Once upon a time", "temperature": 0.9, "seed": 7},
    {"prompt": "def add(a, b):", "temperature": 1.1, "top_p": 0.9, "top_k": 40, "seed": 3, "repetition_penalty": 1.1},
]


def answers(*flags):
    with Server(*REF, *flags) as server:
        texts = []
        for request in REQUESTS:
            status, body = server.post("/v1/completions", {"model": server.name, "max_tokens": 12, "ignore_eos": True, **request})
            assert status == 200, body
            texts.append(body["choices"][0]["text"])
        return texts, server.output()


def rank_lines(log):
    records = [json.loads(line) for line in log.splitlines() if '"event":"rank_plan"' in line]
    return [record["msg"].split() for record in records]


def test_text_is_the_same_on_every_layout():
    one, _ = answers("--tensor-parallel-size", "1", "--pipeline-parallel-size", "1", "--data-parallel-size", "1")
    four, log = answers("--tensor-parallel-size", "2", "--pipeline-parallel-size", "2", "--data-parallel-size", "1",
                        "--cpu-threads", "1")
    assert four == one
    assert len(set(one)) == len(REQUESTS)
    lines = rank_lines(log)
    assert [line[:2] for line in lines[1:5]] == [["0", "0"], ["0", "1"], ["1", "2"], ["1", "3"]]    # stage, rank
    assert lines[5][0] == "all"


REFUSALS = [
    (("--tensor-parallel-size", "9"), "9 heads in 3 KV groups", "nearest layout is 8 x 1"),
    (("--pipeline-parallel-size", "31"), "30 layers", "nearest layout is 1 x 8"),
    (("--pipeline-parallel-size", "2", "--pp-layer-partition", "12,17"), "sum to 29, the model has 30", "nearest layout is 12,18"),
    (("--device", "cuda", "--tensor-parallel-size", "2", "--data-parallel-size", "3"), "needs 6 GPUs, 4 are visible",
     "nearest layout is 2 x 1 x 2"),
]


@pytest.mark.parametrize("program", ["sluiced", "sluice check"])
@pytest.mark.parametrize("flags, numbers, nearest", REFUSALS)
def test_impossible_layouts_are_refused(program, flags, numbers, nearest):
    name, *command = program.split()
    argv = [str(BIN / name), *command, "--model", str(MODEL), *flags]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, env={**os.environ, "CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    assert done.returncode == 78
    said = [line for line in done.stderr.splitlines() if not line.startswith("{")]     # the log apart
    assert len(said) == 1, done.stderr
    assert numbers in said[0] and nearest in said[0]
    assert '"event":"replica' not in done.stderr        # no engine was started


def test_check_does_not_ask_for_the_hosts_memory_where_gpus_are(tmp_path):
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16384, "intermediate_size": 65536,
              "num_hidden_layers": 200, "num_attention_heads": 128, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
              "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))          # a trillion parameters
    argv = [str(BIN / "sluice"), "check", str(tmp_path), "--load-format", "dummy", "--tensor-parallel-size", "8"]
    gpus = subprocess.run(argv, capture_output=True, text=True, timeout=20, env={**os.environ, "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"})
    assert gpus.returncode == 0 and "tp 8 x pp 1, cuda" in gpus.stdout, gpus.stderr
    cpu = subprocess.run(argv, capture_output=True, text=True, timeout=20, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    assert cpu.returncode == 78 and "weights" in cpu.stderr


def test_check_prints_the_layout():
    argv = [str(BIN / "sluice"), "check", "--model", str(MODEL), "--tensor-parallel-size", "3", "--pipeline-parallel-size", "2"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.index("layout: "):].splitlines()
    assert table[0].startswith("layout: 1 replica of 6 ranks, tp 3 x pp 2")
    assert [line.split()[1] for line in table[2:8]] == list("012345")
    assert [line.split()[3] for line in table[2:5]] == ["0-2", "3-5", "6-8"]      # heads
