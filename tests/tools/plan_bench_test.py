"""`nibble plan` for every profile, `nibble bench` on a small image, their refusals, and the progress line."""

import csv
import io
import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from terminal import Terminal

ROOT = pathlib.Path(__file__).resolve().parents[2]
NIBBLE = pathlib.Path(os.environ.get("NIB_BUILD", ROOT / "build" / "rel")).resolve() / "nibble"
PROFILES = {p.stem: json.loads(p.read_text()) for p in sorted((ROOT / "etc" / "profiles").glob("*.json"))}
BIG = ("20b", "120b")


def nibble(*args, env=None):
    clean = {k: v for k, v in os.environ.items() if k != "NIBBLE_DATA"}
    done = subprocess.run([NIBBLE, *map(str, args)], capture_output=True, text=True, cwd=ROOT, env={**clean, **(env or {})})
    assert "Sanitizer" not in done.stderr and "runtime error" not in done.stderr, done.stderr
    return done


def plan(*args):
    done = nibble("plan", *args, "--json")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def check_plan(p):
    """What every plan must keep, whatever it decides."""
    assert p["context_tokens"] > 0 and p["slots"] > 0 and p["page_tokens"] > 0
    assert p["kv_pages"] * p["page_tokens"] >= p["context_tokens"]
    for arena in p["arenas"].values():
        assert 0 <= arena["bytes"] <= arena["budget_bytes"]
    by_space = {}
    for r in p["regions"]:
        assert r["bytes"] > 0 and r["align"] & (r["align"] - 1) == 0 and r["offset"] % r["align"] == 0, r
        assert r["phase_first"] <= r["phase_last"]
        by_space.setdefault(r["space"], []).append(r)
    for space, regions in by_space.items():
        assert max(r["offset"] + r["bytes"] for r in regions) <= p["arenas"][space]["bytes"]
        regions.sort(key=lambda r: r["offset"])
        for i, a in enumerate(regions):
            for b in regions[i + 1:]:
                if b["offset"] >= a["offset"] + a["bytes"]:
                    break
                apart = a["phase_last"] < b["phase_first"] or b["phase_last"] < a["phase_first"]
                assert apart, f"{a} and {b} lie on each other"
    experts = [r for r in p["regions"] if r["name"] == "experts"]
    spilled = [r for r in experts if r["space"] == "pinned"]
    assert len({r["layer"] for r in experts}) == len(experts) and len(spilled) == p["spilled_layers"]


def check_refusal(sentence):
    """Two numbers that disagree: what is needed, and what is there."""
    needs, has = map(int, re.search(r" needs (\d+) bytes of \w+ memory, and .* has (\d+) for it$", sentence).groups())
    assert needs > has, sentence


def test_there_is_a_profile_for_each_machine_named():
    assert {"b200", "b100", "h200", "h100", "a100-40", "a100-80", "l40s", "l4", "a10g", "t4", "rtx5090", "rtx4090",
            "orin64", "dgx-spark"} <= set(PROFILES)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("shape", BIG)
def test_every_profile(profile, shape):
    done = nibble("plan", shape, "--profile", profile, "--json")
    if done.returncode:
        assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1
        check_refusal(done.stderr.strip())
        text = nibble("plan", shape, "--profile", profile)
        assert (text.returncode, text.stdout, text.stderr) == (1, "", done.stderr)
        return
    p = json.loads(done.stdout)
    check_plan(p)
    assert (p["shape"], p["profile"]) == (shape, PROFILES[profile]["name"])
    assert p["weight_bytes"] > (12 << 30 if shape == "20b" else 60 << 30)
    assert 0 < p["decode_tokens_s"] <= p["batch_decode_tokens_s"] and p["prefill_tokens_s"] > 0
    # the text says the same
    text = nibble("plan", shape, "--profile", profile)
    assert text.returncode == 0 and text.stdout.startswith(f"{shape} on {p['profile']}, row {p['row']}\n")
    assert f"  context {p['context_tokens']} tokens, {p['slots']} slots, {p['kv_pages']} KV pages" in text.stdout
    for space, arena in p["arenas"].items():
        found = re.search(rf"^  {space} +arena +(\d+) of +(\d+) bytes", text.stdout, re.M)
        assert (found is not None) == (arena["bytes"] > 0)
        if found:
            assert (int(found[1]), int(found[2])) == (arena["bytes"], arena["budget_bytes"])
    listed = sum(int(m) for m in re.findall(r"^  (?:device|pinned|host) +[a-z].*? (\d+) +[\d.]+ GiB", text.stdout, re.M))
    assert listed == sum(r["bytes"] for r in p["regions"])
    assert not re.search(r" $", text.stdout, re.M)


