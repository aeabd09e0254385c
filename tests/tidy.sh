#!/usr/bin/env bash
# Checks the tree's own rules: who may include whom, header alone, sizes, exported names, format; clang-tidy with --full.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
bad=0
complain() { echo "tidy: $*"; bad=1; }

mapfile -t sources < <(git ls-files 'core/*.c' 'core/*.h' 'arch/*.c' 'arch/*.h' 'gpu/*.c' 'gpu/*.h' 'appliance/*.c' 'appliance/*.h' 'tools/*.c' 'tools/*.h')

# appliance -> gpu -> arch -> core; nothing includes appliance but appliance and tools
includes() { grep -nE "^#include \"$1/" $(git ls-files "$2/*.[ch]" "$2/**/*.[ch]" | sort -u) /dev/null; }
for pair in "arch core" "appliance core" "tools core" "gpu core" "appliance arch" "tools arch" "gpu arch" "appliance gpu" "tools gpu"; do
    read -r what where <<<"$pair"
    found=$(includes "$what" "$where") && complain "$where may not include $what: $found"
done
only() { # header pattern, allowed file pattern
    found=$(grep -lE "^#include <($1)>" "${sources[@]}" | grep -vE "$2") && complain "$1 is only for $2: $found"
}
only 'yaml\.h' '^appliance/config'
only 'systemd/.*' '^appliance/(notify|log)\.c$'
only 'curl/.*|histedit\.h' '^tools/'
only 'microhttpd\.h' '^appliance/'
# boot and tools only: the image's writer may take heap
found=$(grep -nE '\b(malloc|calloc|realloc|strdup)\(' $(git ls-files 'core/*.c')) && complain "core allocates: $found"

for f in "${sources[@]}"; do
    lines=$(wc -l <"$f")
    case "$f" in *_table.c) continue ;; esac
    [ "$lines" -le 800 ] || complain "$f has $lines lines, allowed are 800"
    case "$f" in *.c) head -n 1 "$f" | grep -q '^/\*' || complain "$f does not begin by saying what it owns" ;; esac
done
found=$(grep -nP '\t| +$' "${sources[@]}") && complain "tabs or trailing blanks: $(head -n 3 <<<"$found")"

for h in $(git ls-files 'core/*.h' 'arch/*.h' 'gpu/*.h' 'appliance/*.h' 'tools/*.h'); do
    case "$h" in
    arch/x86/*) flags="-mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512bf16" ;;
    arch/cuda/geometry.h) continue ;; # the body of each row's table.c, not a header of its own
    arch/cuda/table.h) flags='-DNIB_SM=90 -DNIB_ROW=sm90 -DNIB_IMAGE=""' ;;
    arch/cuda/*|arch/sm90/*) flags="-DNIB_SM=90" ;;
    *) flags= ;;
    esac
    # shellcheck disable=SC2086
    "${CC:-gcc}" -std=c11 -D_GNU_SOURCE -I. $flags -Wall -Wextra -fsyntax-only -x c "$h" 2>/tmp/nib_tidy.$$ ||
        complain "$h does not compile alone: $(head -n 2 /tmp/nib_tidy.$$)"
done
rm -f /tmp/nib_tidy.$$

if [ -f build/rel/libnib.a ]; then
    found=$(nm -g --defined-only build/rel/libnib.a | awk 'NF == 3 && $3 !~ /^nib_/ { print $3 }')
    [ -z "$found" ] || complain "exported names without nib_: $found"
fi

if command -v clang-format >/dev/null; then
    for f in $(git ls-files '*.c' '*.h'); do
        clang-format --dry-run --Werror "$f" 2>/dev/null || complain "$f is not formatted (make format)"
    done
fi
if [ "${1:-}" = --full ]; then
    for f in "${sources[@]}"; do
        case "$f" in
        *_avx2.c) flags="-mavx2 -mfma -mf16c" ;;
        arch/x86/*_amx.c | *_avx512.c | arch/x86/*.h)
            flags="-mavx2 -mfma -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni -mavx512bf16 -mamx-tile -mamx-bf16" ;;
        *) flags= ;;
        esac
        # shellcheck disable=SC2086
        clang-tidy --quiet "$f" -- -std=c11 -D_GNU_SOURCE -I. $flags -DNIB_VERSION='"0"' -DNIB_DATADIR='"/d"' \
            -DNIB_SYSCONFDIR='"/etc"' 2>/dev/null | grep -E 'warning|error'
    done
fi
[ $bad -eq 0 ] && echo "tidy: the tree keeps its rules"
exit $bad
