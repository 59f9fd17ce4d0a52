# lib.sh - what the scripts share: how they speak, fail and install. Sourced, never run.

readonly BOLD=$([ -t 1 ] && printf '\033[1m' || true) PLAIN=$([ -t 1 ] && printf '\033[0m' || true)

say() { printf '%s==>%s %s\n' "$BOLD" "$PLAIN" "$*"; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# What a build needs, as "package probe": a command, a pkg-config name, or a file.
readonly BUILD_PACKAGES=(
    "build-essential command:cc" "cmake command:cmake" "ninja-build command:ninja" "pkg-config command:pkg-config"
    "curl command:curl" "python3 command:python3" "ca-certificates file:/etc/ssl/certs/ca-certificates.crt"
    "libmicrohttpd-dev module:libmicrohttpd" "libuv1-dev module:libuv" "libcjson-dev module:libcjson"
    "libpcre2-dev module:libpcre2-8" "libutf8proc-dev file:/usr/include/utf8proc.h" "libyaml-dev module:yaml-0.1"
    "libssl-dev module:libcrypto"
)
readonly TEST_PACKAGES=( "libcmocka-dev module:cmocka" "git command:git" )

# has PROBE: is it there?
has() {
    case $1 in
    command:*) command -v "${1#*:}" >/dev/null 2>&1 ;;
    module:*) pkg-config --exists "${1#*:}" 2>/dev/null ;;
    file:*) [ -e "${1#*:}" ] ;;
    *) die "unknown probe $1" ;;
    esac
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"
    elif command -v sudo >/dev/null 2>&1; then sudo "$@"
    else die "installing needs root or sudo; missing: ${missing[*]}"
    fi
}

# apt_install PACKAGE...: quiet, with the whole output in a file that the error names.
apt_install() {
    local apt_log=${TMPDIR:-/tmp}/sluice-apt-$$.log missing=("$@")

    command -v apt-get >/dev/null 2>&1 || die "no apt-get here; install the equivalents of: $*"
    say "installing $# packages: $*"
    { as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -q update &&
      as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -q install -y --no-install-recommends "$@"
    } >"$apt_log" 2>&1 </dev/null ||
        die "apt-get failed: $(grep -E '^(E|Err|W):?' "$apt_log" | tail -n 1 || true) (all of it: $apt_log)"
    rm -f "$apt_log"
}

# install_missing "package probe"...: installs what its probe does not find.
install_missing() {
    local row packages=()

    for row in "$@"; do has "${row#* }" || packages+=("${row% *}"); done
    [ ${#packages[@]} -eq 0 ] && return 0
    apt_install "${packages[@]}"
    for row in "$@"; do has "${row#* }" || die "package ${row% *} is installed, but ${row#* } is still missing"; done
}

# configure PRESET DIR [-DNAME=VALUE...]: only when the folder was never configured, or for another place of the source.
configure() {
    local preset=$1 dir=$2
    shift 2
    if [ -f "$dir/CMakeCache.txt" ] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$PWD" "$dir/CMakeCache.txt"; then
        say "$dir was made for another folder; starting afresh"
        rm -rf "$dir/CMakeCache.txt" "$dir/CMakeFiles" "$dir/build.ninja"
    fi
    [ -f "$dir/build.ninja" ] && [ $# -eq 0 ] && return 0
    command -v ccache >/dev/null 2>&1 && set -- "$@" -DCMAKE_C_COMPILER_LAUNCHER=ccache
    cmake --preset "$preset" "$@" >"$dir.log" 2>&1 || {
        grep -m 4 -A 4 'CMake Error' "$dir.log" >&2 || true
        die "cmake --preset $preset failed (all of it: $dir.log)"
    }
    rm -f "$dir.log"
}

# A Python with pip: the system's, or a private environment. Prints its path; says nothing else.
python_with_pip() {
    local venv=$1
    if python3 -m pip --version >/dev/null 2>&1; then echo python3; return; fi
    if [ ! -x "$venv/bin/pip" ]; then
        rm -rf "$venv"
        python3 -m venv "$venv" >/dev/null 2>&1 || {
            rm -rf "$venv"
            apt_install python3-venv >&2
            python3 -m venv "$venv" >/dev/null 2>&1 || die "python3 -m venv $venv failed"
        }
    fi
    echo "$venv/bin/python"
}
