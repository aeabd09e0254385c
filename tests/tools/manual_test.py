"""The manual pages and the shell completions say what `nibble --help`, `nibbled --help` and `nibbled --print-config`
say: every command, option, shape and key, with its default and its range."""
import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("NIB_BUILD", "build/rel")).resolve()
NIBBLE, NIBBLED = BUILD / "nibble", BUILD / "nibbled"
HELP = subprocess.run([NIBBLE, "--help"], capture_output=True, text=True, check=True).stdout
MANUAL = (ROOT / "man" / "nibble.1").read_text()
COMPLETION = ROOT / "etc" / "completion"
DAEMON_HELP = subprocess.run([NIBBLED, "--help"], capture_output=True, text=True, check=True).stdout
DAEMON_MANUAL = (ROOT / "man" / "nibbled.8").read_text()
CONFIG_MANUAL = (ROOT / "man" / "nibbled.yaml.5").read_text()
SHAPES = re.search(r"^Shapes: (.*)$", HELP, re.M).group(1).split()


def commands():
    """command -> its options, from the help."""
    found, name = {}, None
    for line in HELP.split("Commands:")[1].split("nibble COMMAND")[0].splitlines():
        if start := re.match(r"  nibble ([a-z]+(?: serve)?)", line):
            name = start.group(1)
            found[name] = set()
        if name:
            # an option stands in the usage line, or begins a line of its own
            found[name].update(re.findall(r"(?:^    |[\[| ])(--[a-z-]+)", line))
    return found


COMMANDS = commands()


def manual_options():
    found = {}
    for section in re.split(r"^\.Ss nibble ", MANUAL, flags=re.M)[1:]:
        section = re.split(r"^\.Sh ", section, flags=re.M)[0]
        found[re.match(r"[a-z]+(?: serve)?", section).group()] = {"--" + name for name in re.findall(r"Fl -([a-z-]+)", section)}
    return found


def complete(*words):
    """What bash offers for the last word."""
    script = (
        f'source "{COMPLETION}/{words[0]}.bash"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        f'_{words[0]}; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", script, "bash", *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return set(done.stdout.split())


def test_manual_has_every_command_and_option():
    assert len(COMMANDS) >= 9
    assert manual_options() == COMMANDS


def test_manual_lists_every_shape():
    section = MANUAL.split(".Sh SHAPES")[1].split(".Sh ")[0]
    listed = {word for line in re.findall(r"^\.It Cm (.*)$", section, re.M) for word in line.replace(",", " ").split()}
    assert listed == set(SHAPES)


def test_completion_offers_every_command_and_option():
    assert complete("nibble", "") == {name.split()[0] for name in COMMANDS} | {"--help", "--version"}
    assert complete("nibble", "bench", "ser") == {"serve"}
    for name, options in COMMANDS.items():
        assert complete("nibble", *name.split(), "-") == options | {"--help"}, name
    assert complete("nibble", "synth", "") == set(SHAPES)
    assert complete("nibble", "plan", "--profile", "h") == {"h100", "h200"}
    assert complete("nibble", "synth", "nano", "out", "--format", "") == {"image", "hf"}
    assert complete("nibble", "info", "Makef") == {"Makefile"}


DAEMON_OPTIONS = set(re.findall(r"^  (--[a-z-]+)", DAEMON_HELP, re.M))


def test_daemon_manual_has_every_option_and_exit_code():
    assert len(DAEMON_OPTIONS) >= 7
    listed = {"--" + name for name in re.findall(r"^\.It Fl -([a-z-]+)", DAEMON_MANUAL, re.M)}
    assert listed == DAEMON_OPTIONS
    codes = re.search(r"^Exit codes: (.*)\.$", DAEMON_HELP, re.M).group(1)
    section = DAEMON_MANUAL.split(".Sh EXIT STATUS")[1].split(".Sh ")[0]
    assert re.findall(r"^\.It (\d+)$", section, re.M) == re.findall(r"\d+", codes)


def test_daemon_completion_offers_every_option():
    assert complete("nibbled", "--") == DAEMON_OPTIONS
    assert complete("nibbled", "--config", "Makef") == {"Makefile"}


def test_config_manual_has_every_key_with_default_and_range():
    printed = subprocess.run([NIBBLED, "--print-config"], capture_output=True, text=True, check=True).stdout
    keys, section, comment = {}, None, None
    for line in printed.splitlines():
        if found := re.match(r"([a-z]+):$", line):
            section = found.group(1)
        elif line.startswith("  # "):
            comment = line[4:]
        elif found := re.match(r"  ([a-z_]+): (.*)$", line):
            keys[f"{section}.{found.group(1)}"] = f"Default {found.group(2)}, {comment}."
    assert len(keys) >= 25
    listed = re.findall(r"^\.It Cm ([a-z]+\.[a-z_]+)\n((?:[^.\n].*\n)+)\.br\n(.*)$", CONFIG_MANUAL, re.M)
    assert {name: values for name, _, values in listed} == keys
    peer_keys = set(re.findall(r"^#   ([a-z_]+): ", printed, re.M))
    section = CONFIG_MANUAL.split(".Ss peers")[1].split(".Sh ")[0]
    assert len(peer_keys) == 4 and peer_keys <= set(re.findall(r"Cm ([a-z_]+) :", section))


def test_config_manual_example_is_right(tmp_path):
    example = re.search(r"\.Bd -literal -offset indent\n(.*?)\n\.Ed", CONFIG_MANUAL, re.S).group(1)
    path = tmp_path / "nibbled.yaml"
    path.write_text(example)
    done = subprocess.run([NIBBLED, "--check", "--config", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
def test_manual_pages_have_no_warnings():
    pages = sorted(str(page) for page in (ROOT / "man").glob("*.[0-9]"))
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", *pages], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
