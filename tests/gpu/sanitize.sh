#!/bin/bash
# Every kernel under compute-sanitizer's four tools, on this machine's GPU: kernels_gpu_test --only each, whose buffers are
# allocations of their own. usage: tests/gpu/sanitize.sh [PROGRAM [FOLDER for logs]]. Takes about two minutes; each run is
# bounded. Prints a line a run; exits 1 when a tool found something or did not get to its end.
set -u
program=${1:-build/rel/tests/gpu/kernels_gpu_test} logs=${2:-$(mktemp -d)} failed=0
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1)
[ -n "$sanitizer" ] || { echo "there is no compute-sanitizer on this machine"; exit 1; }
for row in sm90 sm80; do
    for tool in memcheck racecheck initcheck synccheck; do
        log=$logs/$row-$tool.log start=$SECONDS
        timeout 100 "$sanitizer" --tool $tool --error-exitcode 9 --print-limit 5 "$program" --row $row --only each >"$log" 2>&1
        code=$?
        if [ $code -eq 0 ] && grep -q '^all good' "$log" && grep -q 'SUMMARY: 0 errors\|(0 errors' "$log"; then
            echo "ok     $row $tool: $((SECONDS - start)) s"
        else
            failed=1
            echo "FAILED $row $tool: exit code $code after $((SECONDS - start)) s; $log"
            grep -v '^=* *Saved host\|^=* *Host Frame' "$log" | grep -A6 'Error:\|Warning:\|Invalid\|Uninit\|Race\|hazard\|Barrier\|FAILED\|Internal\|SUMMARY' | head -n 14
        fi
    done
done
exit $failed
