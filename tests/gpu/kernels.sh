#!/bin/bash
# The kernels on this machine's GPU: correctness of both rows and the sanitizers, side by side, about two minutes; then speed.
# usage: tests/gpu/kernels.sh FOLDER [--no-bench]. FOLDER holds kernels_gpu_test and gets the logs. Prints what failed, the largest errors and the
# figures; exits 1 when anything failed.
set -u
here=$(cd "$(dirname "$0")" && pwd) dir=$1 failed=0
nvidia-smi --query-gpu=name,clocks.sm,clocks.mem,temperature.gpu,power.draw --format=csv,noheader
for row in sm90 sm80; do
    timeout 300 "$dir/kernels_gpu_test" --row $row >"$dir/$row.log" 2>&1 &
done
bash "$here/sanitize.sh" "$dir/kernels_gpu_test" "$dir" || failed=1
wait
for row in sm90 sm80; do
    if tail -n 1 "$dir/$row.log" | grep -q '^all good'; then
        echo "ok     $row: $(grep -c '^ok' "$dir/$row.log") parts"
    else
        failed=1
        echo "FAILED $row"
        grep -v '^ok\|^device\|regist\|^$\|^largest' "$dir/$row.log" | tail -n 12
    fi
done
grep '^largest' "$dir/sm90.log"
if [ "${2:-}" != --no-bench ]; then
    timeout 100 "$dir/kernels_gpu_test" --row sm90 --bench 20b
    timeout 100 "$dir/kernels_gpu_test" --row sm90 --bench 120b
    timeout 60 "$dir/kernels_gpu_test" --row sm80 --bench 20b
fi
exit $failed
