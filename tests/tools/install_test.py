"""`make install` leaves a product that works from where it was put, and `make uninstall` takes it away again."""

import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("NIB_BUILD", ROOT / "build" / "rel")).resolve()
CONFIG = (ROOT / "etc" / "nibbled.yaml").read_text()


def files(folder):
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir()}


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Runs make on a copy of the build, whose programs then know other paths than the tree's own."""
    copy = tmp_path_factory.mktemp("build") / BUILD.name
    shutil.copytree(BUILD, copy, ignore=shutil.ignore_patterns("tests"), copy_function=shutil.copy2)

    def go(target, **variables):
        words = {"B": copy, "VARIANT": BUILD.name, **variables}
        clean = {k: v for k, v in os.environ.items() if not k.startswith("MAKE") and k != "MFLAGS"}
        return subprocess.run(["make", "-s", target, *(f"{k}={v}" for k, v in words.items())], cwd=ROOT,
                              capture_output=True, text=True, env=clean)

    return go


@pytest.fixture(scope="module")
def installed(make, tmp_path_factory):
    root = tmp_path_factory.mktemp("installed")
    done = make("install", PREFIX=root / "usr", SYSCONFDIR=root / "etc")
    assert done.returncode == 0, done.stderr
    return root


def run(program, *args, cwd="/", env=None):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("NIB")}
    done = subprocess.run([program, *map(str, args)], capture_output=True, text=True, cwd=cwd, env={**clean, **(env or {})})
    assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr, done.stderr
    return done


def test_installed_nibble_finds_its_data(installed, tmp_path):
    nibble = installed / "usr/bin/nibble"
    done = run(nibble, "plan", "20b", "--profile", "h200")
    assert done.returncode == 0 and done.stdout.startswith("20b on NVIDIA H200, row sm90\n"), done.stderr
    done = run(nibble, "plan", "--all", "--json")
    profiles = {p["profile"] for p in json.loads(done.stdout)}
    assert len(profiles) == len(list((ROOT / "etc/profiles").glob("*.json")))
    # small has the whole vocabulary, which is read from the installed file
    done = run(nibble, "synth", "small", tmp_path / "small.nib")
    assert done.returncode == 0, done.stderr
    done = run(nibble, "info", tmp_path / "small.nib")
    assert done.returncode == 0 and "small" in done.stdout
    (installed / "usr/share/nibbled/o200k_base.tiktoken").rename(tmp_path / "away")
    try:
        done = run(nibble, "synth", "small", tmp_path / "second.nib")
        assert done.returncode == 1 and str(installed / "usr/share/nibbled/o200k_base.tiktoken") in done.stderr
        assert done.stderr.count("\n") == 1 and not (tmp_path / "second.nib").exists()
    finally:
        (tmp_path / "away").rename(installed / "usr/share/nibbled/o200k_base.tiktoken")


def test_installed_daemon_reads_its_configuration(installed):
    nibbled = installed / "usr/bin/nibbled"
    assert run(nibbled, "--check").returncode == 0
    assert f"default {installed}/etc/nibbled.yaml" in run(nibbled, "--help").stdout
    config = installed / "etc/nibbled.yaml"
    assert config.read_text() == CONFIG
    config.write_text("nonsense: 1\n")
    try:
        done = run(nibbled, "--check")
        assert done.returncode == 78 and 'line 1: unknown section "nonsense"' in done.stderr
    finally:
        config.write_text(CONFIG)


def test_installed_texts_name_the_installed_paths(installed):
    unit = (installed / "usr/lib/systemd/system/nibbled.service").read_text()
    start = re.search(r"^ExecStart=(\S+) --config (\S+)$", unit, re.M)
    assert pathlib.Path(start[1]) == installed / "usr/bin/nibbled" and os.access(start[1], os.X_OK)
    assert pathlib.Path(start[2]) == installed / "etc/nibbled.yaml" and pathlib.Path(start[2]).exists()
    for path in installed.rglob("*"):
        if path.suffix in (".service", ".socket", ".1", ".5", ".8"):
            assert "/usr/local" not in path.read_text(), path


