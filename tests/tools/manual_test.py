"""The manual page and the shell completion say what `nibble --help` says: every command, every option, every shape."""
import os
import pathlib
import re
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NIBBLE = pathlib.Path(os.environ.get("NIB_BUILD", "build/rel")).resolve() / "nibble"
HELP = subprocess.run([NIBBLE, "--help"], capture_output=True, text=True, check=True).stdout
MANUAL = (ROOT / "man" / "nibble.1").read_text()
COMPLETION = ROOT / "etc" / "completion" / "nibble.bash"
SHAPES = re.search(r"^Shapes: (.*)$", HELP, re.M).group(1).split()


def commands():
    """command -> its options, from the help."""
    found, name = {}, None
    for line in HELP.split("Commands:")[1].split("nibble COMMAND")[0].splitlines():
        if line.startswith("  nibble "):
            name = line.split()[1]
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
        found[section.split()[0]] = {"--" + name for name in re.findall(r"Fl -([a-z-]+)", section)}
    return found


def complete(*words):
    """What bash offers for the last word."""
    script = (
        f'source "{COMPLETION}"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _nibble; printf "%s\\n" "${{COMPREPLY[@]}}"'
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
    assert complete("nibble", "") == set(COMMANDS) | {"--help", "--version"}
    for name, options in COMMANDS.items():
        assert complete("nibble", name, "-") == options | {"--help"}, name
    assert complete("nibble", "synth", "") == set(SHAPES)
    assert complete("nibble", "plan", "--profile", "h") == {"h100", "h200"}
    assert complete("nibble", "synth", "nano", "out", "--format", "") == {"image", "hf"}
    assert complete("nibble", "info", "Makef") == {"Makefile"}


@pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
def test_manual_pages_have_no_warnings():
    pages = sorted(str(page) for page in (ROOT / "man").glob("*.[0-9]"))
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", *pages], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
