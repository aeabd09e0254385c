#!/usr/bin/env python3
"""Boot on this machine's GPU, measured: the time to READY beside plain reads of the same file, memory beside the plan, plans
of smaller cards and their answers, and nothing taken over thousands of steps.

usage: tests/gpu/boot.py [--shape 20b | --image FILE] [--parts small,load,counted,limits] [--steps 10000] [--folder DIR]
Programs and the counting libraries are taken from NIB_BUILD (make travel: build/travel). Nothing but Python's own library is
needed. With NIBBLED_LIBCUDA and NIBBLED_FAKE_PROFILE it runs on the stand-in, to test itself. Every wait is bounded; the last
line counts failures."""

import argparse
import hashlib
import json
import mmap
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "wire"))
import daemon as d  # noqa: E402
import gpu_load  # noqa: E402

PIECE = 4 << 20
READERS = min(16, os.cpu_count())
SMALL_CARDS_GIB = (24, 16, 12, 8)
failed = 0


def check(good, text):
    global failed
    failed += not good
    print(f"{'  ok ' if good else '  FAILED '} {text}", flush=True)


def first(pattern, text, default=""):
    found = re.search(pattern, text)
    return found.group(1).strip() if found else default


def output(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def used_mib():
    text = output("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
    return int(text.split()[0]) if text.strip() else 0


def describe(folder):
    cpu = output("lscpu")
    print(f"{first('Model name:(.*)', cpu)}, {os.cpu_count()} CPUs, {first('Thread.s. per core:(.*)', cpu)} threads a core, "
          f"{os.sysconf('SC_PHYS_PAGES') * 4096 >> 30} GiB; "
          + output("nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader").strip())
    print("disk:", " ".join(output("df", "-hT", str(folder)).split("\n")[-2:]).strip())


def in_threads(work, count):
    """Seconds that `count` threads take for work(number)."""
    threads = [threading.Thread(target=work, args=[n]) for n in range(count)]
    begin = time.monotonic()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return time.monotonic() - begin


def hash_rates():
    """SHA-256 of pieces of 256 KiB in the cache, as the readers do it."""
    data, times = bytes(256 << 10), 1200

    def work(_):
        h = hashlib.sha256()
        for _ in range(times):
            h.update(data)

    rates = [f"{n}: {n * times * len(data) / in_threads(work, n) / 1e9:.2f}" for n in (1, READERS // 2 or 1, READERS)]
    print("SHA-256, GB/s by threads:", ", ".join(rates), flush=True)


def read_plain(path, readers, direct):
    """Seconds to read all of the file, in pieces handed to readers as they come, and nothing else."""
    size = path.stat().st_size
    todo = iter(range(0, size, PIECE))
    lock = threading.Lock()
    fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
    buffers = [mmap.mmap(-1, PIECE) for _ in range(readers)]
    for b in buffers:
        b.write(bytes(PIECE))
    got = [0] * readers

    def work(n):
        while True:
            with lock:
                at = next(todo, None)
            if at is None:
                return
            got[n] += os.preadv(fd, [buffers[n]], at)

    took = in_threads(work, readers)
    os.close(fd)
    assert sum(got) == size, (sum(got), size)
    return took


def drop(path):
    """Out of the page cache."""
    os.sync()
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)
    try:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        pass


class Boot:
    """Starts daemons and measures them."""

    def __init__(self, folder, image, env):
        self.folder, self.image, self.env, self.number = folder, image, env, 0

    def start(self, env=None, **sections):
        self.number += 1
        folder = self.folder / f"daemon{self.number}"
        sections.setdefault("engine", {"device": "gpu", "slots": 0, "ctx_tokens": 0})
        return d.Daemon(folder, self.image, env={**self.env, **(env or {})}, wait=False, **sections)

    def ready_s(self):
        """Seconds from exec to READY, the line of the parts, and how many STATUS lines told of progress."""
        path = self.folder / f"notify{self.number}"
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(str(path))
        notify.settimeout(120)
        begin = time.monotonic()
        daemon = self.start(env={"NOTIFY_SOCKET": str(path)})
        try:
            told, text = 0, ""
            while "READY=1" not in text:
                text = notify.recv(4096).decode()
                told += "STATUS=loading" in text
            took = time.monotonic() - begin
            daemon.stop()
            return took, first("loaded: (.*)", daemon.log.read_text()), told
        finally:
            daemon.kill()
            notify.close()


def load_times(boot, cold):
    size = boot.image.stat().st_size / 1e9
    for name, passes in (("page cache", 5), ("disk", cold)):
        reads, readies = [], []
        for n in range(passes):
            def fresh():
                if name == "disk":
                    drop(boot.image)
            fresh()
            reads.append(read_plain(boot.image, READERS, False))
            if name == "disk":
                fresh()
                reads.append(read_plain(boot.image, READERS, True))
            elif n == 0:
                alone = read_plain(boot.image, 1, False)
                print(f"page cache, one reader: {alone:.2f} s ({size / alone:.1f} GB/s)")
            fresh()
            took, parts, told = boot.ready_s()
            readies.append(took)
            print(f"{name}: {READERS} readers " + " ".join(f"{r:.2f}" for r in reads[-2 if name == 'disk' else -1:]) +
                  f" s; READY {took:.2f} s, {told} STATUS; {parts}", flush=True)
        if not readies:
            continue
        rate = size / max(readies)
        print(f"{name}: {size:.2f} GB; best plain read {min(reads):.2f} s; READY {min(readies):.2f} to {max(readies):.2f} s: "
              f"{max(readies) / min(reads):.2f} x the read, {rate:.1f} GB/s or more in all")


def planned(boot, daemon):
    text = subprocess.run([d.NIBBLED, "--config", daemon.config, "--plan"], check=True, capture_output=True, text=True,
                          env={**os.environ, **boot.env}, timeout=60).stdout
    return {space: int(n) for space, n in re.findall(r"(device|pinned|host) +arena +(\d+)", text)}


def counted(boot, steps, clients, label, **sections):
    """A daemon over both counters: what boot took is the plan; then nothing is taken any more."""
    counters = gpu_load.Counters(pathlib.Path(tempfile.mkdtemp(dir=boot.folder)), real=boot.env.get("NIBBLED_LIBCUDA"))
    before = used_mib()
    daemon = boot.start(env={**counters.env}, **sections)
    try:
        daemon.wait_ready()
        after = used_mib()
        took = counters.cuda.values()
        daemon_log = daemon.log.read_text()
        print(f"{label}: {first('the (driver took.*)', daemon_log)}; card {before} -> {after} MiB "
              f"({after - before - (took['device_bytes'] >> 20)} beside the plan); free at the probe {took['free_first']} of "
              f"{took['total']}")
        done, taken = gpu_load.check_sealed(daemon, counters, steps, clients=clients)
        print(f"  {done} steps: {taken}, driver's own {counters.host.driver}, free memory looked at "
              f"{counters.cuda.looks} times; resident {output('grep', 'VmRSS', f'/proc/{daemon.process.pid}/status').split()[1:2]}")
        check(done >= steps and counters.cuda.looks > 0 and not any(taken.values()), f"nothing taken in {done} steps")
        daemon.check_ledger()
        daemon.stop()
        plan = planned(boot, daemon)
        check((took["device_allocs"], took["pinned_allocs"]) == (1, 1) and
              (took["device_bytes"], took["pinned_bytes"]) == (plan["device"], plan["pinned"]),
              f"taken: device {took['device_bytes']} pinned {took['pinned_bytes']}; planned: {plan}")
    finally:
        daemon.kill()


def answers(daemon):
    """Greedy answers with their log-probabilities, alone and eight at once."""
    prompts = ["hello", "the quick brown fox", "1 2 3 4", "zebra " * 60]
    body = {"temperature": 0, "max_tokens": 48, "logprobs": 3}
    found = [daemon.complete(p, **body).json["choices"] for p in prompts]
    at_once = [None] * 8

    def ask(n):
        at_once[n] = daemon.complete(prompts[n % 4] + str(n), **body).json["choices"]

    in_threads(ask, len(at_once))
    return json.dumps(found + at_once, sort_keys=True)


def speed(daemon):
    """Tokens a second of one answer."""
    name = "inter_token_seconds"
    before = daemon.metrics()
    daemon.complete("hello", temperature=0, max_tokens=100)
    after = daemon.metrics()
    spent, count = (after[f"{name}_{k}"] - before[f"{name}_{k}"] for k in ("sum", "count"))
    return count / spent if spent else 0


def small_cards(boot, sizes_mib):
    """The same answers, bit for bit, whatever card the plan is for; and how fast."""
    wanted = None
    for mib in (0, *sizes_mib):
        daemon = boot.start(engine={"device": "gpu", "slots": 8, "ctx_tokens": 4096}, memory={"limit_mib": mib})
        try:
            daemon.wait_ready()
            log = daemon.log.read_text()
            got = answers(daemon)
            wanted = wanted or got
            rates = sorted(speed(daemon) for _ in range(3))
            plan = first(r"(\d+ MiB planned.*?pinned\))", log)
            check(got == wanted, f"{mib >> 10 or 'all'} GiB: {'the same answers' if got == wanted else 'OTHER answers'}, "
                                 f"{rates[1]:.1f} tokens/s; {plan}; {first('(weights [0-9].*?GB/s.)', log)}")
            daemon.stop()
        except (AssertionError, OSError) as e:
            check(False, f"{mib} MiB: {e}")
        finally:
            daemon.kill()


def guarded(what, *args, **more):
    try:
        what(*args, **more)
    except Exception as e:  # the rest is still worth running
        check(False, f"{what.__name__}: {e!r}"[:600])


def make_image(shape, path):
    command = [str(d.NIBBLE), "synth", shape, str(path)]
    if shape not in ("nano", "tiny"):
        command += ["--vocab", str(d.ROOT / "etc" / "o200k" / "o200k_base.tiktoken")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--shape", default="20b")
    ask.add_argument("--small", default="tiny", help="the shape that runs most of the steps")
    ask.add_argument("--steps", type=int, default=10000)
    ask.add_argument("--folder", default=None)
    ask.add_argument("--image", type=pathlib.Path, help="an image that is there already, of any shape")
    ask.add_argument("--parts", default="small,load,counted,limits", help="which of them to run")
    ask.add_argument("--cold", type=int, default=2, help="loads from the cold disk")
    ask.add_argument("--limits", default=",".join(str(g << 10) for g in SMALL_CARDS_GIB), help="MiB of smaller cards")
    args = ask.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(dir=args.folder))
    env = {k: os.environ[k] for k in ("NIBBLED_LIBCUDA", "NIBBLED_FAKE_PROFILE") if k in os.environ}
    try:
        describe(folder)
        hash_rates()
        parts = args.parts.split(",")
        image, making = args.image, None
        if not image:
            image = folder / "model.nib"
            making = make_image(args.shape, image)
        if "small" in parts:
            small = Boot(folder, d.synth(folder, args.small), env)
            guarded(counted, small, args.steps, 8, args.small, engine={"device": "gpu", "ctx_tokens": 4096, "slots": 8},
                    memory={"limit_mib": 4096})
        if making and making.wait(240) != 0:
            raise SystemExit("the image cannot be made")
        boot = Boot(folder, image, env)
        if "load" in parts:
            os.sync()
            read_plain(image, READERS, False)
            guarded(load_times, boot, args.cold)
        if "counted" in parts:
            guarded(counted, boot, args.steps // 5, 24, args.shape)
        if "limits" in parts:
            guarded(small_cards, boot, [int(m) for m in args.limits.split(",")])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{failed} failed")
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
