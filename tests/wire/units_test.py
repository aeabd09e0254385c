"""The systemd units: they parse, they are locked down, and they agree with the daemon's defaults."""

import re
import shutil
import subprocess

import pytest

import daemon as d

UNITS = d.ROOT / "etc" / "systemd"
needs_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
SCORE_MAX = 2.0


@pytest.fixture
def installed(tmp_path):
    """The units as `make install` leaves them, for the programs of this build."""
    for unit in UNITS.glob("nibbled.*"):
        if not unit.is_file():
            continue
        text = unit.read_text().replace("/usr/local/bin", str(d.BUILD))
        (tmp_path / unit.name).write_text(re.sub("^Documentation=.*\n", "", text, flags=re.M))
    return tmp_path


@needs_analyze
def test_units_parse(installed):
    r = subprocess.run(["systemd-analyze", "verify", "--man=no", *sorted(installed.iterdir())],
                       capture_output=True, text=True)
    complaints = [line for line in r.stderr.splitlines() if "nibbled" in line]
    assert complaints == []


@needs_analyze
def test_score(installed):
    r = subprocess.run(["systemd-analyze", "security", "--offline=yes", "--no-pager",
                        installed / "nibbled.service"], capture_output=True, text=True)
    score = float(re.search(r"Overall exposure level for \S+ ([0-9.]+)", r.stdout)[1])
    print(r.stdout)
    assert score <= SCORE_MAX


def value(unit, key):
    return re.search(rf"^{key}=(.*)$", (UNITS / unit).read_text(), re.M)[1]


def test_units_agree_with_the_defaults():
    config = (d.ROOT / "etc" / "nibbled.yaml").read_text()
    drain_ms = int(re.search(r"drain_ms_max: (\d+)", config)[1])
    assert int(value("nibbled.service", "TimeoutStopSec").removesuffix("s")) * 1000 > drain_ms + 2000
    assert value("nibbled.service", "Type") == "notify"
    assert {"64", "66", "78"} <= set(value("nibbled.service", "RestartPreventExitStatus").split())
    assert value("nibbled.socket", "ListenStream") == re.search(r"  path: (/run\S+)", config)[1]
    assert value("nibbled.socket", "SocketMode") == re.search(r"  mode: (\d+)", config)[1]
