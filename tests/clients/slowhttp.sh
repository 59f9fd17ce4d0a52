#!/usr/bin/env bash
# slowhttp.sh URL - slowhttptest's four attacks, 300 connections each for 15 s: slow headers, slow bodies, ranges, slow readers.
# The server answers others meanwhile, within a second, and nothing is left afterwards.
set -euo pipefail
url=$1 seconds=15 path=/v1/completions

attack() {
    slowhttptest -c 300 -r 150 -l "$seconds" -p 1 "$@" >/dev/null 2>&1 &
    local attacker=$! end=$((SECONDS + seconds - 2)) answered=0
    while [ $SECONDS -lt $end ]; do
        curl -sf -m 5 "$url/v1/models" >/dev/null || { echo "not served during slowhttptest $*"; kill $attacker; exit 1; }
        answered=$((answered + 1))
        sleep 0.2
    done
    wait $attacker || true
    echo "slowhttptest $1: $answered of $answered requests answered meanwhile"
}

attack -H -i 1 -u "$url/v1/models"
attack -B -i 1 -s 8192 -t POST -u "$url$path"
attack -R -a 10 -b 3000 -t HEAD -u "$url/v1/models"
attack -X -w 10 -y 20 -n 5 -z 1 -k 3 -u "$url/openapi.json"
for _ in $(seq 100); do
    left=$(curl -s "$url/metrics" | awk '/^sluice_http_connections/ { n += $NF } END { print n }')
    [ "$left" -le 1 ] && { echo "all four; $left connections left"; exit 0; }
    sleep 0.2
done
echo "$left connections are left"
exit 1