def test_all():
    found = plan("--all")
    assert [(p["shape"], p["profile"]) for p in found] == [(s, f["name"]) for f in PROFILES.values() for s in BIG]
    refused = [p for p in found if "refused" in p]
    assert 0 < len(refused) < 5
    for p in refused:
        check_refusal(p["refused"])
    text = nibble("plan", "--all").stdout
    for p in found:
        part = text.split(f"{p['profile']}\n", 1)[1]
        line = re.search(rf"^  {p['shape']} .*$", part, re.M)[0]
        assert p.get("refused", str(p.get("context_tokens"))) in line


@pytest.mark.parametrize("shape", ["nano", "tiny", "small", "20b-slice"])
def test_this_machine(shape):
    p = plan(shape, "--device", "cpu", "--memory-limit", "8G", "--context", "4096", "--slots", "2", "--threads", "1")
    check_plan(p)
    assert set(r["space"] for r in p["regions"]) == {"host"}
    assert (p["context_tokens"], p["slots"]) == (4096, 2)
    assert p["arenas"]["host"]["budget_bytes"] <= 8 << 30


FAKE = NIBBLE.parent / "tests" / "fake" / "libcuda.so"
needs_rows = pytest.mark.skipif(not FAKE.exists() or shutil.which("nvcc") is None,
                                reason="no nvcc: this build has no GPU rows")


def card(profile):
    return {"NIBBLED_LIBCUDA": str(FAKE), "NIBBLED_FAKE_PROFILE": str(ROOT / f"etc/profiles/{profile}.json")}


@needs_rows
@pytest.mark.parametrize("profile, row", [("h200", "sm90"), ("b200", "sm80"), ("rtx4090", "sm80"), ("orin64", "sm80")])
def test_this_machines_gpu_is_planned_as_the_daemon_would(profile, row):
    done = nibble("plan", "tiny", "--json", "--memory-limit", "1G", env=card(profile))
    p = json.loads(done.stdout)
    check_plan(p)
    assert (p["row"], p["profile"], done.stderr) == (row, PROFILES[profile]["name"], "")
    assert {"device", "pinned"} <= {r["space"] for r in p["regions"]}
    cpu = nibble("plan", "tiny", "--json", "--memory-limit", "1G", "--device", "cpu", env=card(profile))
    assert {r["space"] for r in json.loads(cpu.stdout)["regions"]} == {"host"}
    assert row in nibble("arch", env=card(profile)).stdout


@needs_rows
def test_a_mask_gives_the_portable_row():
    done = nibble("plan", "tiny", "--mask", "sm90,sm90-ops", "--memory-limit", "1G", env=card("h200"))
    assert done.stdout.startswith("tiny on NVIDIA H200, row sm80\n") and "no GPU" not in done.stdout
    assert re.search(r"^  sm80 +taken$", nibble("arch", "--mask", "sm90,sm90-ops", env=card("h200")).stdout, re.M)


@needs_rows
def test_a_gpu_without_a_row_leaves_it_to_the_cpu():
    done = nibble("plan", "tiny", "--memory-limit", "1G", env=card("t4"))
    assert done.returncode == 0 and re.match(r"tiny on this CPU, row \w+\n", done.stdout)
    assert re.search(r"^  no GPU: no row of the capability table fits NVIDIA T4 ", done.stdout, re.M)
    only = nibble("plan", "tiny", "--device", "gpu", env=card("t4"))
    assert (only.returncode, only.stdout) == (1, "") and "fits NVIDIA T4" in only.stderr
    arch = nibble("arch", env=card("t4"))
    assert arch.returncode == 0 and arch.stdout.count("taken\n") >= 1 and "; the CPU runs the model\n" in arch.stdout
    other = nibble("plan", "20b", "--profile", "t4")
    assert other.returncode == 0 and "this build has no kernels for the row sm75" in other.stdout


