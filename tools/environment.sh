#!/usr/bin/env bash
# Create the environment that holds both trees, or make it anew when the requirement lists changed; else do nothing.
#
#     bash tools/environment.sh python3.11 .venv
#
# The stamp in the environment holds the hash of the lists it was made from. It is written last: an interrupted install
# leaves none, and the next call starts afresh, since pip takes a half-copied package for a whole one.
set -euo pipefail

python=$1 venv=$2
cd "$(dirname "$0")/.."
lists=(requirements-ms.txt requirements-pt.txt requirements-dev.txt requirements-nodeps.txt)
stamp=$venv/requirements.sha256
marker=$venv/made-by-environment.sh # only a folder with this file is ever removed
hash=$(cat "${lists[@]}" assets/wheels/*.whl | sha256sum | cut -d' ' -f1)

fail() {
    printf 'environment: %s\n' "$@" >&2
    exit 1
}

# MindSpore's wheel leaves out libgomp.so.1, which comes with a compiler; torch's carries one: give it to MindSpore.
link_libgomp() {
    "$venv/bin/python" -c 'import ctypes; ctypes.CDLL("libgomp.so.1")' 2>/dev/null && return
    local packages found
    packages=$(cd "$venv/lib/python3.11/site-packages" && pwd)
    found=$(find "$packages/torch/lib" -name 'libgomp*.so.1*' -print -quit)
    [ -n "$found" ] || fail "MindSpore needs libgomp.so.1; on Debian 12: apt install libgomp1"
    ln -s "$found" "$packages/mindspore/lib/libgomp.so.1"
}

if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$hash" ]; then
    exit 0
fi
command -v "$python" >/dev/null || fail \
    "$python is not on the PATH; wanted CPython 3.11, for which the packages are pinned" \
    "on Debian 12: apt install python3.11 python3.11-venv; elsewhere: make PYTHON=/path/to/python3.11"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$version" = 3.11 ] || fail \
    "$python is Python $version; wanted 3.11, for which the packages are pinned: make PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail \
    "$python cannot make virtual environments; on Debian 12: apt install python3.11-venv"

[ ! -e "$venv" ] || [ -e "$marker" ] || fail \
    "$venv exists and was not made here, so it is left alone; remove it, or: make VENV=/another/folder"

echo "environment: installing both trees into $venv (4.5 GB; minutes, once)"
rm -rf "$venv"
mkdir -p "$venv"
touch "$marker"
"$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all:)
"${pip[@]}" -r requirements-ms.txt -r requirements-pt.txt -r requirements-dev.txt
"${pip[@]}" --no-deps -r requirements-nodeps.txt
link_libgomp
echo "$hash" >"$stamp"
