#!/bin/bash
# The portable row's PTX assembled for every architecture it is for, and the sm_90a image: registers, spills and shared memory.
# Compiled, not run. usage: tests/gpu/compile.sh, after make; needs nvcc. Exits 1 when an architecture refuses the kernels.
set -u
cd "$(dirname "$0")/../.." || exit 1
failed=0
report() { # name: reads ptxas -v
    awk -v name="$1" '
        /Compiling entry function/ { split($0, q, "\047"); kernel = substr(q[2], 9) }
        /bytes stack frame/ && kernel != "" { if (!(kernel in spill)) { match($0, /[0-9]+ bytes spill stores/); spill[kernel] = substr($0, RSTART, RLENGTH) + 0 } }
        /Used [0-9]+ registers/ {
            match($0, /Used [0-9]+/); regs = substr($0, RSTART + 5, RLENGTH - 5) + 0
            smem = 0; if (match($0, /[0-9]+ bytes smem/)) smem = substr($0, RSTART, RLENGTH) + 0
            n++; if (regs > most) { most = regs; who = kernel }
            if (smem > most_smem) { most_smem = smem; smem_who = kernel }
            if (spill[kernel]) spills = spills " " kernel " " spill[kernel]
        }
        END { printf "| %-7s | %2d | %3d (%s) | %5d (%s) |%s |\n", name, n, most, who, most_smem, smem_who, spills ? spills : " none" }'
}
echo "| target | kernels | most registers | most static shared memory | spilled, bytes |"
echo "|---|---|---|---|---|"
for sm in 80 86 87 89 90 100 103 120 121; do
    log=$(ptxas -v -O3 -arch=sm_$sm -o /dev/null build/gpu/sm80.image 2>&1) || { echo "sm_$sm: refused: $log"; failed=1; continue; }
    report "sm_$sm" <<<"$log"
done
log=$(nvcc -std=c++17 -O3 -I. --expt-relaxed-constexpr -cubin -arch=sm_90a -Xptxas -v -o /dev/null arch/sm90/kernels.cu 2>&1) || failed=1
report sm_90a <<<"$log"
exit $failed
