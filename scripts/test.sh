#!/usr/bin/env bash
# test.sh - installs what the tests need, builds, runs every test, counts. Exit 0 only when all passed and some ran.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

usage() {
    cat <<'TEXT'
usage: scripts/test.sh [--asan | --tsan] [--unit | --layouts]

  --asan   build with AddressSanitizer and UBSan (build-asan/)
  --tsan   build with ThreadSanitizer (build-tsan/)
  --unit   the C tests only: no Python, no model, no server
  --layouts  the end-to-end tests two times more: TP 2 x PP 2, and 3 replicas

Else: the C tests (ctest), comparisons with Python references (tests/golden/*_parity.py; not with a sanitizer), tests of a
running server (pytest tests/e2e), and the stored inputs of the fuzz targets where clang is installed (not with --unit);
with FUZZ_SECONDS=N in the environment each target looks for new ones too, for N seconds.
The last line is "N passed, N failed".
TEXT
}

preset=release build=build unit_only=false layouts=false
while [ $# -gt 0 ]; do
    case $1 in
    --asan) preset=asan build=build-asan ;;
    --tsan) preset=tsan build=build-tsan ;;
    --unit) unit_only=true ;;
    --layouts) layouts=true ;;
    --help | -h) usage; exit 0 ;;
    *) die "unknown argument '$1'; --help" ;;
    esac
    shift
done

passed=0 failed=0 model=''
count() { passed=$((passed + $1)); failed=$((failed + $2)); }

build_tests() {
    say "configuring $build"
    configure "$preset" "$build" -DSLUICE_TESTS=ON
    say "building $build"
    ninja -C "$build" || die "the build failed (see above)"
}

run_ctest() {
    local report=$PWD/$build/ctest.xml
    say "C tests"
    rm -f "$report"
    # the real results are in the report: a failing test must not stop the others
    ctest --test-dir "$build" --output-on-failure --timeout 600 --no-tests=error --test-output-size-passed 1000000 \
        --test-output-size-failed 1000000 --output-junit "$report" || true
    [ -s "$report" ] || die "ctest wrote no report"
    count $(python3 scripts/test_counts.py ctest "$report")
}

make_venv() {
    local wanted
    wanted=$(sha256sum tests/requirements.txt | cut -d' ' -f1)
    [ "$(cat .venv/.requirements 2>/dev/null || true)" = "$wanted" ] && return 0
    say "making .venv with tests/requirements.txt"
    if ! python3 -m venv --clear .venv >/dev/null 2>&1; then
        apt_install python3-venv
        python3 -m venv --clear .venv >/dev/null || die "python3 -m venv .venv failed"
    fi
    .venv/bin/pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt ||
        die "pip could not install tests/requirements.txt"
    echo "$wanted" >.venv/.requirements
}

# The program that each comparison drives, and what else it wants to know.
golden_arguments() {
    case $1 in
    gguf_dequant_parity.py) echo "$build/tests/dequant_tool" ;;
    tokenizer_parity.py) echo "$build/tests/tokenize_tool" ;;
    template_parity.py) echo "$build/tests/template_tool --model $model" ;;
    hf_parity.py) echo "--tool $build/tests/logits_tool --device ref" ;;
    logits_parity.py) echo "--tool $build/tests/logits_tool --model $model --cache $build/golden" ;;
    *) die "tests/golden/$1: its arguments are missing in scripts/test.sh" ;;
    esac
}

run_golden() {
    local script name arguments code
    for script in tests/golden/*_parity.py; do
        name=${script##*/}
        arguments=$(golden_arguments "$name") || exit 1
        say "$name $arguments"
        # split on purpose: it is a list of words
        # shellcheck disable=SC2086
        code=0
        .venv/bin/python "$script" $arguments || code=$?
        case $code in
        0) count 1 0 ;;
        77) ;;                                    # it said why it is skipped
        *) echo "FAILED $name" >&2; count 0 1 ;;
        esac
    done
}

# What cannot run here is not begun, since a skipped test counts as failed: tests through proxies without a proxy, tests that
# replace malloc under a sanitizer, which does that too.
left_out=()
leave_out() {
    if ! has file:/usr/sbin/nginx && ! has file:/usr/sbin/haproxy; then
        say "left out without nginx and haproxy: tests/e2e/test_proxies.py"
        left_out+=(--ignore=tests/e2e/test_proxies.py)
    fi
    if [ "$preset" != release ]; then
        left_out+=(--ignore=tests/e2e/test_alloc_failure.py --deselect=tests/e2e/test_faults.py::test_engine_thread_allocates_nothing_after_ready)
    fi
}

