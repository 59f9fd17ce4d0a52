"""`sluice plan`: what a start would compute, without loading anything. The sizes of a GPU's memory are its backend's, which a build
without CUDA lacks: there it plans for the CPU alone, and says so."""
import os
import re
import subprocess

import pytest

from server import BIN, MODEL, ROOT

CUDA = (BIN.parent / "libbackend_cuda.a").exists()
LLAMA = ROOT / "bench" / "models" / "llama-3.1-8b"         # config.json alone
TERMS = ("weights", "activations", "workspace", "rope table", "comm", "context", "library", "kv")


def plan(*args, code=0):
    env = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    done = subprocess.run([str(BIN / "sluice"), "plan", *map(str, args)], capture_output=True, text=True, timeout=60,
                          env=env | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def rows(out):
    """tp, pp, replicas -> the rest of its row; the one that is marked."""
    found = {tuple(map(int, m.group(2, 3, 4))): m.group(5) for m in re.finditer(r"^( |\*) +(\d+) +(\d+) +(\d+) +(.*)$", out, re.M)}
    best = [tuple(map(int, m.groups())) for m in re.finditer(r"^\* +(\d+) +(\d+) +(\d+) ", out, re.M)]
    return found, best


def terms(out):
    return {m.group(1).strip(): float(m.group(2)) for m in re.finditer(r"^ *([a-z ]+?) +(\d+\.\d) MiB", out, re.M)}


def test_a_cpu_is_planned_for():
    out, _ = plan(MODEL, "--device", "cpu", "--max-model-len", 2048, "--headroom", 0.25)
    found, best = rows(out)
    assert list(found) == best == [(1, 1, 1)]
    memory = terms(out)
    assert memory["headroom"] == pytest.approx(memory["memory"] / 4, abs=0.2)
    assert memory["total"] == pytest.approx(sum(memory.get(term, 0) for term in TERMS), abs=0.5)
    blocks, size, each = map(float, re.search(r"(\d+) blocks of (\d+) tokens, (\S+) MiB each", out).groups())
    assert float(found[1, 1, 1].split()[2]) == blocks * size
    assert memory["kv"] == pytest.approx(blocks * each, rel=1e-3)


def test_what_is_wrong_is_said_in_a_line():
    for args, message in (((), "no model given"), (("/nowhere",), "/nowhere"), ((MODEL, "--gpus", 9), "--gpus"), ((MODEL, "--gpu-memory", "much"), "--gpu-memory"),
                          ((MODEL, "--device", "cpu", "--gpus", 2), "--gpus"), ((MODEL, "--no-such-option"), "no-such-option")):
        out, err = plan(*args, code=78)
        assert out == "" and len(err.splitlines()) == 1 and err.startswith("sluice plan: ") and message in err


def test_help():
    out, err = plan("--help")
    assert out.startswith("usage: sluice plan MODEL") and "--gpu-memory" in out and err == ""


if not CUDA:
    def test_a_build_without_cuda_says_so():
        out, err = plan(LLAMA, "--load-format", "dummy", "--gpus", 2, "--gpu-memory", 80, code=78)
        assert out == "" and "built without CUDA" in err
        out, err = plan(LLAMA, "--load-format", "dummy", "--device", "cuda", code=78)
        assert out == "" and "built without CUDA" in err

if CUDA:
    def of_gpus(num, gib, *args, code=0):
        return plan(LLAMA, "--load-format", "dummy", "--gpus", num, "--gpu-memory", gib, *args, code=code)

    def test_layouts_side_by_side():
        out, _ = of_gpus(8, 140.4)
        found, best = rows(out)
        assert set(found) == {(tp, pp, 8 // (tp * pp)) for tp in (1, 2, 4, 8) for pp in (1, 2, 4, 8) if tp * pp <= 8} and best == [(1, 1, 8)]
        assert "--tensor-parallel-size 1 --pipeline-parallel-size 1 --data-parallel-size 8" in out
        weights = {layout: float(row.split()[0]) for layout, row in found.items()}
        assert weights[1, 1, 8] == pytest.approx(8.03e9 * 2 / 2**30, abs=0.1)
        assert weights[8, 1, 1] == pytest.approx(weights[1, 1, 8] / 8, abs=0.1)
        memory = terms(out)
        assert memory["memory"] == pytest.approx(140.4 * 1024, abs=1) and memory["headroom"] == pytest.approx(14.04 * 1024, abs=1)
        assert memory["context"] > 0 and memory["library"] > 0
        assert memory["total"] == pytest.approx(sum(memory[term] for term in TERMS), abs=1)
        assert memory["memory"] - memory["headroom"] - 8 <= memory["total"] <= memory["memory"] - memory["headroom"]      # a block is 8 MiB

    def test_the_smallest_replica_with_room():
        out, _ = of_gpus(4, 16, "--max-model-len", 8192)
        found, best = rows(out)
        assert best == [(2, 1, 2)]
        assert "no:" in found[1, 1, 4] and "weights" in found[1, 1, 4] and "no:" not in found[1, 2, 2]
        assert terms(out)["comm"] > 0

    def test_nothing_fits():
        out, err = of_gpus(2, 4, code=78)
        found, best = rows(out)
        assert best == [] and all("no:" in row for row in found.values()) and len(found) == 3
        assert "no layout holds this model" in err and "Ways out: " in err and len(err.splitlines()) == 1

    def test_no_gpu_and_none_told():
        out, err = plan(LLAMA, "--load-format", "dummy", "--device", "cuda", code=78)
        assert out == "" and "--gpu-memory" in err
