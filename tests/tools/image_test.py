"""nibble synth, info, verify, keygen, sign: the image opens in the safetensors library, says what it holds, is the same
every time, equals the checkpoint of the same seed, and is refused with one sentence when it is not what it says.

NIB_BUILD names the folder with the programs (default build/rel)."""
import hashlib
import json
import os
import pathlib
import subprocess

import ml_dtypes  # noqa: F401  (gives numpy its bfloat16)
import numpy as np
import pytest
from safetensors import safe_open

NIBBLE = pathlib.Path(os.environ.get("NIB_BUILD", "build/rel")).resolve() / "nibble"
ROOT = pathlib.Path(__file__).resolve().parents[2]
ALIGN = 4096


def nibble(*args, cwd=ROOT):
    return subprocess.run([NIBBLE, *map(str, args)], capture_output=True, text=True, cwd=cwd, timeout=600)


def must(*args):
    done = nibble(*args)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*args):
    """Exit code 1 and one sentence of one line, which is returned."""
    done = nibble(*args)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("nibble "), done.stderr
    return done.stderr


@pytest.fixture(scope="session", params=["nano", "tiny"])
def shape(request):
    return request.param


@pytest.fixture(scope="session")
def image(tmp_path_factory, shape):
    path = tmp_path_factory.mktemp(shape) / "model.nib"
    must("synth", shape, path, "--seed", 11)
    return path


@pytest.fixture(scope="session")
def hf(tmp_path_factory, shape):
    path = tmp_path_factory.mktemp(shape) / "hf"
    must("synth", shape, path, "--seed", 11, "--format", "hf")
    return path


def tensors(path):
    with safe_open(path, "np") as f:
        return {name: f.get_tensor(name) for name in f.keys()}


def header(path):
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:8 + n]), 8 + n


def test_the_safetensors_library_opens_it(image, shape):
    with safe_open(image, "np") as f:
        meta = f.metadata()
    assert meta["format"] == "nibbled image 1" and meta["shape"] == shape and meta["source"] == "synthetic, seed 11"
    entries, data = header(image)
    assert data % ALIGN == 0
    for name, array in tensors(image).items():
        begin, end = entries[name]["data_offsets"]
        assert end - begin == array.nbytes
        if name.startswith("pad."):
            assert not array.any() and array.nbytes < ALIGN
        else:
            assert (data + begin) % ALIGN == 0, name
            assert hashlib.sha256(array.tobytes()).hexdigest() == meta["sha256." + name], name
    assert image.stat().st_size % ALIGN == 0


def test_info_agrees_with_the_library(image, shape):
    info = json.loads(must("info", image, "--json", "--tensors"))
    entries, data = header(image)
    listed = [t for t in info["tensors"]]
    assert {t["name"] for t in listed} == {n for n in entries if n[:4] != "pad." and n != "__metadata__"}
    for t in listed:
        e = entries[t["name"]]
        assert (t["dtype"], t["shape"], t["offset"]) == (e["dtype"], e["shape"], data + e["data_offsets"][0])
    assert info["shape"] == shape and info["signed_by"] is None and info["file_bytes"] == image.stat().st_size
    text = must("info", image, "--tensors")
    assert "signed by  nobody" in text and "layers.1.down.bias" in text


def test_the_same_seed_gives_the_same_bytes(image, shape, tmp_path):
    must("synth", shape, tmp_path / "same.nib", "--seed", 11)
    must("synth", shape, tmp_path / "other.nib", "--seed", 12)
    assert (tmp_path / "same.nib").read_bytes() == image.read_bytes()
    ours, other = tensors(image), tensors(tmp_path / "other.nib")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other.nib", "same.nib"]
    for name in ours:
        if name[:4] != "pad." and name not in ("tokenizer", "generation"):
            assert ours[name].tobytes() != other[name].tobytes(), name


def test_the_checkpoint_has_the_images_weights(image, hf):
    """Names and slices are spelled out here once more, not taken from the program."""
    index = json.loads((hf / "model.safetensors.index.json").read_text())
    shards = {s: tensors(hf / s) for s in set(index["weight_map"].values())}
    assert len(shards) >= 2
    left = {name: shards[s][name] for name, s in index["weight_map"].items()}
    assert sum(t.nbytes for t in left.values()) == index["metadata"]["total_size"]
    assert sum(len(s) for s in shards.values()) == len(left)
    config = json.loads((hf / "config.json").read_text())
    ours = tensors(image)
    same = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "lm_head": "lm_head.weight"}
    per_layer = {"attn_norm": "input_layernorm.weight", "sinks": "self_attn.sinks", "out.weight": "self_attn.o_proj.weight",
                 "out.bias": "self_attn.o_proj.bias", "mlp_norm": "post_attention_layernorm.weight",
                 "router.weight": "mlp.router.weight", "router.bias": "mlp.router.bias"}
    for a, b in (("up", "gate_up_proj"), ("down", "down_proj")):
        per_layer |= {f"{a}.{part}": f"mlp.experts.{b}_{part}" for part in ("blocks", "scales", "bias")}
    for i in range(config["num_hidden_layers"]):
        same |= {f"layers.{i}.{a}": f"model.layers.{i}.{b}" for a, b in per_layer.items()}
        for part in ("weight", "bias"):
            rows = [left.pop(f"model.layers.{i}.self_attn.{p}_proj.{part}") for p in "qkv"]
            fused = ours[f"layers.{i}.qkv.{part}"]
            assert np.concatenate(rows).tobytes() == fused.tobytes() and sum(map(len, rows)) == len(fused)
    for a, b in same.items():
        theirs = left.pop(b)
        assert ours[a].shape == theirs.shape and ours[a].dtype == theirs.dtype and ours[a].tobytes() == theirs.tobytes(), a
    assert not left


