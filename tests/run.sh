#!/usr/bin/env bash
# Runs every test: the Check programs under ASan and UBSan, then the Python tests (tools and wire) against the same
# build. --no-python leaves the latter out. Prints one line a program and a closing count; exits 1 on any failure.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

export ASAN_OPTIONS="${ASAN_OPTIONS:-abort_on_error=0:detect_leaks=1:allocator_may_return_null=1}"
export UBSAN_OPTIONS="${UBSAN_OPTIONS:-print_stacktrace=1:halt_on_error=1}"
jobs=$(nproc)
make -s -j"$jobs" VARIANT=san all tests || exit 1
make -s -j"$jobs" VARIANT=rel all || exit 1

# one line a program; the last lines of its log when it failed
run_one() {
    name=$(basename "$1") log="$1.log"
    if timeout 600 "$1" >"$log" 2>&1; then
        printf 'ok    %-28s %s\n' "$name" "$(grep -o 'Checks: [0-9]*' "$log" | tail -n 1)"
    else
        printf 'FAIL  %s\n%s\n' "$1" "$(tail -n 40 "$log")"
    fi
}
export -f run_one
results=build/san/results
make -s VARIANT=san print-tests | tr ' ' '\n' | xargs -P "$jobs" -I{} bash -c 'run_one {}' | tee "$results"
passed=$(grep -c '^ok ' "$results")
failed=$(grep -c '^FAIL ' "$results")

if [ "${1:-}" != --no-python ]; then
    venv=build/venv
    if ! cmp -s tests/requirements.txt "$venv/requirements.txt"; then
        rm -rf "$venv" && python3 -m venv "$venv" && "$venv/bin/pip" install -q -r tests/requirements.txt &&
            cp tests/requirements.txt "$venv/requirements.txt" || exit 1
    fi
    if NIB_BUILD="$PWD/build/san" "$venv/bin/python" -m pytest -q -p no:cacheprovider tests; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
    fi
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
