#!/bin/sh
# The kernels on this machine's GPU: correctness of every row, then speed. usage: tests/gpu/kernels.sh FOLDER [VARIANT...]
# FOLDER holds kernels_gpu_test; FOLDER/VARIANT other builds of it, of which only decode is timed.
set -u
dir=$1
shift
nvidia-smi --query-gpu=name,clocks.sm,clocks.mem,temperature.gpu,power.draw --format=csv,noheader
timeout 240 "$dir/kernels_gpu_test"
timeout 100 "$dir/kernels_gpu_test" --row sm90 --bench 20b
timeout 100 "$dir/kernels_gpu_test" --row sm90 --bench 120b
timeout 60 "$dir/kernels_gpu_test" --row sm80 --bench 20b
for v in "$@"; do
    echo "variant $v"
    timeout 60 "$dir/$v" --row sm90 --bench 20b --no-prompt
done
