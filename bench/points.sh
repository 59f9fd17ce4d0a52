#!/usr/bin/env bash
# points.sh - the points that goals are set for, of one model, one after the other: JSON lines on stdout, summaries on stderr.
#   bench/points.sh MODEL step|ttft|throughput|serve|all [engine options ...]
#   bench/points.sh bench/models/llama-3.1-8b all --load-format dummy > 8b.jsonl
# $SLUICE_BIN_DIR: where the programs are (build/bin). $LIMIT: seconds that one command may take (300). $VOCAB: ids of prompts over
# HTTP are below it (32000). $PEER_URL: serve measures the server there (its model name in $PEER_MODEL) and starts none.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=${SLUICE_BIN_DIR:-$here/../build/bin} limit=${LIMIT:-300} vocab=${VOCAB:-32000}
[ $# -ge 2 ] || { sed -n '2,7s/^# //p' "$0" >&2; exit 78; }
model=$1 what=$2
shift 2
failed=0

run() { timeout "$limit" "$@" || { echo "points.sh: $? of: $*" >&2; failed=1; }; }

step() {
    run "$bin/sluice-engine" bench step --model "$model" --batch 1,8,32,64,128,256 --input-len 128 --output-len 256 "$@"
    run "$bin/sluice-engine" bench step --model "$model" --batch 1 --context 32000 --output-len 64 "$@"
}
ttft() { run "$bin/sluice-engine" bench ttft --model "$model" --input-len 128,1024,8192,32000 "$@"; }
throughput() { run "$bin/sluice-engine" bench throughput --model "$model" --input-len 1000 --output-len 1000 --num-prompts 512 "$@"; }

load() { run "$bin/sluice" bench serve --base-url "$url" --model "$name" --vocab-size "$vocab" --ignore-eos "$@"; }
points() {
    load --input-len 128 --output-len 1 --concurrency 1 --num-prompts 50          # time to first token of one stream
    for streams in 64 256; do
        load --input-len 128 --output-len 256 --concurrency $streams --num-prompts $((streams * 4)) --num-warmups $streams
    done
    load --input-len 128 --output-len 128-384 --concurrency 256 --num-prompts 1024 --num-warmups 256
}
serve() {
    if [ -n "${PEER_URL:-}" ]; then
        url=$PEER_URL name=${PEER_MODEL:?the name of the model at PEER_URL}
        points
        return
    fi
    local port=$((20000 + $$ % 20000))
    url=http://127.0.0.1:$port name=bench
    "$bin/sluiced" --model "$model" --port "$port" --served-model-name "$name" --no-enable-prefix-caching "$@" >&2 &
    server=$!
    trap 'kill $server 2>/dev/null || true' EXIT
    for _ in $(seq $((limit * 5))); do
        "$bin/sluice" health --url "$url" >/dev/null 2>&1 && break
        kill -0 $server 2>/dev/null || { echo "points.sh: the server ended" >&2; exit 1; }
        sleep 0.2
    done
    points
    kill $server
    wait $server || true
    trap - EXIT
}

case $what in
step | ttft | throughput | serve) "$what" "$@" ;;
all) step "$@"; ttft "$@"; throughput "$@"; serve "$@" ;;
*) echo "points.sh: no points '$what'" >&2; exit 78 ;;
esac
exit $failed
