#!/bin/sh
# From a bare machine to a working .venv: system packages, Python, pinned dependencies. Run by `make`.
#
#   PYTHON=python3.12   the interpreter to use; otherwise the first one found that is new enough
#   TORCH_INDEX=URL     a package index that has other builds of torch, for example https://download.pytorch.org/whl/cpu
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "setup: $1" >&2
    exit 1
}

# 1. What MuJoCo draws with where there is no display, and a compiler for the kernels of quantized policies. Other systems
# than Debian and Ubuntu bring their own OpenGL.
packages="libegl1 libgl1-mesa-dri libosmesa6 g++"
if ! command -v python3 >/dev/null 2>&1 || ! python3 -c 'import ensurepip' 2>/dev/null; then
    packages="$packages python3 python3-venv"
fi
if command -v dpkg >/dev/null 2>&1; then
    missing=""
    for package in $packages; do
        dpkg -s "$package" 2>/dev/null | grep -q '^Status: install ok installed' || missing="$missing $package"
    done
    if [ -n "$missing" ]; then
        [ "$(id -u)" = 0 ] || fail "missing system packages; run: sudo apt-get install -y$missing"
        echo "setup: installing$missing"
        apt-get update -qq
        # shellcheck disable=SC2086  # one word a package
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
    fi
fi

# 2. Python.
python=""
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
[ -n "$python" ] || fail "no Python >= 3.11 with venv found; install one, or name it: make PYTHON=/path/to/python3"
[ -x .venv/bin/python ] || "$python" -m venv .venv

# 3. Packages, torch first: its builds differ by machine, everything else is the same everywhere.
pip="env PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -m pip install -qq"
echo "setup: installing Python packages into .venv"
$pip ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"
$pip -c constraints.txt -e '.[dev]'