def test_installed_completion_works(installed, tmp_path):
    completion = installed / "usr/share/bash-completion/completions"
    words = 'source "$0"; COMP_WORDS=(nibble plan --profile h2); COMP_CWORD=3; _nibble; echo "${COMPREPLY[@]}"'
    done = run("bash", "-c", words, completion / "nibble", cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("h200\n", "")
    words = 'source "$0"; COMP_WORDS=(nibbled --pl); COMP_CWORD=1; _nibbled; echo "${COMPREPLY[@]}"'
    assert run("bash", "-c", words, completion / "nibbled").stdout == "--plan\n"


def test_modes(installed):
    for path in installed.rglob("*"):
        mode = path.stat().st_mode & 0o777
        assert mode == (0o755 if path.is_dir() or path.parent.name == "bin" else 0o644), path


def test_destdir_is_in_no_file(make, tmp_path):
    done = make("install", DESTDIR=tmp_path, PREFIX="/usr", SYSCONFDIR="/etc")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"usr", "etc"}
    found = files(tmp_path)
    assert {"usr/bin/nibbled", "usr/bin/nibble", "etc/nibbled.yaml", "usr/share/man/man1/nibble.1",
            "usr/share/man/man8/nibbled.8", "usr/share/man/man5/nibbled.yaml.5",
            "usr/lib/systemd/system/nibbled.service", "usr/lib/systemd/system/nibbled.socket",
            "usr/lib/sysusers.d/nibbled.conf", "usr/lib/tmpfiles.d/nibbled.conf",
            "usr/share/nibbled/o200k_base.tiktoken", "usr/share/nibbled/profiles/h200.json"} <= found
    unit = (tmp_path / "usr/lib/systemd/system/nibbled.service").read_text()
    assert "ExecStart=/usr/bin/nibbled --config /etc/nibbled.yaml\n" in unit
    for name in found:
        assert str(tmp_path).encode() not in (tmp_path / name).read_bytes(), name
    assert b"/usr/share/nibbled" in (tmp_path / "usr/bin/nibble").read_bytes()


def test_configuration_is_kept(make, tmp_path):
    where = {"DESTDIR": tmp_path, "PREFIX": "/usr"}
    config, new = tmp_path / "etc/nibbled.yaml", tmp_path / "etc/nibbled.yaml.new"
    for _ in range(2):
        assert make("install", **where).returncode == 0
        assert config.read_text() == CONFIG and not new.exists()
    config.write_text("image:\n  path: /mine\n")
    done = make("install", **where)
    assert done.returncode == 0 and f"{config} is kept" in done.stdout
    assert config.read_text() == "image:\n  path: /mine\n" and new.read_text() == CONFIG
    (tmp_path / "usr/share/nibbled/profiles/mine.json").write_text("{}")
    assert make("uninstall", **where).returncode == 0
    assert files(tmp_path) == {"etc/nibbled.yaml", "usr/share/nibbled/profiles/mine.json"}
    assert config.read_text() == "image:\n  path: /mine\n"
    assert make("uninstall", **where).returncode == 0  # a second time is no error


def test_uninstall_leaves_only_the_configuration(make, tmp_path):
    where = {"DESTDIR": tmp_path, "PREFIX": "/opt/nibbled"}
    assert make("install", **where).returncode == 0
    assert len(files(tmp_path)) > 20
    assert make("uninstall", **where).returncode == 0
    assert files(tmp_path) == {"etc/nibbled.yaml"}
    assert not (tmp_path / "opt/nibbled/share/nibbled").exists()


@pytest.mark.parametrize("variable", ["PREFIX", "SYSCONFDIR", "DESTDIR"])
@pytest.mark.parametrize("path", ["relative", "/a b", "/a|b", "/a&b"])
def test_odd_paths_are_refused(tmp_path, variable, path):
    where = {"DESTDIR": str(tmp_path), "PREFIX": "/usr", "SYSCONFDIR": "/etc", variable: path}
    done = subprocess.run([ROOT / "tools/install.sh", "install", where["DESTDIR"], where["PREFIX"], where["SYSCONFDIR"]],
                          capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, f"install: '{path}' is no plain absolute path\n")
    assert not list(tmp_path.iterdir())
