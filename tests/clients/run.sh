#!/usr/bin/env bash
# run.sh [CLIENT...] - drives a sluiced of its own with clients of others, unmodified: each is installed into a virtual environment
# under build-clients/. Without arguments all of them. One line per client: ok, FAIL or skip with the reason. Exit 1 after a FAIL.
# SLUICE_BIN_DIR (build/bin) and SLUICE_MODEL as in tests/e2e/server.py; CLIENT_TIMEOUT seconds per client (600).
set -euo pipefail
cd "$(dirname "$0")/../.."

clients=(lm_eval langchain litellm guidellm aiperf slowhttptest)
[ $# -eq 0 ] || clients=("$@")
bin=${SLUICE_BIN_DIR:-build/bin} model=${SLUICE_MODEL:-models/SmolLM2-135M-Instruct.Q4_1.gguf}
work=$PWD/build-clients failed=0 server=''
mkdir -p "$work"

packages_of() {
    case $1 in
    lm_eval) echo "lm-eval[api] gguf" ;;
    langchain) echo langchain-openai ;;
    litellm) echo litellm ;;
    guidellm) echo guidellm ;;
    aiperf) echo aiperf ;;
    slowhttptest) ;;
    *) echo "unknown client '$1': one of lm_eval langchain litellm guidellm aiperf slowhttptest" >&2; exit 2 ;;
    esac
}

start_server() {
    local port
    port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    url=http://127.0.0.1:$port
    "$bin/sluiced" --model "$model" --port "$port" --served-model-name m --header-timeout 2s --body-timeout 12s \
        --slow-client-timeout 3s --log-level error >"$work/sluiced.log" 2>&1 &
    server=$!
    trap 'kill $server 2>/dev/null || true' EXIT
    for _ in $(seq 1200); do
        kill -0 $server 2>/dev/null || { cat "$work/sluiced.log" >&2; exit 1; }
        curl -sf "$url/health/ready" >/dev/null && return 0
        sleep 0.1
    done
    echo "sluiced is not ready" >&2
    exit 1
}

# Why a client cannot run here; nothing when it can.
install_client() {
    local name=$1 packages
    packages=$(packages_of "$name")
    if [ -z "$packages" ]; then
        command -v "$name" >/dev/null || echo "$name is not installed"
        return 0
    fi
    [ -e "$work/$name/.installed" ] && return 0
    # a list of words
    # shellcheck disable=SC2086
    if python3 -m venv --clear "$work/$name" >/dev/null 2>&1 &&
        "$work/$name/bin/pip" install --quiet --disable-pip-version-check $packages >"$work/$name.log" 2>&1; then
        touch "$work/$name/.installed"
    else
        echo "does not install: $(grep -m 1 ERROR "$work/$name.log" || tail -n 1 "$work/$name.log")"
    fi
}

drive() {
    local name=$1 venv=$work/$1/bin
    export OPENAI_API_KEY=none HF_HOME=$work/huggingface HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
    case $name in
    slowhttptest) tests/clients/slowhttp.sh "$url" ;;
    *) "$venv/python" "tests/clients/${name}_check.py" "$url" "$model" ;;
    esac
}

# guidellm and aiperf count tokens with a tokenizer of their own: the model's, out of its GGUF file.
make_processor() {
    [ -e "$work/huggingface" ] && return 0
    python3 -m venv --clear "$work/gguf" >/dev/null
    "$work/gguf/bin/pip" install --quiet --disable-pip-version-check gguf tokenizers
    "$work/gguf/bin/python" tests/clients/make_processor.py "$model" "$work/huggingface"
}

start_server
for name in "${clients[@]}"; do
    packages_of "$name" >/dev/null
    reason=$(install_client "$name")
    if [ -n "$reason" ]; then echo "skip $name: $reason"; continue; fi
    case $name in guidellm | aiperf) make_processor ;; esac
    if timeout "${CLIENT_TIMEOUT:-600}" bash -c "$(declare -f drive); work=$work url=$url model=$model; drive $name" >"$work/$name.out" 2>&1 &&
        curl -sf "$url/health/ready" >/dev/null; then
        echo "ok   $name: $(tail -n 1 "$work/$name.out")"
    else
        tail -n 30 "$work/$name.out" >&2
        echo "FAIL $name"
        failed=1
    fi
done
exit $failed
