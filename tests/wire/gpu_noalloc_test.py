"""After the seal nothing is taken, neither from libcuda nor from the C library, over steps of every kind; and what was taken
before is the plan, to the byte. On the stand-in for libcuda; tests/gpu/boot.py does the same on a GPU."""

import re
import shutil
import subprocess

import pytest

import daemon as d
import gpu_load

RELEASE = d.ROOT / "build" / "rel" / "nibbled"  # a sanitizer has its own allocator
FAKE = d.BUILD / "tests" / "fake" / "libcuda.so"
PROFILE = {"NIBBLED_FAKE_PROFILE": str(d.ROOT / "etc" / "profiles" / "h200.json")}
STEPS = 200

pytestmark = pytest.mark.skipif(not FAKE.exists() or not RELEASE.exists() or shutil.which("nvcc") is None,
                                reason="no nvcc or no release build: no GPU rows to count")


def planned(daemon, env):
    """Bytes of each arena, as `nibbled --plan` prints them."""
    text = subprocess.run([d.NIBBLED, "--config", daemon.config, "--plan"], check=True, capture_output=True,
                          text=True, env=env).stdout
    return {space: int(n) for space, n in re.findall(r"(device|pinned|host) +arena +(\d+)", text)}


@pytest.fixture
def counted(tmp_path, start, monkeypatch):
    """A daemon of the release build over both counters."""
    monkeypatch.setattr(d, "NIBBLED", RELEASE)
    counters = gpu_load.Counters(tmp_path, real=FAKE)
    counters.arm(True)
    nibbled = start(env={**PROFILE, **counters.env}, engine={"device": "gpu"}, memory={"limit_mib": 2048},
                    lookup={"draft_tokens": 15})
    counters.arm(False)
    boot = {**counters.cuda.values(), **counters.taken()}
    print(boot)
    # the counters see what boot takes
    assert boot["cuda"] > 100 and boot["other_threads"] > 0 and boot["maps"] > 0, boot
    assert (boot["device_allocs"], boot["pinned_allocs"]) == (1, 1), boot
    plan = planned(nibbled, {**PROFILE, "NIBBLED_LIBCUDA": str(FAKE)})
    assert (boot["device_bytes"], boot["pinned_bytes"]) == (plan["device"], plan["pinned"]), (boot, plan)
    for counts in (counters.cuda, counters.host):
        counts.clear()
    return nibbled, counters


def test_nothing_is_taken_after_the_seal(counted):
    nibbled, counters = counted
    done, taken = gpu_load.check_sealed(nibbled, counters, STEPS)
    print(done, taken, counters.cuda.values())
    assert done >= STEPS
    assert counters.cuda.launches >= STEPS and counters.cuda.looks >= STEPS // 8
    assert counters.host.main_http > 0  # the counter counts
    assert not any(taken.values()), (taken, counters.cuda.last)
    nibbled.check_ledger()
    nibbled.stop()
