"""nibble pack: three layouts of one checkpoint give the same tensors; every malformed source is refused.

NIB_BUILD names the folder with the programs (default build/rel)."""
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import pack_sources as sources

NIBBLE = pathlib.Path(os.environ.get("NIB_BUILD", "build/rel")).resolve() / "nibble"
ROOT = pathlib.Path(__file__).resolve().parents[2]


def nibble(*args):
    return subprocess.run([NIBBLE, *map(str, args)], capture_output=True, text=True, cwd=ROOT, timeout=600)


def must(*args):
    done = nibble(*args)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tensors_of(image):
    """name -> bytes of every tensor of an image but its padding."""
    return {
        name: array.tobytes()
        for name, (_, array) in sources.read_safetensors(image).items()
        if not name.startswith("pad.")
    }


@pytest.fixture(scope="session", params=["nano", "tiny"])
def checkpoint(request, tmp_path_factory):
    """(Hugging Face folder, image) that synth made from one seed."""
    folder = tmp_path_factory.mktemp(request.param)
    must("synth", request.param, folder / "hf", "--seed", 7, "--format", "hf")
    must("synth", request.param, folder / "synth.nib", "--seed", 7)
    return folder / "hf", folder / "synth.nib"


@pytest.fixture(scope="session")
def nano(tmp_path_factory):
    """A pristine nano checkpoint in all three layouts; copied by the tests that damage it."""
    folder = tmp_path_factory.mktemp("pristine")
    must("synth", "nano", folder / "hf", "--seed", 3, "--format", "hf")
    sources.to_openai(folder / "hf", folder / "openai")
    sources.to_gguf(folder / "hf", folder / "model.gguf")
    return folder


# ---- what is accepted ----


def test_three_layouts_are_bit_identical(checkpoint, tmp_path):
    hf, synth = checkpoint
    sources.to_openai(hf, tmp_path / "openai")
    sources.to_gguf(hf, tmp_path / "model.gguf", "BF16")
    sources.to_gguf(hf, tmp_path / "wide.gguf", "F32")
    wanted = tensors_of(synth)
    for source in (hf, tmp_path / "openai", tmp_path / "model.gguf", tmp_path / "wide.gguf"):
        out = tmp_path / "out.nib"
        text = must("pack", source, out)
        got = tensors_of(out)
        assert got.keys() == wanted.keys()
        assert [name for name in wanted if got[name] != wanted[name]] == []
        must("verify", out)
        if source.suffix == ".gguf":
            assert " 0 of them rounded" in text
        else:
            assert "rounded" not in text


def test_images_are_reproducible(nano, tmp_path):
    for source in ("hf", "openai", "model.gguf"):
        must("pack", nano / source, tmp_path / "a.nib")
        must("pack", nano / source, tmp_path / "b.nib")
        assert (tmp_path / "a.nib").read_bytes() == (tmp_path / "b.nib").read_bytes()


@pytest.mark.parametrize("dense", ["F16", "Q8_0"])
def test_lossy_gguf_rounds_to_nearest_even(checkpoint, tmp_path, dense):
    hf, synth = checkpoint
    used = sources.to_gguf(hf, tmp_path / "model.gguf", dense)
    text = must("pack", tmp_path / "model.gguf", tmp_path / "out.nib")
    hf_tensors = sources.read_hf(hf)
    sources_image = tmp_path / "expected"
    expected_hf = {
        name: (kind, sources.round_trip(array, used[name]) if name in used else array)
        for name, (kind, array) in hf_tensors.items()
    }
    shutil.copytree(hf, sources_image)
    for shard in sources_image.glob("*.safetensors"):
        names = sources.read_safetensors(shard).keys()
        sources.write_safetensors({name: expected_hf[name] for name in names}, shard)
    must("pack", sources_image, tmp_path / "expected.nib")
    got, wanted = tensors_of(tmp_path / "out.nib"), tensors_of(tmp_path / "expected.nib")
    assert [name for name in wanted if got[name] != wanted[name]] == []
    exact = tensors_of(synth)
    assert [n for n in exact if "blocks" in n or "scales" in n] != []
    assert all(got[n] == exact[n] for n in exact if "blocks" in n or "scales" in n)
    if dense == "Q8_0":
        assert got["embed"] != exact["embed"] and " 0 of them rounded" not in text