def test_the_weights_are_sane(image):
    t = {k: v for k, v in tensors(image).items() if not k.startswith("pad.")}
    hidden = t["embed"].shape[1]
    assert abs(t["embed"].astype(np.float32).std() - 1) < 0.05
    assert abs(t["lm_head"].astype(np.float32).std() * hidden**0.5 - 3) < 0.15
    assert abs(t["final_norm"].astype(np.float32).mean() - 1) < 0.1
    assert abs(t["layers.1.qkv.weight"].astype(np.float32).std() * hidden**0.5 - 1) < 0.05
    e2m1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])
    blocks = t["layers.1.up.blocks"]
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(*blocks.shape[:-1], 32)
    up = e2m1[codes] * np.exp2(t["layers.1.up.scales"].astype(float) - 127)[..., None]
    assert 0.6 < up.std() * hidden**0.5 < 1.6
    for name, value in t.items():
        if value.dtype != np.uint8:
            assert np.isfinite(value.astype(np.float32)).all() and (value != 0).mean() > 0.9, name


def test_verify_accepts_and_every_kind_of_damage_is_refused(image, tmp_path):
    assert "good" in must("verify", image)
    raw = image.read_bytes()
    entries, data = header(image)
    path = tmp_path / "damaged.nib"

    def damaged(content):
        path.write_bytes(content)
        return refused("verify", path)

    flip = lambda at: raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1:]  # noqa: E731
    assert "layers.0.qkv.weight differs from its hash" in damaged(flip(data + entries["layers.0.qkv.weight"]["data_offsets"][0] + 5))
    assert "padding" in damaged(flip(len(raw) - 1))
    assert "own hash" in damaged(raw.replace(b"seed 11", b"seed 13", 1))
    assert "differs at byte" in damaged(raw.replace(b'"lm_head"', b'"lm_tail"', 1))
    assert "shape" in damaged(raw.replace(b'"shape":"', b'"shape":"x', 1)[: len(raw)])
    assert "needs" in damaged(raw[:-ALIGN])
    assert "needs" in damaged(raw + bytes(ALIGN))
    assert "cut" in damaged(raw[:100])
    assert "too few" in damaged(raw[:7])
    assert "empty" in damaged(b"")
    assert "header length" in damaged(b"\xff" * 64)
    path.write_bytes(raw[:data])
    os.truncate(path, len(raw))
    assert "hole" in refused("verify", path) or "hash" in refused("verify", path)


def test_no_other_kind_of_file_is_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for command in ("verify", "info"):
        assert "a pipe" in refused(command, tmp_path / "fifo")
        assert "a folder" in refused(command, tmp_path)
        assert "regular file" in refused(command, "/dev/zero")
        assert "No such file" in refused(command, tmp_path / "none")


def test_signatures(shape, image, tmp_path):
    path = tmp_path / "signed.nib"
    path.write_bytes(image.read_bytes())
    must("keygen", tmp_path / "ours")
    must("keygen", tmp_path / "other")
    assert (tmp_path / "ours.key").stat().st_mode & 0o777 == 0o600
    assert "cannot create" in refused("keygen", tmp_path / "ours")
    public = (tmp_path / "ours.pub").read_text().strip()
    assert "not signed" in refused("verify", path, "--key", tmp_path / "ours.pub")
    must("sign", path, "--key", tmp_path / "ours.key")
    assert "by the given key" in must("verify", path, "--key", tmp_path / "ours.pub")
    assert "by the given key" in must("verify", path, "--key", public)
    assert json.loads(must("info", path, "--json"))["signed_by"] == public
    assert "signed by key" in refused("verify", path, "--key", tmp_path / "other.pub")
    assert "not a key" in refused("verify", path, "--key", image)
    assert tensors(path).keys() == tensors(image).keys()
    raw = bytearray(path.read_bytes())
    at = raw.index(b'"signature":"') + 20
    raw[at] = ord("0") if raw[at] != ord("0") else ord("1")
    path.write_bytes(raw)
    assert "signature" in refused("verify", path)
    raw = bytearray(image.read_bytes())
    raw[-ALIGN * 3] ^= 1
    path.write_bytes(raw)
    refused("sign", path, "--key", tmp_path / "ours.key")
    assert json.loads(must("info", path, "--json"))["signed_by"] is None


def test_wrong_usage_is_exit_code_2(tmp_path):
    for args in ([], ["frobnicate"], ["synth"], ["synth", "nano"], ["synth", "huge", tmp_path / "x"],
                 ["synth", "nano", tmp_path / "x", "--seed", "-1"], ["synth", "nano", tmp_path / "x", "--seed", "1x"],
                 ["synth", "nano", tmp_path / "x", "--format", "gguf"], ["info"], ["info", "a", "b"], ["verify"],
                 ["verify", "--what"], ["sign", "a"], ["keygen"]):
        done = nibble(*args)
        assert done.returncode == 2 and done.stderr, args
    assert not (tmp_path / "x").exists()
    for args in (["--help"], ["synth", "--help"], ["verify", "-h"], ["--version"]):
        assert must(*args)


def test_synth_says_what_it_cannot_write(tmp_path):
    assert "cannot create" in refused("synth", "nano", tmp_path / "no" / "folder.nib")
    (tmp_path / "file").write_text("")
    assert refused("synth", "nano", tmp_path / "file", "--format", "hf")
    assert "cannot open" in refused("synth", "small", tmp_path / "x.nib", "--vocab", tmp_path / "none")
    (tmp_path / "bad").write_text("not a vocabulary\n")
    refused("synth", "small", tmp_path / "x.nib", "--vocab", tmp_path / "bad")
    assert not (tmp_path / "x.nib").exists()
