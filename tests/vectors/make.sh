#!/usr/bin/env bash
# Compares the tree with its references at full length: runs every tests/vectors/*_full.* there is. Takes minutes.
# PYTHON names an interpreter that has tests/vectors/requirements.txt; without it, one is made in build/venv-vectors.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ -z "${PYTHON:-}" ]; then
    venv=build/venv-vectors
    if ! cmp -s tests/vectors/requirements.txt "$venv/requirements.txt"; then
        rm -rf "$venv"
        python3 -m venv "$venv"
        "$venv/bin/pip" install -q -r tests/vectors/requirements.txt
        cp tests/vectors/requirements.txt "$venv/requirements.txt"
    fi
    PYTHON="$PWD/$venv/bin/python"
fi
export PYTHON
make -s -j"$(nproc)" VARIANT=rel all

failed=0
for script in tests/vectors/*_full.*; do
    echo "== $script"
    case "$script" in
    *.py) "$PYTHON" "$script" || failed=$((failed + 1)) ;;
    *.sh) bash "$script" || failed=$((failed + 1)) ;;
    esac
done
echo "$failed failed"
[ "$failed" -eq 0 ]