def mxfp8(codes):
    """bf16 codes [n, k] -> E4M3 codes [n, k], scales [n, k/32]: MX 1.0 section 6.3 in float64, rounded by ml_dtypes."""
    x = codes.view(ml_dtypes.bfloat16).astype(np.float64).reshape(codes.shape[0], -1, 32)
    largest = np.abs(x).max(axis=2, keepdims=True)
    exponent = np.floor(np.log2(np.where(largest > 0, largest, 1))) - 8
    scale = np.where(largest > 0, np.clip(exponent + 127, 0, 254), 0).astype(np.uint8)
    scaled = np.clip(x * 2.0 ** (127.0 - scale), -448, 448)
    e4m3 = scaled.astype(np.float32).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    return e4m3.reshape(codes.shape), scale.reshape(codes.shape[0], -1)


def is_dense(name):
    return name == "lm_head" or name.endswith(("qkv.weight", "out.weight"))


def scales_of(name):
    return name.removesuffix(".weight") + ".scales"


def test_mxfp8_matrices_are_as_numpy_rounds_them(checkpoint, tmp_path):
    hf, synth = checkpoint
    text = must("pack", hf, tmp_path / "m8.nib", "--dense", "mxfp8")
    must("verify", tmp_path / "m8.nib")
    exact, got = sources.read_safetensors(synth), sources.read_safetensors(tmp_path / "m8.nib")
    names = [name for name in exact if not name.startswith("pad.")]
    dense = [name for name in names if is_dense(name)]
    assert len(dense) == 1 + 2 * sum(name.endswith("sinks") for name in names)
    assert {n for n in got if not n.startswith("pad.")} == {*names, *map(scales_of, dense)}
    off = norm = count = 0
    for name in names:
        if name not in dense:
            assert got[name][1].tobytes() == exact[name][1].tobytes(), name
            continue
        codes, scales = mxfp8(exact[name][1])
        assert got[name][0] == "F8_E4M3" and got[scales_of(name)][0] == "U8"
        assert np.array_equal(got[name][1], codes) and np.array_equal(got[scales_of(name)][1], scales), name
        x = exact[name][1].view(ml_dtypes.bfloat16).astype(np.float64)
        y = codes.view(ml_dtypes.float8_e4m3fn).astype(np.float64) * 2.0 ** (scales.repeat(32, axis=1) - 127.0)
        off, norm, count = off + ((x - y) ** 2).sum(), norm + (x**2).sum(), count + x.size
    assert f"dense      {count} weights rounded to MXFP8, relative error {(off / norm) ** 0.5:.4f}\n" in text
    info = json.loads(must("info", tmp_path / "m8.nib", "--json"))
    assert info["dense"] == "mxfp8" and json.loads(must("info", synth, "--json"))["dense"] == "bf16"


def test_mxfp8_of_three_layouts_and_of_synth_is_the_same(checkpoint, tmp_path):
    hf, synth = checkpoint
    seed = 7
    must("synth", "nano" if "nano" in str(hf.parent) else "tiny", tmp_path / "synth.nib", "--seed", seed, "--dense", "mxfp8")
    wanted = tensors_of(tmp_path / "synth.nib")
    sources.to_openai(hf, tmp_path / "openai")
    sources.to_gguf(hf, tmp_path / "model.gguf", "F32")
    for source in (hf, tmp_path / "openai", tmp_path / "model.gguf"):
        must("pack", source, tmp_path / "out.nib", "--dense", "mxfp8")
        assert tensors_of(tmp_path / "out.nib") == wanted


def test_weights_too_large_for_mxfp8_are_refused(nano, tmp_path):
    shutil.copytree(nano / "hf", tmp_path / "hf")
    shard = next(s for s in (tmp_path / "hf").glob("*.safetensors") if "lm_head.weight" in sources.read_safetensors(s))
    tensors = {name: (kind, array.copy()) for name, (kind, array) in sources.read_safetensors(shard).items()}
    tensors["lm_head.weight"][1][5, 7] = 0xC780  # -65536
    sources.write_safetensors(tensors, shard)
    must("pack", tmp_path / "hf", tmp_path / "bf16.nib")
    done = nibble("pack", tmp_path / "hf", tmp_path / "m8.nib", "--dense", "mxfp8")
    assert done.returncode == 1 and not (tmp_path / "m8.nib").exists()
    assert done.stderr == ("nibble pack: tensor lm_head.weight has a value of 65536 or more, which is too large for dense "
                           "weights in MXFP8\n")
    tensors["lm_head.weight"][1][5, 7] = 0xC77F  # -65280
    sources.write_safetensors(tensors, shard)
    must("pack", tmp_path / "hf", tmp_path / "m8.nib", "--dense", "mxfp8")


@pytest.mark.parametrize("args", [("pack", "SRC", "OUT", "--dense", "fp8"), ("synth", "nano", "OUT", "--dense", ""),
                                  ("synth", "nano", "OUT", "--dense", "mxfp8", "--format", "hf"),
                                  ("bench", "IMAGE", "--dense", "mxfp8")])
