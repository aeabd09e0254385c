#!/bin/bash
# The engine on this machine's GPU, from build/travel (make travel): the table, small models beside the CPU's reference, speed at
# true shapes, trouble made on purpose, and with NIB_RUN_FILE=1 loading 20b from a file. usage: tests/gpu/run.sh [FOLDER for files]
# Every wait is bounded; the last line counts failures.
set -u
cd "$(dirname "$0")/../.."
bin=build/travel dir=${1:-$(mktemp -d)} failed=0
try() {
    local limit=$1
    shift
    echo "+ $*"
    timeout "$limit" "$@" || { echo "FAILED ($?): $*"; failed=$((failed + 1)); }
}
nvidia-smi --query-gpu=name,driver_version,memory.used,ecc.mode.current --format=csv,noheader
try 30 $bin/nibble arch

try 30 $bin/nibble synth tiny "$dir/tiny.nib"
ask() { # socket: waits until the daemon is ready, then prints its greedy answers
    python3 - "$1" <<'END'
import http.client, json, socket, sys, time

class Socket(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(sys.argv[1])

def call(method, path, body=None):
    c = Socket("n")
    c.request(method, path, body, {"Content-Type": "application/json"})
    r = c.getresponse()
    return r.status, r.read()

for _ in range(600):
    try:
        if call("GET", "/health")[0] == 200:
            break
    except OSError:
        pass
    time.sleep(0.1)
for prompt in ("hello", "the quick brown fox", "1 2 3 4", "zebra"):
    body = json.dumps({"prompt": prompt, "max_tokens": 24, "temperature": 0})
    print(repr(json.loads(call("POST", "/v1/completions", body)[1])["choices"][0]["text"]))
END
}
answers() { # device row
    printf 'image:\n  path: %s\nengine:\n  device: %s\n  row: "%s"\n  ctx_tokens: 2048\n  slots: 4\n  threads: 4\nmemory:\n  limit_mib: 4096\nsocket:\n  path: %s\n' \
        "$dir/tiny.nib" "$1" "$2" "$dir/$1.sock" >"$dir/$1.yaml"
    $bin/nibbled --config "$dir/$1.yaml" 2>"$dir/$1.log" &
    local daemon=$! i
    ask "$dir/$1.sock"
    kill "$daemon"
    for ((i = 0; i < 100; i++)); do kill -0 "$daemon" 2>/dev/null || break; sleep 0.1; done
    kill -0 "$daemon" 2>/dev/null && { echo "FAILED: nibbled does not stop"; kill -9 "$daemon"; }
    wait "$daemon"
}
answers cpu ref >"$dir/cpu.txt"
answers gpu "" >"$dir/gpu.txt"
head -3 "$dir/gpu.log"
paste -d '\n' "$dir/cpu.txt" "$dir/gpu.txt"
cmp -s "$dir/cpu.txt" "$dir/gpu.txt" && echo "answers: the same" || echo "answers: differ (a near tie may turn in bf16)"

for batch in 1 8 64; do try 120 $bin/nibble bench --device gpu --shape 20b --prompt 1024 --tokens 128 --batch $batch; done
try 120 $bin/nibble bench --device gpu --shape 20b --prompt 1024 --tokens 128 --mask sm90
try 180 $bin/nibble bench --device gpu --shape 120b --prompt 1024 --tokens 128

NIB_BUILD=$bin try 200 python3 tests/gpu/trouble.py

if [ -n "${NIB_RUN_FILE:-}" ]; then
    try 200 $bin/nibble synth 20b "$dir/20b.nib" --vocab etc/o200k/o200k_base.tiktoken
    for pass in 1 2; do try 120 $bin/nibble bench "$dir/20b.nib" --device gpu --prompt 1024 --tokens 64; done
fi
echo "$failed failed"
[ "$failed" -eq 0 ]