def test_no_gpu_is_said():
    none = {"NIBBLED_LIBCUDA": "/nowhere/libcuda.so.1"}
    done = nibble("plan", "tiny", "--memory-limit", "1G", env=none)
    assert done.returncode == 0 and done.stdout.startswith("tiny on this CPU, row ")
    assert re.search(r"^  no GPU: .*/nowhere", done.stdout, re.M)
    only = nibble("plan", "tiny", "--device", "gpu", env=none)
    assert (only.returncode, only.stdout) == (1, "") and "/nowhere" in only.stderr
    assert nibble("plan", "tiny", "--device", "abacus").stderr.startswith(
        "nibble plan: 'abacus' is no device; allowed are auto, cpu and gpu\n")


def test_options_change_the_plan():
    base = plan("20b", "--profile", "h100")
    assert plan("20b", "--profile", "h100") == base
    assert plan("20b", "--profile", ROOT / "etc/profiles/h100.json") == base
    less = plan("20b", "--profile", "h100", "--context", "8192", "--slots", "3")
    assert (less["context_tokens"], less["slots"]) == (8192, 3) and less["kv_bytes"] < base["kv_bytes"]
    masked = plan("20b", "--profile", "h100", "--mask", "sm90,sm90-ops")
    assert masked["row"] == "sm80" != base["row"]
    tight = plan("20b", "--profile", "h100", "--memory-limit", "10G")
    check_plan(tight)
    assert tight["spilled_layers"] > 0 and tight["arenas"]["device"]["budget_bytes"] <= 10 << 30
    one, three = (next(r["bytes"] for r in plan("tiny", "--device", "cpu", "--threads", n)["regions"] if r["name"] == "thread scratch")
                  for n in ("1", "3"))
    assert three == 3 * one
    for a, b in (("1.5G", str(3 << 29)), ("4096M", "4G"), ("4194304K", "4G")):
        one, other = (plan("small", "--device", "cpu", "--memory-limit", x) for x in (a, b))
        assert one == other


def test_keys_and_values_in_fp8():
    wide, narrow = (plan("20b", "--device", "cpu", "--threads", "1", "--context", "4096", "--slots", "2", "--kv", kv)
                    for kv in ("bf16", "fp8"))
    check_plan(narrow)
    assert (wide["kv_form"], narrow["kv_form"]) == ("bf16", "fp8")
    assert wide["kv_pages"] == narrow["kv_pages"] and 0.51 < narrow["kv_bytes"] / wide["kv_bytes"] < 0.52
    wide, narrow = (plan("20b", "--profile", "h200", "--context", "4096", "--slots", "2", "--kv", kv) for kv in ("bf16", "fp8"))
    check_plan(narrow)
    assert wide["kv_pages"] == narrow["kv_pages"] and 0.51 < narrow["kv_bytes"] / wide["kv_bytes"] < 0.52
    assert [r["name"] for r in narrow["regions"]].count("new keys and values") == 1


def test_profiles_from_another_folder(tmp_path):
    (tmp_path / "profiles").mkdir()
    mine = dict(PROFILES["l4"], name="My box")
    (tmp_path / "profiles/mine.json").write_text(json.dumps(mine))
    done = nibble("plan", "20b", "--profile", "mine", env={"NIBBLE_DATA": str(tmp_path)})
    assert done.returncode == 0 and done.stdout.startswith("20b on My box, row sm80\n")
    all = json.loads(nibble("plan", "--all", "--json", env={"NIBBLE_DATA": str(tmp_path)}).stdout)
    assert {p["profile"] for p in all} == {"My box"}
    (tmp_path / "profiles/bad.json").write_text("{")
    done = nibble("plan", "--all", env={"NIBBLE_DATA": str(tmp_path)})
    assert done.returncode == 1 and done.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [("20b", "--memory-limit", "1M"), ("20b", "--memory-limit", "1"),
                                  ("120b", "--profile", "t4"), ("20b", "--profile", "rtx4090", "--memory-limit", "1G")])
def test_refused_with_two_numbers(args):
    done = nibble("plan", *args)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    check_refusal(done.stderr.strip())


@pytest.mark.parametrize("args, sentence", [
    (("nonsense",), "'nonsense' is no model shape; `nibble --help` names them"),
    (("20b", "--profile", "nope"), r"there is no machine profile 'nope' in etc/profiles or /\S+/profiles"),
    (("20b", "--profile", "/none.json"), "profile /none.json cannot be opened: No such file or directory"),
    (("20b", "--mask", "zzz"), "'zzz' is no row of the capability table; the rows are .*"),
    (("20b", "--profile", "t4", "--mask", "sm75"), r"no row of the capability table fits NVIDIA T4 .*"),
])
def test_failures(args, sentence):
    done = nibble("plan", *args)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"nibble plan: {sentence}\n", done.stderr), done.stderr


