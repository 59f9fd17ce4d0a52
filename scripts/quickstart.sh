#!/usr/bin/env bash
# quickstart.sh - from a bare Debian 12 or Ubuntu 22.04/24.04 to a chat answer: installs what the build needs, builds,
# fetches the default model, starts the server, streams one answer. A second run finds all of it done.
set -euo pipefail
caller_dir=$PWD
cd "$(dirname "$0")/.."
. scripts/lib.sh

usage() {
    cat <<'TEXT'
usage: scripts/quickstart.sh [--model PATH] [--port N] [--prompt TEXT] [--once]

  --model PATH    a .gguf file or a Hugging Face model directory; default: SmolLM2-135M-Instruct, fetched into models/
  --port N        port on 127.0.0.1; default 8000
  --prompt TEXT   what to ask
  --once          stop the server after the answer and exit 0; else it stays until Ctrl-C
TEXT
}

readonly READY_LIMIT_S=600
model='' port=8000 once=false
prompt='What does a sluice gate do? Answer in two sentences.'
while [ $# -gt 0 ]; do
    case $1 in
    --model=* | --port=* | --prompt=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    --help | -h) usage; exit 0 ;;
    --once) once=true; shift ;;
    --model | --port | --prompt)
        [ $# -ge 2 ] || die "$1: needs a value"
        printf -v "${1#--}" %s "$2"
        shift 2 ;;
    *) die "unknown argument '$1'; --help" ;;
    esac
done
[[ $port =~ ^[1-9][0-9]{0,4}$ ]] && [ "$port" -le 65535 ] || die "--port: '$port' is not a port (1..65535)"
if [ -n "$model" ]; then
    [[ $model = /* ]] || model=$caller_dir/$model
    [ -e "$model" ] || die "--model: $model does not exist"
fi

readonly url=http://127.0.0.1:$port log=build/quickstart.log
request() { curl --silent --show-error --noproxy '*' ${SLUICE_API_KEY:+--header "Authorization: Bearer ${SLUICE_API_KEY##*:}"} "$@"; }

server=''
stop_server() {
    [ -n "$server" ] || return 0
    kill -TERM "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null
}
# Reasons of the server itself are in the last line of its log.
server_failed() {
    local reason
    reason=$(tail -n 1 "$log" 2>/dev/null | cut -c1-300 || true)
    server=''
    die "the server stopped: ${reason:-no message} (log: $log)"
}

start_server() {
    if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then die "port $port is in use; choose another with --port N"; fi
    say "starting build/bin/sluiced --model $model --port $port (log: $log)"
    build/bin/sluiced --model "$model" --host 127.0.0.1 --port "$port" >"$log" 2>&1 &
    server=$!
}

# One dot a second on the same line.
wait_ready() {
    local start=$EPOCHREALTIME second=0 passed=0
    printf '    waiting for %s/health/ready ' "$url"
    until request --output /dev/null --fail --max-time 2 "$url/health/ready" 2>/dev/null; do
        kill -0 "$server" 2>/dev/null || { echo; server_failed; }
        passed=$(((${EPOCHREALTIME/[.,]/} - ${start/[.,]/}) / 1000000))
        [ "$passed" -lt "$READY_LIMIT_S" ] || { echo; die "not ready after $READY_LIMIT_S s (log: $log)"; }
        if [ "$passed" -gt "$second" ]; then printf '.'; second=$passed; fi
        sleep 0.05
    done
    kill -0 "$server" 2>/dev/null || { echo; server_failed; }
    printf ' ready after %d ms\n' $(((${EPOCHREALTIME/[.,]/} - ${start/[.,]/}) / 1000))
}

# Reads the events as they arrive and shows their text; fails unless the stream ended as it should.
show_stream() {
    python3 -u -c '
import json, sys
done, tokens, refused = False, 0, ""
for line in sys.stdin.buffer:
    line = line.decode("utf-8", "replace").rstrip("\r\n")
    if not line.startswith("data: "):
        refused += line if line.startswith("{") else ""
        continue
    if line == "data: [DONE]":
        done = True
        continue
    event = json.loads(line[6:])
    if "error" in event:
        refused = line[6:]
        break
    tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    for choice in event.get("choices", []):
        print(choice.get("delta", {}).get("content") or "", end="", flush=True)
print()
if refused or not done:
    sys.exit("    " + (refused[:300] or "the stream ended before [DONE]"))
print(f"    ({tokens} tokens)")
'
}

stream_answer() {
    local body
    body=$(request --fail --max-time 10 "$url/v1/models" | PROMPT=$prompt python3 -c '
import json, os, sys
name = json.load(sys.stdin)["data"][0]["id"]
print(json.dumps({"model": name, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 160, "temperature": 0,
                  "messages": [{"role": "user", "content": os.environ["PROMPT"]}]}))') || return 1
    say "asking: $prompt"
    body=${body//\'/\\u0027}            # so that the printed command can be pasted
    printf "    curl -N %s/v1/chat/completions -H 'Content-Type: application/json' -d '%s'\n\n" "$url" "$body"
    request --no-buffer --max-time 600 "$url/v1/chat/completions" --header 'Content-Type: application/json' --data "$body" | show_stream
}

install_missing "${BUILD_PACKAGES[@]}"
if [ ! -f build/build.ninja ]; then say "configuring"; configure release build -DSLUICE_TESTS=OFF; else configure release build; fi
say "building"
ninja -C build sluiced sluice-engine sluice || die "the build failed (see above)"
if [ -z "$model" ]; then model=$(scripts/fetch_model.sh) || exit 1; fi

trap stop_server EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
start_server
wait_ready
stream_answer || die "no complete answer (log: $log)"
if $once; then
    pid=$server server=''
    kill -TERM "$pid"
    wait "$pid" || die "the server ended with exit code $? (log: $log)"
    say "done; the server has stopped"
    exit 0
fi
say "serving on $url; try: curl $url/v1/models. Ctrl-C stops it."
code=0
wait "$server" || code=$?
[ "$code" -eq 0 ] || server_failed
