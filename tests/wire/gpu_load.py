"""Steps of every kind through a daemon on a GPU, and what was taken from libcuda and the C library meanwhile."""

import ctypes
import mmap
import random
import threading
import time

import daemon as d


class Shared(ctypes.Structure):
    """Counts in a file that the counting library maps too."""

    @classmethod
    def make(cls, path):
        path.write_bytes(bytes(ctypes.sizeof(cls)))
        with open(path, "r+b") as f:
            return cls.from_buffer(mmap.mmap(f.fileno(), ctypes.sizeof(cls)))

    def values(self):
        return {n: getattr(self, n) for n, _ in self._fields_}

    def clear(self):
        for name, value in self.values().items():
            setattr(self, name, type(value)())


def words(*names):
    return [(n, ctypes.c_uint64) for n in names]


class CudaCounts(Shared):
    """struct counts of tests/gpu/count_cuda.c"""
    _fields_ = words("armed", "device_allocs", "device_bytes", "pinned_allocs", "pinned_bytes", "calls", "launches", "looks",
                     "free_min", "free_max", "free_first", "total") + [("last", ctypes.c_char * 64)]


class HostCounts(Shared):
    """struct counts of tests/wire/noalloc.c"""
    _fields_ = words("armed", "other_threads", "main_program", "main_http", "main_rest", "http_bytes", "maps", "files",
                     "driver") + [("last_rest", ctypes.c_char * 200)]


class Counters:
    """env is the environment of a daemon that is to be counted; `real` the libcuda behind, None for the system's."""

    def __init__(self, folder, real=None):
        self.cuda = CudaCounts.make(folder / "cuda.counts")
        self.host = HostCounts.make(folder / "host.counts")
        tests = d.BUILD / "tests"
        self.env = {"NIBBLED_LIBCUDA": str(tests / "gpu" / "count_cuda.so"), "NIB_CUDA_COUNTS": str(folder / "cuda.counts"),
                    "LD_PRELOAD": str(tests / "wire" / "noalloc.so"), "NIB_ALLOC_FILE": str(folder / "host.counts")}
        if real:
            self.env["NIB_CUDA_REAL"] = str(real)

    def arm(self, on):
        self.cuda.armed = self.host.armed = int(on)

    def taken(self):
        """What was taken while armed, by anyone of ours; all zeros is the promise."""
        host = {n: getattr(self.host, n) for n in ("other_threads", "main_program", "main_rest", "maps", "files")}
        return {**host, "cuda": self.cuda.calls, "device_bytes_moved": self.cuda.free_max - self.cuda.free_min}


def one_request(daemon, rng, context):
    """A prompt of any length, an answer of any length; some are sampled, some streams are left before their end."""
    body = {"prompt": "x " * rng.choice((1, 3, 20, 150, 400)), "max_tokens": rng.choice((1, 5, 40, 200)),
            "temperature": rng.choice((0, 0, 0.8)), "seed": rng.randrange(1000)}
    body["prompt"] = body["prompt"][:max(2, context // 2)]
    if rng.random() < 0.3:
        body.update(top_k=5, top_p=0.9, min_p=0.01, repetition_penalty=1.1, logprobs=5, logit_bias={"5": 1})
    if rng.random() < 0.25:
        stream = daemon.open_stream("/v1/completions", {**body, "max_tokens": 400, "stream": True})
        stream.recv(200)
        stream.close()
        return
    answer = daemon.complete(**body)
    assert answer.status in (200, 429), answer.body


def run_steps(daemon, steps, clients=6, context=4096, seed=1, limit_s=300):
    """Mixed steps from several clients at once, until the daemon has done that many. The number done."""
    begin = daemon.metrics()["steps_total"]
    end = time.monotonic() + limit_s
    failures = []
    done = threading.Event()

    def client(number):
        rng = random.Random(seed * 100 + number)
        try:
            while not done.is_set():
                one_request(daemon, rng, context)
        except Exception as e:  # told by the caller's thread
            failures.append(e)
            done.set()

    threads = [threading.Thread(target=client, args=[n], daemon=True) for n in range(clients)]
    for t in threads:
        t.start()
    while not done.is_set() and daemon.metrics()["steps_total"] - begin < steps and time.monotonic() < end:
        time.sleep(0.05)
    done.set()
    for t in threads:
        t.join(d.HANG_S)
    if failures:
        raise failures[0]
    daemon.wait_metric("sched_running", 0)
    return int(daemon.metrics()["steps_total"] - begin)


def check_sealed(daemon, counters, steps, **more):
    """Runs that many steps and says what was taken: the steps done, and the counts."""
    run_steps(daemon, max(20, steps // 20), seed=9, **more)  # the C library fills its own caches at first use
    counters.arm(True)
    done = run_steps(daemon, steps, **more)
    counters.arm(False)
    return done, counters.taken()
