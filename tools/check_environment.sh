#!/usr/bin/env bash
# Try one tree with a Python of your choice, as its users install it: a fresh environment from that tree's lists alone, then the
# tests that need no other framework.
#
#     bash tools/check_environment.sh python3.12 ms            (minutes; the environment is removed again)
#     bash tools/check_environment.sh python3.11 pt
set -euo pipefail

python=$1 tree=$2
cd "$(dirname "$0")/.."
case $tree in ms | pt) ;; *)
    echo "got tree $tree, wanted ms or pt" >&2
    exit 2
    ;;
esac
venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
"$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all:)
"${pip[@]}" -r "requirements-$tree.txt"
"${pip[@]}" --no-deps -r requirements-nodeps.txt
# pytest and what it needs; the other lists would bring the other framework
"${pip[@]}" $(grep -E '^(pytest|pytest-xdist|execnet|iniconfig|pluggy|Pygments|packaging)==' requirements-dev.txt | cut -d' ' -f1)
"$venv/bin/python" -c 'import sys; print("Python", sys.version)'
TREE_ONLY=$tree "$venv/bin/python" -m pytest -m "not slow" tests/e2e/test_one_framework.py tests/e2e/test_command_lines.py \
    tests/invariants tests/mirror tests/parity/test_text.py
