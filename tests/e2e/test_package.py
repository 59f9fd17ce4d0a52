"""The tarball that cpack makes: unpacked elsewhere it brings its libraries, asks for no CUDA, finds its presets and serves."""
import os
import pathlib
import re
import subprocess

import pytest

import server

PROGRAMS = ("sluiced", "sluice-engine", "sluice")
OF_GLIBC = re.compile(r"(ld-linux.*|linux-vdso|lib(c|m|pthread|dl|rt))\.so\.\d+")
UNWANTED = re.compile("cuda|cublas|nccl" if server.SANITIZED else "cuda|cublas|nccl|stdc")    # sanitizers are of C++


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package")
    made = subprocess.run(["cpack", "-B", str(folder)], cwd=server.BIN.parent, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    archive = next(folder.glob("sluice-*.tar.gz"))
    (folder / "elsewhere").mkdir()
    subprocess.run(["tar", "-xzf", str(archive), "-C", str(folder / "elsewhere")], check=True)
    return folder / "elsewhere" / archive.name.removesuffix(".tar.gz")


@pytest.mark.parametrize("program", PROGRAMS)
def test_libraries_come_from_beside(unpacked, program):
    out = subprocess.run(["ldd", str(unpacked / "bin" / program)], capture_output=True, text=True, check=True).stdout
    for line in out.splitlines():
        name, _, where = line.strip().partition(" => ")
        name = pathlib.Path(name.split(" ")[0]).name
        if not OF_GLIBC.fullmatch(name):
            assert where.startswith(str(unpacked / "bin" / ".." / "lib")) or where.startswith(str(unpacked / "lib")), line
        assert not UNWANTED.search(name), line


def test_presets_are_found(unpacked):
    out = subprocess.run([str(unpacked / "bin" / "sluice"), "check", "--preset", "1x"], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert (unpacked / "share" / "sluice" / "sluiced.service").exists()


def test_it_serves(unpacked, monkeypatch):
    monkeypatch.setattr(server, "BIN", unpacked / "bin")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    with server.Server(env={"PATH": os.defpath}) as one:
        status, answer = one.post("/v1/completions", {"model": one.name, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0})
        assert status == 200
        assert "Paris" in answer["choices"][0]["text"]
