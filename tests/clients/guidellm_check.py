"""guidellm_check.py URL GGUF - guidellm's synthetic load, chat and completions: every request succeeds with the tokens asked for."""
import json
import pathlib
import subprocess
import sys
import tempfile

REQUESTS, STREAMS, PROMPT, OUTPUT = 8, 2, 32, 8

url = sys.argv[1]
program = pathlib.Path(sys.executable).parent / "guidellm"


def run(route, folder):
    report = pathlib.Path(folder) / "report.json"
    subprocess.run([program, "run", "--backend", f"kind=openai_http,target={url},model=m,request_format={route}",
                    "--profile", f"kind=concurrent,streams={STREAMS}", "--constraint", f"kind=max_requests,count={REQUESTS}",
                    "--tokenizer", "kind=hf_auto,model=local/model",
                    "--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={OUTPUT}",
                    "--data-loader", f"kind=pytorch,samples={REQUESTS},prefetch_factor=2",
                    "--output", f"kind=json,path={report}", "--disable-console-interactive"], check=True, timeout=300)
    done = json.loads(report.read_text())["benchmarks"][0]
    requests = done["requests"]
    made, broken = requests["successful"], requests["errored"] + requests["incomplete"]
    # it stops by a count of its own that on a busy machine takes in what it never sends
    assert REQUESTS - STREAMS < len(made) <= REQUESTS and not broken, (broken[:1], len(made))
    for request in made:
        assert request["output_metrics"]["text_tokens"] == OUTPUT, request
    return len(made)


def main():
    with tempfile.TemporaryDirectory() as folder:
        counts = [run(route, folder) for route in ("/v1/chat/completions", "/v1/completions")]
    print(f"{counts[0]} chats and {counts[1]} completions of {OUTPUT} tokens")


main()
