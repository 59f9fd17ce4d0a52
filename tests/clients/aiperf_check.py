"""aiperf_check.py URL GGUF - aiperf's synthetic load, chat and completions, streamed: no request fails, each has the tokens asked for,
and what it reads of /metrics is counted."""
import json
import pathlib
import subprocess
import sys
import tempfile

REQUESTS, PROMPT, OUTPUT = 8, 32, 8

url = sys.argv[1]
program = pathlib.Path(sys.executable).parent / "aiperf"


def run(endpoint, folder):
    subprocess.run([program, "profile", "--url", url, "--model", "m", "--endpoint-type", endpoint, "--streaming", "--tokenizer", "local/model",
                    "--concurrency", "2", "--request-count", str(REQUESTS), "--synthetic-input-tokens-mean", str(PROMPT),
                    "--output-tokens-mean", str(OUTPUT), "--extra-inputs", "ignore_eos:true", "--use-server-token-count", "--ui", "none",
                    "--artifact-dir", folder], check=True, timeout=300)
    done = json.loads((pathlib.Path(folder) / "profile_export_aiperf.json").read_text())
    assert done["request_count"]["avg"] == REQUESTS and not done["error_summary"], done["error_summary"]
    made = done["output_sequence_length"]
    assert made["min"] == made["max"] == OUTPUT, made
    read = (pathlib.Path(folder) / "server_metrics_export.json").read_text()
    assert "sluice_ttft_seconds" in read and "vllm:time_to_first_token_seconds" in read
    return done["time_to_first_token"]["p50"]


def main():
    times = {}
    for endpoint in ("chat", "completions"):
        with tempfile.TemporaryDirectory() as folder:
            times[endpoint] = run(endpoint, folder)
    print(f"{REQUESTS} chats and {REQUESTS} completions of {OUTPUT} tokens; first token after "
          + ", ".join(f"{ms:.0f} ms" for ms in times.values()))


main()
