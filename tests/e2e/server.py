"""server.py - starts a real sluiced for a test and looks at it from outside: health, metrics, engine processes, memory."""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("SLUICE_BIN_DIR", ROOT / "build" / "bin"))
MODEL = pathlib.Path(os.environ.get("SLUICE_MODEL", ROOT / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"))
SANITIZED = "san" in BIN.parent.name        # tens of times slower, and their allocators keep what was freed
PATIENCE = float(os.environ.get("SLUICE_TEST_PATIENCE", "8" if SANITIZED else "1"))     # limits of time times this
START_SECONDS = float(os.environ.get("SLUICE_START_SECONDS", "120"))
SANITIZER_REPORT = re.compile(r"^.*(?:(?:Address|Leak|Thread)Sanitizer:|runtime error:)", re.MULTILINE)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """One sluiced. `with Server("--max-num-seqs", "8") as s: s.url ...`"""

    def __init__(self, *args, model=MODEL, env=None, wait=True, name="m"):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.name = name
        self.log = tempfile.NamedTemporaryFile(prefix="sluiced-", suffix=".log", delete=False)
        argv = [str(BIN / "sluiced"), "--model", str(model), "--port", str(self.port), "--served-model-name", name]
        argv += ["--drain-timeout", f"{60 * PATIENCE:.0f}"] + os.environ.get("SLUICE_ARGS", "").split() + list(args)
        self.process = subprocess.Popen(argv, stdout=self.log, stderr=self.log, env={**os.environ, **(env or {})})
        if wait:
            self.wait_ready()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stop()

    def output(self):
        return pathlib.Path(self.log.name).read_text(errors="replace")

    def wait_ready(self, seconds=START_SECONDS):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"sluiced exited with {self.process.returncode}:\n{self.output()}")
            if self.status("/health/ready") == 200:
                return
            time.sleep(0.05)
        raise RuntimeError(f"sluiced was not ready after {seconds} s:\n{self.output()}")

    def status(self, path):
        try:
            with urllib.request.urlopen(self.url + path, timeout=5 * PATIENCE) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def post(self, path, body, timeout=120):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout * PATIENCE) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def metric(self, name, **labels):
        """Sum of the series of this name whose labels match."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=5 * PATIENCE) as answer:
            text = answer.read().decode()
        total = 0.0
        for line in text.splitlines():
            match = re.fullmatch(r"([\w:]+)(?:\{(.*)\})? (\S+)", line)
            if not match or match.group(1) != name:
                continue
            if all(f'{k}="{v}"' in (match.group(2) or "") for k, v in labels.items()):
                total += float(match.group(3))
        return total

    def engines(self):
        """Process ids of the engines, oldest first."""
        out = subprocess.run(["ps", "-o", "pid=,stat=", "--ppid", str(self.process.pid)], capture_output=True, text=True).stdout
        return sorted(int(pid) for pid, stat in (line.split() for line in out.splitlines()) if "Z" not in stat)

    def rss_kib(self, pid=None):
        status = pathlib.Path(f"/proc/{pid or self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1))

    def keeps_memory(self, before, limit_kib, again, pid=None):
        """Less than limit_kib above `before`, after one more turn of the work (again()) if need be, four at most: a turn's own
        peak comes and goes by some MiB, a leak stays and is larger after each turn."""
        if SANITIZED:
            return
        grown = [self.rss_kib(pid) - before]
        while grown[-1] >= limit_kib and len(grown) < 5:
            again()
            grown.append(self.rss_kib(pid) - before)
        print(f"\nresident KiB of process {pid or self.process.pid}: {before}, later {grown} more")
        assert grown[-1] < limit_kib, f"resident memory of process {pid or self.process.pid} grew by {grown} KiB, turn after turn"

    def descriptors(self, pid=None):
        return len(os.listdir(f"/proc/{pid or self.process.pid}/fd"))

    def wait_until(self, condition, seconds=10, what="condition"):
        end = time.monotonic() + seconds * PATIENCE
        while time.monotonic() < end:
            if condition():
                return
            time.sleep(0.02)
        raise AssertionError(f"{what} did not hold within {seconds} s\n{self.output()[-3000:]}")

    def wait_idle(self, seconds=10):
        self.wait_until(lambda: self.metric("sluice_requests_running") == 0 and self.metric("sluice_requests_waiting") == 0,
                        seconds, "running and waiting at 0")

    def stop(self, sig=signal.SIGTERM, seconds=90):
        if self.process.poll() is None:
            self.process.send_signal(sig)
            try:
                self.process.wait(seconds * PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"sluiced did not stop:\n{self.output()[-3000:]}")
        self.log.close()
        self.check_sanitizers()
        return self.process.returncode

    def check_sanitizers(self):
        """An engine that a sanitizer ends is started again, and its streams go on elsewhere: only the log tells."""
        log = self.output()
        report = SANITIZER_REPORT.search(log)
        assert not report, log[report.start():report.start() + 6000]