def test_forms_that_are_refused(nano, tmp_path, args):
    names = {"SRC": nano / "hf", "OUT": tmp_path / "out", "IMAGE": tmp_path / "image.nib"}
    done = nibble(*[names.get(a, a) for a in args])
    assert done.returncode == 2 and "--dense" in done.stderr.splitlines()[0]
    assert list(tmp_path.iterdir()) == []


def check_signal_leaves_nothing(source, folder):
    """Stops a pack as soon as its temporary file is there: exit 1, a sentence, an empty folder."""
    folder.mkdir()
    running = subprocess.Popen([NIBBLE, "pack", source, folder / "out.nib"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not any(folder.iterdir()) and running.poll() is None:
        pass
    running.terminate()
    _, text = running.communicate(timeout=60)
    assert running.returncode == 1 and "stopped by signal 15" in text, text
    assert list(folder.iterdir()) == []


def test_whole_vocabulary(tmp_path):
    """446,189 merges of o200k, from tokenizer.json and from GGUF metadata, against the .tiktoken file."""
    must("synth", "small", tmp_path / "hf", "--format", "hf")
    must("pack", tmp_path / "hf", tmp_path / "hf.nib")
    check_signal_leaves_nothing(tmp_path / "hf", tmp_path / "stopped")
    sources.to_gguf(tmp_path / "hf", tmp_path / "model.gguf", "BF16")
    shutil.rmtree(tmp_path / "hf")
    must("pack", tmp_path / "model.gguf", tmp_path / "gguf.nib")
    (tmp_path / "model.gguf").unlink()
    hf, gguf_image = tensors_of(tmp_path / "hf.nib"), tensors_of(tmp_path / "gguf.nib")
    (tmp_path / "hf.nib").unlink()
    must("synth", "small", tmp_path / "synth.nib")
    assert hf["tokenizer"] == tensors_of(tmp_path / "synth.nib")["tokenizer"]
    assert [name for name in hf if hf[name] != gguf_image[name]] == []


def test_split_gguf(nano, tmp_path):
    sources.to_gguf(nano / "hf", tmp_path / "m.gguf", split_max_tensors=15, alignment=64)
    parts = sorted(path.name for path in tmp_path.glob("*.gguf"))
    assert parts == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    must("pack", tmp_path / parts[0], tmp_path / "out.nib")
    must("pack", nano / "hf", tmp_path / "hf.nib")
    assert tensors_of(tmp_path / "out.nib") == tensors_of(tmp_path / "hf.nib")
    refused(tmp_path / parts[1], "not the first file of a split")
    (tmp_path / parts[1]).rename(tmp_path / "away")
    refused(tmp_path / parts[0], "cannot open")
    shutil.copy(tmp_path / parts[2], tmp_path / parts[1])
    refused(tmp_path / parts[0], "is not part 2 of 3")
    (tmp_path / "away").rename(tmp_path / parts[1])
    (tmp_path / parts[0]).rename(tmp_path / "other.gguf")
    refused(tmp_path / "other.gguf", "must have a name that ends in -00001-of-00003.gguf")


def test_sharded_openai_folder(nano, tmp_path):
    tensors = sources.read_safetensors(nano / "openai" / "model.safetensors")
    shutil.copytree(nano / "openai", tmp_path / "s")
    (tmp_path / "s" / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for i in range(3):
        shard = f"model--0000{i + 1}-of-00003.safetensors"
        sources.write_safetensors({name: tensors[name] for name in names[i::3]}, tmp_path / "s" / shard)
        weight_map.update({name: shard for name in names[i::3]})
    (tmp_path / "s" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    must("pack", tmp_path / "s", tmp_path / "a.nib")
    must("pack", nano / "openai", tmp_path / "b.nib")
    assert tensors_of(tmp_path / "a.nib") == tensors_of(tmp_path / "b.nib")


def test_missing_call_id_is_added(nano, tmp_path):
    shutil.copytree(nano / "hf", tmp_path / "hf")
    config = tmp_path / "hf" / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": [260, 257], "bos_token_id": 256, "pad_token_id": 257}))
    text = must("pack", tmp_path / "hf", tmp_path / "out.nib")
    assert "stop ids   1 that the source lacked" in text
    generation = json.loads(tensors_of(tmp_path / "out.nib")["generation"])
    assert generation["eos_token_id"] == [260, 257, 270]
    config.unlink()
    assert "stop ids" not in must("pack", tmp_path / "hf", tmp_path / "out.nib")


def test_newer_transformers_config(nano, tmp_path):
    shutil.copytree(nano / "hf", tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"] = config.pop("rope_scaling") | {"rope_theta": config.pop("rope_theta")}
    path.write_text(json.dumps(config))
    must("pack", tmp_path / "hf", tmp_path / "out.nib")


def test_signing(nano, tmp_path):
    must("keygen", tmp_path / "k")
    must("pack", nano / "hf", tmp_path / "out.nib", "--key", tmp_path / "k.key")
    must("verify", tmp_path / "out.nib", "--key", tmp_path / "k.pub")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k.key", "k.pub", "out.nib"]
    done = nibble("pack", nano / "hf", tmp_path / "o2.nib", "--key", tmp_path / "none")
    assert done.returncode == 2 and not (tmp_path / "o2.nib").exists()


def test_vocab_option_replaces_the_tokenizer(nano, tmp_path):
    import base64

    lines = [base64.b64encode(bytes([b])) + b" %d\n" % b for b in range(256)]
    (tmp_path / "v.tiktoken").write_bytes(b"".join(lines))
    (tmp_path / "bad.tiktoken").write_bytes(b"".join(lines[:-1]))
    must("pack", nano / "openai", tmp_path / "out.nib", "--vocab", tmp_path / "v.tiktoken")
    must("pack", nano / "hf", tmp_path / "hf.nib")
    assert tensors_of(tmp_path / "out.nib") == tensors_of(tmp_path / "hf.nib")
    done = nibble("pack", nano / "hf", tmp_path / "o2.nib", "--vocab", tmp_path / "bad.tiktoken")
    assert done.returncode == 1 and not (tmp_path / "o2.nib").exists()


# ---- what is refused ----


def refused(source, wanted, out=None):
    """Exit 1, one sentence with `wanted` in it, and no file left behind."""
    target = out or source.parent / "refused" / "out.nib"
    if not out:
        target.parent.mkdir(exist_ok=True)
    done = nibble("pack", source, target)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("nibble pack: ") and done.stderr.count("\n") == 1, done.stderr
    assert wanted in done.stderr, done.stderr
    if not out:
        assert list(target.parent.iterdir()) == []
    return done.stderr


def set_json(name, **changes):
    def edit(folder):
        path = folder / name
        value = json.loads(path.read_text())
        for key, change in changes.items():
            if change is None:
                del value[key]
            else:
                value[key] = change
        path.write_text(json.dumps(value))

    return edit


def write(name, content):
    def edit(folder):
        (folder / name).write_bytes(content)

    return edit


def remove(name):
    def edit(folder):
        (folder / name).unlink()

    return edit


INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"
EMBED = "model.embed_tokens.weight"


def remap(tensor, file):
    def edit(folder):
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"][tensor] = file
        (folder / INDEX).write_text(json.dumps(index))

    return edit


def unmap(folder):
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][EMBED]
    (folder / INDEX).write_text(json.dumps(index))


def shard_of(folder, tensor):
    if (folder / INDEX).exists():
        return folder / json.loads((folder / INDEX).read_text())["weight_map"][tensor]
    return folder / "model.safetensors"


def edit_header(change, tensor=EMBED, data_change=None):
    """change(header) works on the header as a dict, or returns its new text."""

    def edit(folder):
        path = shard_of(folder, tensor)
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        text = change(header)
        text = text if isinstance(text, str) else json.dumps(header)
        body = data[8 + length :]
        path.write_bytes(struct.pack("<Q", len(text.encode())) + text.encode() + (data_change or (lambda b: b))(body))

    return edit


def entry(**changes):
    def change(header):
        for key, value in changes.items():
            if value is None:
                del header[EMBED][key]
            else:
                header[EMBED][key] = value

    return edit_header(change)


def append(name, extra):
    def edit(folder):
        with open(folder / name, "ab") as file:
            file.write(extra)

    return edit


def cut(name, n):
    def edit(folder):
        os.truncate(folder / name, (folder / name).stat().st_size - n)

    return edit


def grow(name, size):
    def edit(folder):
        os.truncate(folder / name, size)

    return edit


def rewrite(change, tensor=EMBED):
    """change(tensors) works on the shard that holds `tensor`; the index follows."""

    def edit(folder):
        path = shard_of(folder, tensor)
        tensors = sources.read_safetensors(path)
        change(tensors)
        sources.write_safetensors(tensors, path)
        if (folder / INDEX).exists():
            index = json.loads((folder / INDEX).read_text())
            kept = {n: f for n, f in index["weight_map"].items() if f != path.name}
            index["weight_map"] = kept | {n: path.name for n in tensors}
            (folder / INDEX).write_text(json.dumps(index))

    return edit


def set_value(tensor, index, code):
    def change(tensors):
        kind, array = tensors[tensor]
        array = array.copy()
        array.reshape(-1)[index] = code
        tensors[tensor] = (kind, array)

    return rewrite(change, tensor)


L0 = "model.layers.0."
NORM = L0 + "input_layernorm.weight"
SCALES = L0 + "mlp.experts.down_proj_scales"
HF_CASES = {
    "no config": (remove("config.json"), "cannot open"),
    "config is not JSON": (write("config.json", b"{"), "config.json is not a JSON object"),
    "config has a key twice": (write("config.json", b'{"hidden_size":32,"hidden_size":32}'), "not a JSON object"),
    "config is an array": (write("config.json", b"[]"), "not a JSON object"),
    "config is nested deep": (write("config.json", b"[" * 100000), "not a JSON object"),
    "config is too large": (grow("config.json", (1 << 20) + 1), "at most 1048576"),
    "config is empty": (write("config.json", b""), "not a regular file with content"),
    "hidden size": (set_json("config.json", hidden_size=33), "none of the shapes 20b, 120b"),
    "layers": (set_json("config.json", num_hidden_layers=3), "3 layers, 4 experts"),
    "huge layers": (set_json("config.json", num_hidden_layers=2**40), "num_hidden_layers must be"),
    "negative vocabulary": (set_json("config.json", vocab_size=-1), "vocab_size must be"),
    "window as text": (set_json("config.json", sliding_window="128"), "sliding_window must be"),
    "no experts": (set_json("config.json", num_local_experts=None), "num_local_experts must be"),
    "other model": (set_json("config.json", model_type="llama"), "model_type must be gpt_oss"),
    "rope base": (set_json("config.json", rope_theta=10000), "rope_theta must be 150000"),
    "rope kind": (set_json("config.json", rope_scaling={"rope_type": "linear"}), "rope_type must be yarn"),
    "rope factor": (set_json("config.json", rope_scaling={"factor": 8}), "factor must be 32"),
    "norm epsilon": (set_json("config.json", rms_norm_eps=1e-6), "rms_norm_eps must be 1e-05"),
    "layer kinds": (set_json("config.json", layer_types=["full_attention"] * 2), "layer_types must alternate"),
    "swiglu limit": (set_json("config.json", swiglu_limit=6.0), "swiglu_limit must be 7"),
    "tied embeddings": (set_json("config.json", tie_word_embeddings=True), "tie_word_embeddings must be 0"),
    "no index, no model": (remove(INDEX), "cannot open"),
    "index is not JSON": (write(INDEX, b"{]"), "is not a JSON object"),
    "index names a tensor twice": (write(INDEX, b'{"weight_map":{"a":"x.safetensors","a":"x.safetensors"}}'), "double keys"),
    "index has no map": (write(INDEX, b"{}"), "no weight_map"),
    "map is an array": (write(INDEX, b'{"weight_map":[]}'), "no weight_map"),
    "path out of the folder": (remap(EMBED, "../m.safetensors"), "must be a plain name"),
    "absolute path": (remap(EMBED, "/etc/m.safetensors"), "must be a plain name"),
    "path into a folder": (remap(EMBED, "a/m.safetensors"), "must be a plain name"),
    "hidden file": (remap(EMBED, ".safetensors"), "must be a plain name"),
    "other ending": (remap(EMBED, "model.bin"), "must be a plain name"),
    "file is a number": (remap(EMBED, 7), "must be a plain name"),
    "control character in a file": (remap(EMBED, "\x1b[2J.safetensors"), "must be a plain name"),
    "missing file": (remap(EMBED, "nope.safetensors"), "cannot open"),
    "wrong file": (remap(EMBED, "model-00002-of-00002.safetensors"), "is not in model-00002"),
    "unknown tensor in the index": (remap("nope", SHARD), "tensor nope is not in"),
    "control character in a tensor": (remap("\x1b[2J", SHARD), "printable ASCII"),
    "index lacks a tensor": (unmap, "lists 40 tensors, but the shards hold 41"),
    "shard is missing": (remove(SHARD), "cannot open"),
    "shard is empty": (write(SHARD, b""), "not a regular file with content"),
    "shard of 9 bytes": (write(SHARD, b"\0" * 9), "too short"),
    "shard lacks its last byte": (cut(SHARD, 1), "the file ends at"),
    "shard has a byte too many": (append(SHARD, b"\0"), "cover"),
    "shard ends in its header": (lambda f: os.truncate(f / SHARD, 100), "claims a safetensors header"),
    "header of 2^63 bytes": (write(SHARD, struct.pack("<Q", 1 << 63) + b"{}"), "claims a safetensors header"),
    "header above the cap": (
        lambda f: (write(SHARD, struct.pack("<Q", (100 << 20) + 1))(f), grow(SHARD, 101 << 20)(f)),
        "allowed are 2 to 104857600",
    ),
    "header is not JSON": (edit_header(lambda h: json.dumps(h)[:-1] + "!"), "not well-formed JSON"),
    "header begins with a space": (edit_header(lambda h: " " + json.dumps(h)), "not well-formed JSON"),
    "header is an array": (edit_header(lambda h: "[]"), "not well-formed JSON"),
    "header nests deep": (edit_header(lambda h: '{"__metadata__":' + "[" * 9999), "__metadata__ must be one object"),
    "tensor twice": (
        edit_header(lambda h: json.dumps(h)[:-1] + f',"{EMBED}":{json.dumps(h[EMBED])}' + "}"),
        "cover",
    ),
    "tensor in two shards": (
        rewrite(lambda t: t.update({EMBED: t["lm_head.weight"]}), "lm_head.weight"),
        f"tensor {EMBED} comes twice, in model-0000",
    ),
    "field twice": (edit_header(lambda h: json.dumps(h).replace('"dtype"', '"dtype": "BF16", "dtype"', 1)), "must have exactly"),
    "no type": (entry(dtype=None), "must have exactly"),
    "type I64": (entry(dtype="I64"), "not one of F32, F16, BF16 and U8"),
    "type is a number": (entry(dtype=1), "must have exactly"),
    "type U8": (entry(dtype="U8", shape=[288, 64]), "has type U8, but must be BF16"),
    "no shape": (entry(shape=None), "must have exactly"),
    "fractional shape": (entry(shape=[288, 32.0]), "must have exactly"),
    "negative shape": (entry(shape=[-288, -32]), "must have exactly"),
    "five dimensions": (entry(shape=[1, 1, 1, 288, 32]), "must have exactly"),
    "no dimensions": (entry(shape=[]), "0 dimensions"),
    "zero dimension": (entry(shape=[0, 32]), "zero or impossible"),
    "shape overflows": (entry(shape=[1 << 40, 1 << 40]), "zero or impossible"),
    "shape above 2^64": (entry(shape=[1 << 64, 1]), "must have exactly"),
    "transposed": (entry(shape=[32, 288]), "has shape [32, 288], but shape nano needs [288, 32]"),
    "shape and offsets disagree": (entry(shape=[288, 31]), "needs 17856 bytes"),
    "offsets reversed": (entry(data_offsets=[18432, 0]), "must have exactly"),
    "one offset": (entry(data_offsets=[0]), "must have exactly"),
    "offsets far out": (entry(data_offsets=[1 << 63, (1 << 63) + 18432]), "the file ends at"),
    "unknown field": (entry(extra=1), "must have exactly"),
    "tensors share bytes": (edit_header(lambda h: h[EMBED].update(data_offsets=[2, 18434])), "share bytes"),
    "tensor is null": (edit_header(lambda h: h.update({EMBED: None})), "must have exactly"),
    "name with a control character": (edit_header(lambda h: h.update({"\x1b": h.pop(EMBED)})), "printable ASCII"),
    "name too long": (edit_header(lambda h: h.update({"x" * 96: h.pop(EMBED)})), "1 to 95 printable"),
    "tensor is missing": (rewrite(lambda t: t.pop(NORM), NORM), f"tensor {NORM} is missing"),
    "tensor too many": (
        rewrite(lambda t: t.update({L0 + "self_attn.lora_A": t[NORM]}), NORM),
        "which a gpt-oss model of shape nano does not have",
    ),
    "layer too many": (rewrite(lambda t: t.update({"model.layers.2.input_layernorm.weight": t[NORM]}), NORM), "does not have"),
    "infinite weight": (set_value(NORM, 3, 0x7F80), "not a finite bf16 number"),
    "NaN weight": (set_value(NORM, 0, 0xFFC1), "not a finite bf16 number"),
    "NaN scale": (set_value(SCALES, -1, 255), f"tensor {SCALES} has a scale of 255"),
    "no tokenizer": (remove("tokenizer.json"), "no tokenizer.json"),
    "tokenizer is not JSON": (write("tokenizer.json", b"{"), "tokenizer.json"),
    "stop id out of range": (set_json("generation_config.json", eos_token_id=288), "eos_token_id must be"),
    "generation is not JSON": (write("generation_config.json", b"nul"), "not a JSON object"),
}


@pytest.mark.parametrize("case", HF_CASES)
def test_bad_hugging_face_folder_is_refused(nano, tmp_path, case):
    edit, wanted = HF_CASES[case]
    shutil.copytree(nano / "hf", tmp_path / "hf")
    edit(tmp_path / "hf")
    refused(tmp_path / "hf", wanted)


QKV = "block.0.attn.qkv.weight"
OPENAI_CASES = {
    "no qkv": (rewrite(lambda t: t.pop(QKV)), f"tensor {QKV} is missing"),
    "qkv lacks a row": (rewrite(lambda t: t.update({QKV: ("BF16", t[QKV][1][:-1])})), "has shape [639, 32]"),
    "both layouts": (rewrite(lambda t: t.update({EMBED: t["embedding.weight"]})), "alone"),
    "neither layout": (rewrite(lambda t: t.update(x=t.pop("embedding.weight"))), "neither"),
    "context": (set_json("config.json", initial_context_length=2048), "initial_context_length must be 4096"),
    "rope": (set_json("config.json", rope_ntk_beta=16), "rope_ntk_beta must be 32"),
}


@pytest.mark.parametrize("case", OPENAI_CASES)
def test_bad_openai_folder_is_refused(nano, tmp_path, case):
    edit, wanted = OPENAI_CASES[case]
    shutil.copytree(nano / "openai", tmp_path / "openai")
    edit(tmp_path / "openai")
    refused(tmp_path / "openai", wanted)


def key_at(data, key):
    """Where a metadata key's type number begins."""
    stored = struct.pack("<Q", len(key)) + key.encode()
    assert data.count(stored) == 1, key
    return data.index(stored) + len(stored)


def patch_key(key, value, skip=4):
    def edit(data):
        at = key_at(data, key) + skip
        return data[:at] + value + data[at + len(value) :]

    return edit


def rename_key(key):
    return lambda data: data.replace(key.encode(), b"x" * len(key), 1)


def at_byte(at, value):
    return lambda data: data[:at] + value + data[at + len(value) :]


def tensor_field(name, field, value):
    """Overwrites dims ("dims"), type or offset of a tensor's entry."""

    def edit(data):
        stored = struct.pack("<Q", len(name)) + name.encode()
        at = data.rindex(stored) + len(stored)
        (dims,) = struct.unpack_from("<I", data, at)
        at += {"count": 0, "dims": 4, "type": 4 + 8 * dims, "offset": 8 + 8 * dims}[field]
        return data[:at] + value + data[at + len(value) :]

    return edit


def u32(value):
    return struct.pack("<I", value)


def u64(value):
    return struct.pack("<Q", value)


GGUF_CASES = {
    "version 1": (at_byte(4, u32(1)), "version 2 or 3"),
    "version 4": (at_byte(4, u32(4)), "version 2 or 3"),
    "big-endian": (at_byte(4, struct.pack(">I", 3)), "version 2 or 3"),
    "2^63 tensors": (at_byte(8, u64(1 << 63)), "claims 9223372036854775808 tensors"),
    "one tensor too many": (at_byte(8, u64(48)), "inside the list of tensors"),
    "2^63 keys": (at_byte(16, u64(1 << 63)), "claims 9223372036854775808 metadata keys"),
    "key of 2^63 bytes": (at_byte(24, u64(1 << 63)), "inside a metadata key"),
    "16 bytes": (lambda d: d[:16], "inside its first 24 bytes"),
    "last byte is missing": (lambda d: d[:-1], "passes the end of the file"),
    "other architecture": (patch_key("general.architecture", b"gpt-osz", 12), "general.architecture must be gpt-oss"),
    "architecture is a number": (patch_key("general.architecture", u32(4), 0), "model.gguf"),
    "no layers": (rename_key("gpt-oss.block_count"), "gpt-oss.block_count must be"),
    "3 layers": (patch_key("gpt-oss.block_count", u32(3)), "3 layers, 4 experts"),
    "layers as a float": (patch_key("gpt-oss.block_count", u32(6), 0), "gpt-oss.block_count must be"),
    "unknown type": (patch_key("gpt-oss.block_count", u32(13), 0), "has type 13"),
    "head size": (patch_key("gpt-oss.attention.key_length", u32(128)), "key_length must be 64"),
    "rope base": (patch_key("gpt-oss.rope.freq_base", struct.pack("<f", 1e4)), "freq_base must be 150000"),
    "epsilon NaN": (
        patch_key("gpt-oss.attention.layer_norm_rms_epsilon", struct.pack("<f", float("nan"))),
        "epsilon must be 1e-05",
    ),
    "2^62 tokens": (patch_key("tokenizer.ggml.tokens", u64(1 << 62), 8), "claims more values"),
    "287 tokens": (patch_key("tokenizer.ggml.tokens", u64(287), 8), "model.gguf"),
    "array of arrays": (patch_key("tokenizer.ggml.tokens", u32(9), 4), "array of arrays"),
    "tokens as numbers": (patch_key("tokenizer.ggml.token_type", u32(6), 4), "token_type must be"),
    "other tokenizer": (patch_key("tokenizer.ggml.model", b"bert", 12), "tokenizer.ggml.model must be gpt2"),
    "other splitting": (patch_key("tokenizer.ggml.pre", b"gpt-4x", 12), "tokenizer.ggml.pre must be gpt-4o"),
    "Q4_K": (tensor_field("output.weight", "type", u32(12)), "has ggml type 12"),
    "dense as experts": (tensor_field("output.weight", "type", u32(39)), "has type MXFP4, but must be BF16, F32, F16 or Q8_0"),
    "5 dimensions": (tensor_field("output.weight", "count", u32(5)), "5 dimensions"),
    "half a block": (tensor_field("blk.0.ffn_up_exps.weight", "dims", u64(48)), "not whole blocks of 32"),
    "dimension of 2^63": (tensor_field("output.weight", "dims", u64(1 << 63)), "zero or impossible"),
    "offset past the end": (tensor_field("output.weight", "offset", u64(1 << 40)), "but the file ends at"),
    "offset of 2^64": (tensor_field("output.weight", "offset", u64((1 << 64) - 32)), "but the file ends at"),
    "offset not aligned": (tensor_field("output_norm.weight", "offset", u64(33)), "not aligned to 32"),
    "tensors share bytes": (tensor_field("output_norm.weight", "offset", u64(0)), "share bytes"),
    "tensor is missing": (lambda d: d.replace(b"blk.1.attn_k.bias", b"blk.1.attn_k.bine"), "blk.1.attn_k.bias is missing"),
    "tensor twice": (lambda d: d.replace(b"blk.1.attn_k.bias", b"blk.0.attn_k.bias"), "comes twice"),
    "name with a control character": (lambda d: d.replace(b"blk.1.attn_k.bias", b"blk.1.attn_k.bi\x1bs"), "printable ASCII"),
    "token twice": (lambda d: d.replace(u64(1) + b"A", u64(1) + b"B", 1), "comes twice"),
    "special token elsewhere": (lambda d: d.replace(b"<|call|>", b"<|cull|>"), "<|call|>"),
}


@pytest.mark.parametrize("case", GGUF_CASES)
def test_bad_gguf_is_refused(nano, tmp_path, case):
    edit, wanted = GGUF_CASES[case]
    good = (nano / "model.gguf").read_bytes()
    bad = edit(good)
    assert bad != good
    (tmp_path / "model.gguf").write_bytes(bad)
    refused(tmp_path / "model.gguf", wanted)


@pytest.mark.parametrize("tensor", ["gate_up", "down"])
def test_nan_scale_in_gguf_is_refused(nano, tmp_path, tensor):
    shutil.copytree(nano / "hf", tmp_path / "hf")
    set_value(L0 + f"mlp.experts.{tensor}_proj_scales", 5, 255)(tmp_path / "hf")
    sources.to_gguf(tmp_path / "hf", tmp_path / "model.gguf")
    refused(tmp_path / "model.gguf", "has a scale of 255")


def test_gguf_cut_anywhere_is_refused(nano, tmp_path):
    good = (nano / "model.gguf").read_bytes()
    for at in list(range(4, 40, 3)) + list(range(40, len(good), len(good) // 40)):
        (tmp_path / "model.gguf").write_bytes(good[:at])
        refused(tmp_path / "model.gguf", "model.gguf")


def test_shard_cut_anywhere_is_refused(nano, tmp_path):
    shutil.copytree(nano / "hf", tmp_path / "hf")
    good = (nano / "hf" / SHARD).read_bytes()
    for at in list(range(1, 40, 3)) + list(range(40, len(good), len(good) // 40)):
        (tmp_path / "hf" / SHARD).write_bytes(good[:at])
        refused(tmp_path / "hf", SHARD)


def test_bad_sources_and_targets(nano, tmp_path):
    refused(tmp_path / "nope", "cannot open")
    (tmp_path / "text").write_text("hello")
    refused(tmp_path / "text", "neither a checkpoint's folder nor a GGUF file")
    refused(pathlib.Path("/dev/null"), "neither", tmp_path / "x.nib")
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", "neither")
    shutil.copytree(nano / "hf", tmp_path / "hf")
    (tmp_path / "hf" / "config.json").unlink()
    os.mkfifo(tmp_path / "hf" / "config.json")
    refused(tmp_path / "hf", "not a regular file")
    refused(nano / "hf", "no-folder", tmp_path / "no-folder" / "x.nib")
    shutil.copy(nano / "model.gguf", tmp_path / "m.gguf")
    refused(tmp_path / "m.gguf", "is a file of the source itself", tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == (nano / "model.gguf").read_bytes()
    for args in ([], [nano / "hf"], [nano / "hf", "a", "b"], ["--nope", nano / "hf", "a"]):
        assert nibble("pack", *args).returncode == 2