run_e2e() {
    local report=$PWD/$build/pytest.xml
    ls tests/e2e/test_*.py >/dev/null 2>&1 || return 0
    # tests use them where they are; a machine of one's own is left as it is
    if [ -n "${CI:-}" ]; then
        install_missing "nginx-light file:/usr/sbin/nginx" "haproxy file:/usr/sbin/haproxy" "prometheus command:promtool"
    fi
    leave_out
    say "scripts, wire and end to end: pytest tests/scripts tests/http tests/e2e"
    rm -f "$report"
    SLUICE_BIN_DIR=$PWD/$build/bin SLUICE_START_SECONDS=600 .venv/bin/python -m pytest tests/scripts tests/http/bad_input.py tests/e2e -q \
        ${left_out[@]+"${left_out[@]}"} --junitxml "$report" || true
    [ -s "$report" ] || die "pytest wrote no report"
    count $(python3 scripts/test_counts.py pytest "$report")
}

# Every test of a running server again, with flags that all of them start it with.
run_layouts() {
    local flags report=$PWD/$build/pytest-layout.xml
    for flags in "--tensor-parallel-size 2 --pipeline-parallel-size 2" "--data-parallel-size 3"; do
        say "end to end with $flags"
        rm -f "$report"
        SLUICE_ARGS="$flags --cpu-threads 1" SLUICE_BIN_DIR=$PWD/$build/bin SLUICE_START_SECONDS=600 \
            .venv/bin/python -m pytest tests/e2e -q ${left_out[@]+"${left_out[@]}"} --junitxml "$report" || true
        [ -s "$report" ] || die "pytest wrote no report"
        count $(python3 scripts/test_counts.py pytest "$report")
    done
}

run_layouts_check() {
    say "layouts of ranks on $model"
    if "$build/tests/layouts_check" "$model"; then count 1 0; else echo "FAILED layouts_check" >&2; count 0 1; fi
}

# One target: new inputs are kept beside the build, so that a second call goes on from them; a crash leaves its input there.
fuzz_one() {
    local fuzzer=$1 name
    name=$(basename "$1" _fuzz)
    mkdir -p "build-fuzz/found/$name"
    "$fuzzer" -max_total_time="$FUZZ_SECONDS" -timeout=10 -rss_limit_mb=2048 -verbosity=0 -artifact_prefix="build-fuzz/found/$name-" \
        "build-fuzz/found/$name" "tests/fuzz/corpus/$name" >"$fuzzer.log" 2>&1
}

run_fuzzers() {
    local fuzzer
    say "each fuzz target for $FUZZ_SECONDS s"
    rm -f build-fuzz/fuzz/*.passed
    export -f fuzz_one
    export FUZZ_SECONDS
    printf '%s\0' build-fuzz/fuzz/*_fuzz | xargs -0 -n 1 -P "$(($(nproc) > 2 ? $(nproc) : 2))" bash -c 'if fuzz_one "$0"; then touch "$0.passed"; fi'
    for fuzzer in build-fuzz/fuzz/*_fuzz; do
        if [ -e "$fuzzer.passed" ]; then count 1 0
        else tail -n 40 "$fuzzer.log"; echo "FAILED $fuzzer" >&2; count 0 1
        fi
    done
}

run_fuzz_corpora() {
    local fuzzer corpus
    command -v clang >/dev/null 2>&1 || return 0
    ls tests/fuzz/*_fuzz.c >/dev/null 2>&1 || return 0
    say "stored inputs of the fuzz targets"
    configure fuzz build-fuzz
    ninja -C build-fuzz $(cd tests/fuzz && printf '%s ' *_fuzz.c | sed 's/\.c / /g') || die "the fuzz build failed (see above)"
    for fuzzer in build-fuzz/fuzz/*_fuzz; do
        corpus=${fuzzer##*/}
        corpus=tests/fuzz/corpus/${corpus%_fuzz}
        if "$fuzzer" -runs=0 -verbosity=0 "$corpus" >"$fuzzer.log" 2>&1; then count 1 0
        else tail -n 20 "$fuzzer.log"; echo "FAILED $fuzzer" >&2; count 0 1
        fi
    done
    if [ "${FUZZ_SECONDS:-0}" -gt 0 ]; then run_fuzzers; fi
}

install_missing "${BUILD_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
build_tests
run_ctest
if ! $unit_only; then
    model=$(scripts/fetch_model.sh) || exit 1
    make_venv
    if [ "$preset" = release ]; then
        run_golden
        run_layouts_check
        run_fuzz_corpora
    fi
    run_e2e
    if $layouts; then run_layouts; fi
fi
[ $((passed + failed)) -gt 0 ] || die "no test ran"
echo "$passed passed, $failed failed" | tee "$build/test-summary.txt"
[ "$failed" -eq 0 ]
