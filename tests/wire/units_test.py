"""The systemd units: systemd accepts them, they are locked down, and they agree with the daemon."""

import re
import shutil
import subprocess

import pytest

import daemon as d

UNITS = d.ROOT / "etc" / "systemd"
BINDIR = "/usr/local/bin"  # what `make install` replaces by its own
SCORE_MAX = 2.0  # of 10; 0.4 was measured with systemd 252
needs_analyze = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")


@pytest.fixture
def installed(tmp_path):
    """The units for the programs of this build."""
    for unit in UNITS.glob("nibbled.*"):
        if unit.is_file():
            (tmp_path / unit.name).write_text(unit.read_text().replace(BINDIR, str(d.BUILD)))
    return tmp_path


def analyze(*args):
    return subprocess.run(["systemd-analyze", *map(str, args)], capture_output=True, text=True)


def value(unit, key):
    return re.search(rf"^{key}=(.*)$", (UNITS / unit).read_text(), re.M)[1]


@needs_analyze
def test_systemd_accepts_the_units(installed):
    units = sorted(installed.iterdir())
    assert len(units) == 2
    r = analyze("verify", "--man=no", *units)
    assert [line for line in r.stderr.splitlines() if "nibbled" in line] == []
    # and would have said so
    broken = installed / "nibbled.service"
    broken.write_text(broken.read_text().replace("[Service]", "[Service]\nWatchdogSec=soon"))
    assert "nibbled.service" in analyze("verify", "--man=no", broken).stderr


@needs_analyze
@pytest.mark.parametrize("gpu", [False, True])
def test_exposure_score(installed, gpu):
    service = installed / "nibbled.service"
    if gpu:  # a later line of the drop-in replaces an earlier one, as it does when systemd reads both
        drop_in = (UNITS / "nibbled.service.d" / "gpu.conf.example").read_text()
        service.write_text(service.read_text() + drop_in)
    r = analyze("security", "--offline=true", "--no-pager", service)
    score = float(re.search(r"Overall exposure level for \S+: ([0-9.]+)", r.stdout)[1])
    assert score <= SCORE_MAX, r.stdout
    text = service.read_text()
    loose = re.sub("^(Protect|Private|Restrict|SystemCall|Capability|User=|NoNew|Memory).*\n", "", text, flags=re.M)
    service.write_text(loose)
    r = analyze("security", "--offline=true", "--no-pager", service)
    assert float(re.search(r"Overall exposure level for \S+: ([0-9.]+)", r.stdout)[1]) > SCORE_MAX


def test_units_agree_with_the_daemon():
    config = (d.ROOT / "etc" / "nibbled.yaml").read_text()
    assert value("nibbled.service", "Type") == "notify"
    assert value("nibbled.service", "ExecStart").split()[0] == f"{BINDIR}/nibbled"
    assert value("nibbled.socket", "ListenStream") == re.search(r"^  path: (/run\S+)", config, re.M)[1]
    assert value("nibbled.socket", "SocketMode") == re.search(r"^  mode: (\d+)", config, re.M)[1]
    image = re.search(r"^  path: (/var\S+)", config, re.M)[1]
    tmpfiles = (d.ROOT / "etc" / "tmpfiles.d" / "nibbled.conf").read_text()
    assert re.search(rf"^d {image.rsplit('/', 1)[0]} ", tmpfiles, re.M)
    sysusers = (d.ROOT / "etc" / "sysusers.d" / "nibbled.conf").read_text()
    assert re.search(rf"^u {value('nibbled.service', 'User')} ", sysusers, re.M)
    assert value("nibbled.socket", "SocketGroup") == value("nibbled.service", "Group")
    drain_ms = int(re.search(r"drain_ms_max: (\d+)", config)[1])
    stop = re.fullmatch(r"(\d+)s", value("nibbled.service", "TimeoutStopSec"))[1]
    assert int(stop) * 1000 > drain_ms + 2000 + 5000
    # the exit codes that another start would not change, as the program's help names them
    said = subprocess.run([d.NIBBLED, "--help"], capture_output=True, text=True, check=True).stdout
    for code, what in (("64", "usage"), ("66", "image"), ("78", "configuration")):
        assert f"{code} {what}" in said
    assert set(value("nibbled.service", "RestartPreventExitStatus").split()) == {"64", "66", "78"}
    # files: one a connection, and the daemon's own
    connections_max = int(re.search(r"Open client connections.\n +# 1 to (\d+)", config)[1])
    assert int(value("nibbled.service", "LimitNOFILE")) >= connections_max + 64
    assert int(value("nibbled.service", "TasksMax")) >= 256 + 8  # engine.threads and the daemon's own
