#!/bin/bash
# The speeds in the table of README.md in one run, on this machine's GPU, from build/travel (make travel) and made-up weights: the tests of the
# kernels side by side, then the engine and the daemon, what matters most first. About six minutes on an H200; nothing is begun after SECONDS
# (default 400), and what was left out is said. usage: tests/gpu/table.sh [SECONDS]. Exits 1 when a test or a run failed.
set -u
cd "$(dirname "$0")/../.." || exit 1
limit=${1:-400} bin=$PWD/build/travel work=$(mktemp -d) failed=0
trap 'rm -rf "$work"' EXIT
export bin work

# a run, unless it is too late: what is worth knowing of what it says, and how long it took
try() {
    local said=$1 start=$SECONDS
    shift
    if [ "$SECONDS" -ge "$limit" ]; then
        echo "- left out: $*"
        return
    fi
    echo "+ $*"
    timeout 90 "$@" >"$work/said" 2>&1 || { echo "FAILED ($?)"; tail -n 3 "$work/said"; failed=1; }
    grep -E "$said" "$work/said"
    echo "  $((SECONDS - start)) s"
}
engine() { try '^  (prefill|decode) ' "$bin/nibble" bench --device gpu "$@"; }
serve() {
    try '^ +([0-9]|beside)' "$bin/nibble" bench serve --device gpu --shape 20b --temperature 0 --vocab etc/o200k/o200k_base.tiktoken "$@"
}

# one test of one row
part() {
    local log=$work/$1.$2 start=$SECONDS code=0
    timeout 180 "$bin/kernels_gpu_test" --row "$1" --only "$2" >"$log" 2>&1 || code=$?
    echo "$1 $2: $(grep -c '^ok' "$log") parts in $((SECONDS - start)) s$([ $code -eq 0 ] || echo ", FAILED ($code)")"
    [ $code -eq 0 ] || grep FAILED "$log" | head -n 3
    return $code
}
export -f part
tests() { printf '%s\n' "$@" | xargs -P "$side" -L 1 bash -c 'part $0 $1' || failed=1; }

nvidia-smi --query-gpu=name,clocks.sm,power.draw,temperature.gpu --format=csv,noheader
side=7
tests "sm90 "{kv8,routing,extremes,sizes,contexts,ops,mxfp8,each,head,invariance,late,token,sampler} "sm80 "{ops,each,head,mxfp8,invariance,sampler}
side=1 # these want the device for themselves
tests "sm90 "{stuck,faults}
echo "tests: $SECONDS s"

engine --shape 20b --prompt 1024 --tokens 512
for batch in 64 256 2 4 8; do engine --shape 20b --prompt 1024 --tokens 128 --batch $batch; done
engine --shape 20b --prompt 1024 --tokens 512 --dense mxfp8
engine --shape 120b --prompt 1024 --tokens 256
engine --shape 120b --prompt 1024 --tokens 128 --batch 64
serve --clients 256 --requests 512 --prompt 1024 --tokens 1024
engine --shape 20b --prompt 32000 --rows 2048 --tokens 256
engine --shape 120b --prompt 2048 --rows 2048 --tokens 64
engine --shape 20b --prompt 2048 --rows 2048 --tokens 64
serve --clients 1,8 --requests 1,8 --prompt 64 --tokens 2560 --beside 32768
serve --clients 1 --requests 6 --prompt 1024 --tokens 512
try 'answers' env NIB_BUILD="$bin" python3 tests/wire/golden.py sm90 sm80
try 'completion' env NIB_BUILD="$bin" python3 tests/gpu/neighbours.py sm90
engine --shape 20b --prompt 512 --tokens 512
for batch in 1 64; do engine --shape 20b --prompt 1024 --tokens 128 --batch $batch --kv fp8; done
echo "$SECONDS s"
exit $failed