WRONG_PLAN = [((), "name one shape, or --all"), (("20b", "120b"), "name one shape, or --all"),
              (("--all", "20b"), "name one shape, or --all"), (("20b", "--wat"), "unrecognized option '--wat'"),
              (("20b", "--profile"), "option '--profile' requires an argument"),
              (("20b", "--kv", "fp4"), '--kv is "fp4"; allowed are bf16 and fp8')]
WRONG_BENCH = [((), "name one image, or a shape with --shape"), (("a", "b"), "name one image, or a shape with --shape"),
               (("a", "--wat"), "unrecognized option '--wat'"),
               (("a", "--kv", ""), '--kv is ""; allowed are bf16 and fp8'),
               (("a", "--format", "xml"), '--format is "xml"; allowed are text, json and csv')]
COUNTS = {"plan": {"--context": 131072, "--slots": 256, "--threads": 256},
          "bench": {"--prompt": 131072, "--tokens": 131072, "--batch": 256, "--rows": 2048, "--threads": 256}}


def wrong_values():
    for command, first in (("plan", "20b"), ("bench", "image")):
        for option, most in COUNTS[command].items():
            for value in ("0", str(most + 1), "-1", "x", "1x", " 1", "", "0x10", "1.5", "9" * 30):
                yield command, (first, option, value), f'{option} is "{value}"; allowed are 1 to {most}'
        for value in ("0", "x", "-1", "5X", "5GG", "G", "", "1e3", "0x10", "9999999T", "1..5G", "nan", "inf"):
            yield command, (first, "--memory-limit", value), \
                f'--memory-limit is "{value}"; allowed are bytes, or a number with K, M, G or T'


def test_wrong_usage():
    cases = [("plan", *w) for w in WRONG_PLAN] + [("bench", *w) for w in WRONG_BENCH] + list(wrong_values())
    for command, args, sentence in cases:
        done = nibble(command, *args)
        lines = done.stderr.splitlines()
        assert (done.returncode, done.stdout, len(lines)) == (2, "", 2), (args, done.stderr)
        assert lines[0] == f"nibble {command}: {sentence}" and lines[1].startswith(f"usage: nibble {command} "), args


# bench

@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "tiny.nib"
    subprocess.run([NIBBLE, "synth", "tiny", path], check=True, stdout=subprocess.DEVNULL)
    return path


SHORT = ("--prompt", "24", "--tokens", "4", "--threads", "1")
FACTS = {"shape": "tiny", "threads": 1, "batch": 1, "prompt": 24, "tokens": 4}


def test_bench_json(image):
    done = nibble("bench", image, *SHORT, "--format", "json")
    assert (done.returncode, done.stderr) == (0, "")
    r = json.loads(done.stdout)
    assert {k: r[k] for k in FACTS} == FACTS and r["row"]
    rates = ["read_bytes_s", "prefill_tokens_s", "decode_tokens_s", "decode_p50_ms", "decode_p99_ms", "roof_tokens_s",
             "share_of_roof", "load_s"]
    assert set(r) == set(FACTS) | {"row"} | set(rates)
    assert all(r[k] > 0 for k in rates) and r["decode_p99_ms"] >= r["decode_p50_ms"]
    assert r["share_of_roof"] == pytest.approx(r["decode_tokens_s"] / r["roof_tokens_s"], rel=1e-6)


def test_bench_csv(image):
    for batch in (1, 2):
        done = nibble("bench", image, *SHORT, "--batch", batch, "--format", "csv")
        assert (done.returncode, done.stderr) == (0, "")
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        assert len(rows) == 1 and None not in rows[0]
        r = rows[0]
        assert (r["shape"], r["threads"], r["batch"], r["prompt"], r["tokens"]) == ("tiny", "1", str(batch), "24", "4")
        for key in ("read_gb_s", "prefill_tokens_s", "decode_tokens_s", "p50_ms", "p99_ms"):
            assert float(r[key]) > 0, key
        roof = [r["roof_tokens_s"], r["share"]]
        assert all(float(x) > 0 for x in roof) if batch == 1 else roof == ["", ""]


def test_bench_text(image):
    done = nibble("bench", image, *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"tiny on .+, row \w+, 1 thread, batch 1, best of \d+", lines[0])
    lines = [line for line in lines[1:] if not line.startswith("  no GPU: ")]
    values = [re.fullmatch(r"  ([a-z/ ]+?) +([\d.]+)( .*)?", line) for line in lines]
    assert [v[1] for v in values] == ["load", "memory read", "prefill", "decode", "decode roof", "prefill/decode"]
    assert all(float(v[2]) > 0 for v in values if v[1] != "load")  # a tiny image loads in 0.00 s
    assert "decode roof" not in nibble("bench", image, *SHORT, "--batch", "2").stdout


def test_bench_batch_has_no_roof(image):
    r = json.loads(nibble("bench", image, *SHORT, "--batch", "2", "--format", "json").stdout)
    assert r["batch"] == 2 and r["roof_tokens_s"] is None and r["share_of_roof"] is None


def test_bench_with_keys_and_values_in_fp8(image):
    r = json.loads(nibble("bench", image, *SHORT, "--kv", "fp8", "--format", "json").stdout)
    assert r["decode_tokens_s"] > 0


def test_bench_row_and_steps(image):
    r = json.loads(nibble("bench", image, *SHORT, "--mask", "amx,avx512,avx2", "--rows", "5", "--format", "json").stdout)
    assert r["row"] == "ref"


@pytest.mark.parametrize("args, sentence", [
    (("--mask", "zzz"), "'zzz' is no row of the capability table; the rows are .*"),
    (("--memory-limit", "1M"), r"tiny with a context of 28 tokens and 1 slots needs \d+ bytes of host memory, and .* has "
                               r"1048576 for it"),
    (("--prompt", "131072"), "1 sequences of 131076 tokens do not fit the plan's 1 slots, 131072 tokens and .* pages"),
])
def test_bench_refusals(image, args, sentence):
    done = nibble("bench", image, *SHORT, *args)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(f"nibble bench: {sentence}\n", done.stderr), done.stderr


def test_bench_wrong_files(tmp_path):
    for content in (b"", b"hello", b"\xff" * 4096):
        (tmp_path / "x").write_bytes(content)
        done = nibble("bench", tmp_path / "x")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert nibble("bench", tmp_path / "none").returncode == 1
    assert nibble("bench", tmp_path).returncode == 1


# The progress line

def work(image, folder):
    """Long work, and the label of its progress line."""
    yield ("synth", "tiny", folder / "t.nib"), "synth"
    yield ("synth", "tiny", folder / "hf", "--format", "hf"), "synth"
    yield ("pack", folder / "hf", folder / "p.nib"), "pack"
    yield ("verify", image), "verif"
    yield ("bench", image, *SHORT), "loading"


def test_progress_on_a_terminal_only(image, tmp_path):
    for args, label in work(image, tmp_path):
        t = Terminal([NIBBLE, *args])
        try:
            assert t.end() == 0, t.text
        finally:
            t.kill()
        drawn = re.findall(r"\r\x1b\[K([a-z]\S*) +\[([#.]{24})\] +(\d+) %  [\d.]+ k?M?G?B of [\d.]+ k?M?G?B", t.shown)
        assert drawn and all(d[0].startswith(label) for d in drawn), (args, t.text)
        # it is gone at the end
        last = t.shown.rindex("\r\x1b[K")
        assert "[" not in t.shown[last + 4:].split("\n")[0] and "#" not in t.shown[last:]


def test_no_progress_in_a_pipe(image, tmp_path):
    for args, _ in work(image, tmp_path):
        done = nibble(*args)
        assert done.returncode == 0 and "\r" not in done.stdout + done.stderr and "\x1b" not in done.stdout + done.stderr


def test_progress_beside_a_piped_result(image):
    """stdout in a file, stderr the terminal: the file has no trace of the line."""
    read, write = os.pipe()
    t = Terminal([NIBBLE, "bench", image, *SHORT, "--format", "json"], stdout=write)
    os.close(write)
    try:
        with os.fdopen(read) as out:
            result = out.read()
        assert t.end() == 0
    finally:
        t.kill()
    assert json.loads(result)["shape"] == "tiny" and "loading [" in t.shown
