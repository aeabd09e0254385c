#!/usr/bin/env python3
"""Number formats against independent references: ml_dtypes, numpy's float16, gguf, and the MX 1.0 text in numpy.

    mx_full.py            compile core/mx*.c, compare every code and millions of encodings, one line a format
    mx_full.py --write    then write tests/vectors/mx_vectors.h, the digests that tests/core/mx_test.c compares with

The committed form is small: for each format the SHA-256 of the reference's results over inputs that the C test makes
again by the same rule (all codes; all values, midpoints and their neighbours; random bits; random values in range).
"""
import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile

import gguf
import ml_dtypes
import numpy as np
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RANDOMS = 1 << 18   # of each kind, in the committed digests
FULL = 1 << 24      # of each kind, in the full run
BLOCKS = 4096       # of each block format
SEED = 20251122


def words(seed, count, first=0):
    """splitmix64, as nib_test_rand in tests/harness.h."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + (np.arange(first + 1, first + count + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def f32(bits):
    return np.asarray(bits, dtype=np.uint32).view(np.float32)


class Element:
    """One element format: decode(codes) and encode(floats) of the reference; exponents of random values in range."""

    def __init__(self, name, bits, dtype, exponents, decode, encode):
        self.name, self.bits, self.dtype, self.exponents = name, bits, dtype, exponents
        self.ref_decode, self.ref_encode = decode, encode

    def codes(self):
        return np.arange(1 << self.bits, dtype=self.dtype)

    def inputs(self, count):
        """Values, midpoints and neighbours of the non-negative codes with both signs, then the two random kinds."""
        v = self.ref_decode(self.codes()[: 1 << (self.bits - (self.name != "e8m0"))])
        v = v[np.isfinite(v)]
        step = np.append(v[1:] - v[:-1], v[-1] - v[-2]).astype(np.float32)
        middle = (v + step / np.float32(2)).astype(np.float32)
        edge = np.stack([v, middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(0))], 1)
        edge = np.stack([edge, -edge], 2).astype(np.float32).reshape(-1)
        special = f32([0, 0x80000000, 0x7F800000, 0xFF800000, 1, 0x80000001, 0x7F7FFFFF, 0xFF7FFFFF, 0x00800000,
                       0x007FFFFF, 0x7FC00000, 0xFFC00000, 0x7F800001])
        r = words(SEED, 2 * count)
        any_bits = f32((r[:count] >> np.uint64(32)).astype(np.uint32))
        low, high = self.exponents
        w = r[count:]
        exponent = np.uint64(low) + (w >> np.uint64(32)) % np.uint64(high - low + 1)
        in_range = f32(((w & np.uint64(0x807FFFFF)) | exponent << np.uint64(23)).astype(np.uint32))
        return np.concatenate([edge, special, any_bits, in_range])


def cast(ml, clamp=None):
    def encode(x):
        nan = np.isnan(x)
        y = x if clamp is None else np.clip(x, -clamp, clamp)
        out = np.where(nan, np.float32(0), y).astype(ml)
        return out, nan
    return encode


def enc_bf16(x):
    out, nan = cast(ml_dtypes.bfloat16)(x)
    return np.where(nan, np.uint16(0x7FC0), out.view(np.uint16))


def enc_fp16(x):
    nan = np.isnan(x)
    with np.errstate(over="ignore"):
        out = np.where(nan, np.float32(0), x).astype(np.float16).view(np.uint16)
    return np.where(nan, np.uint16(0x7E00), out)


def enc_e2m1(x):
    out, nan = cast(ml_dtypes.float4_e2m1fn, 6)(x)
    return np.where(nan, np.uint8(0), out.view(np.uint8) & 15)


def enc_e4m3(x):
    out, nan = cast(ml_dtypes.float8_e4m3fn, 448)(x)
    return np.where(nan, np.uint8(0x7F), out.view(np.uint8))


def enc_e8m0(x):
    m, e = np.frexp(x.astype(np.float64))
    good = np.isfinite(x) & (x > 0)
    code = np.clip(np.where(good, e, 0) - 1 + (m >= 0.75) + 127, 0, 254)
    code = np.where(good, code, 255).astype(np.uint8)
    # ml_dtypes does not saturate, and rounds what is below the normal numbers of fp32 otherwise: compare the rest
    same = good & (x >= np.float32(2.0**-126)) & (x < np.float32(1.5 * 2.0**127))
    assert np.array_equal(code[same], x[same].astype(ml_dtypes.float8_e8m0fnu).view(np.uint8))
    return code


ELEMENTS = [
    Element("bf16", 16, np.uint16, (1, 254), lambda c: c.view(ml_dtypes.bfloat16).astype(np.float32), enc_bf16),
    Element("fp16", 16, np.uint16, (127 - 27, 127 + 16), lambda c: c.view(np.float16).astype(np.float32), enc_fp16),
    Element("e2m1", 4, np.uint8, (127 - 4, 127 + 4),
            lambda c: c.view(ml_dtypes.float4_e2m1fn).astype(np.float32), enc_e2m1),
    Element("e8m0", 8, np.uint8, (1, 254),
            lambda c: np.where(c == 255, np.nan, np.exp2(c.astype(np.float64) - 127)).astype(np.float32), enc_e8m0),
    Element("e4m3", 8, np.uint8, (127 - 12, 127 + 10),
            lambda c: c.view(ml_dtypes.float8_e4m3fn).astype(np.float32), enc_e4m3),
]


def settle(name, codes, x):
    """A NaN's sign and payload are open: one code for all."""
    nan = np.isnan(x)
    one = {"bf16": 0x7FC0, "fp16": 0x7E00, "e2m1": 0, "e8m0": 255, "e4m3": 0x7F}[name]
    return np.where(nan, np.array(one, codes.dtype), codes)


def settle_values(x):
    return np.where(np.isnan(x), f32([0x7FC00000])[0], x).astype(np.float32)


def blocks(width):
    """BLOCKS blocks of roughly normal values; each block has its own power of two; some are all zero, small or one-hot."""
    lanes = words(SEED + width, BLOCKS * width)
    s = sum(((lanes >> np.uint64(16 * i)) & np.uint64(0xFFFF)).astype(np.int64) for i in range(4)) - 131070
    x = s.reshape(BLOCKS, width).astype(np.float32)
    exponent = (np.arange(BLOCKS) % 48) - 40
    x = (x * np.exp2(exponent.astype(np.float32))[:, None]).astype(np.float32)
    x[0::97] = 0
    x[1::97, 1:] = 0
    return x


def mx_blocks(x, emax, encode):
    top = np.abs(x).max(1)
    _, e = np.frexp(top.astype(np.float64))
    scale = np.where(top == 0, 0, np.clip(e - 1 - emax + 127, 0, 254)).astype(np.int64)
    y = (x.astype(np.float64) * np.exp2(127.0 - scale)[:, None]).astype(np.float32)
    return scale.astype(np.uint8), encode(y)


def pack_low_first(codes):
    return (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)


def ref_mxfp4():
    scale, codes = mx_blocks(blocks(32), 2, enc_e2m1)
    return np.concatenate([scale[:, None], pack_low_first(codes)], 1)


def ref_mxfp8():
    scale, codes = mx_blocks(blocks(32), 8, enc_e4m3)
    return np.concatenate([scale[:, None], codes], 1)


def nvfp4_input():
    x = blocks(16)
    exponent = (np.arange(BLOCKS) % 48) - 40
    return (x * np.exp2(-exponent.astype(np.float32) + (np.arange(BLOCKS) % 9))[:, None]).astype(np.float32)


def ref_nvfp4():
    x = nvfp4_input()
    tensor = np.float32(np.abs(x).max() / np.float32(6 * 448))
    scale = enc_e4m3((np.abs(x).max(1) / np.float32(6) / tensor).astype(np.float32))
    s = (scale.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * tensor).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.where(s[:, None] == 0, np.float32(0), x / s[:, None]).astype(np.float32)
    return np.concatenate([scale[:, None], pack_low_first(enc_e2m1(y))], 1)


def nf4_quantiles():
    return np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                     0.7229568362236023, 1.0], dtype=np.float32)


def nearest_low(y, table):
    """Index of the nearest entry, the lower one at a tie, by looking at all of them."""
    d = np.abs(y.astype(np.float64)[..., None] - table.astype(np.float64))
    return d.argmin(-1).astype(np.uint8)


def nf4_parts():
    x = blocks(64)
    top = np.abs(x).max(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        y = np.where(top[:, None] == 0, np.float32(0), x / top[:, None]).astype(np.float32)
    codes = nearest_low(y, nf4_quantiles())
    return top, (codes[:, 0::2] << 4 | codes[:, 1::2]).astype(np.uint8)


def ref_nf4():
    top, packed = nf4_parts()
    return np.concatenate([top[:, None].view(np.uint8).reshape(BLOCKS, 4), packed], 1)


def dynamic_map():
    """The signed 8-bit dynamic map: for level i of 7, 2^i midpoints of even steps over [0.1, 1], times 10^(i - 6)."""
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        middles = (edges[:-1] + edges[1:]) / 2.0
        for sign in (1, -1):
            values += (sign * 10 ** (i - 6) * middles).tolist()
    return np.sort(np.array(values, dtype=np.float32))


def ref_nf4_scales():
    top, _ = nf4_parts()
    top = top.reshape(-1, 256)
    offset = np.float32(0.25)
    out = []
    for group in top:
        centred = (group - offset).astype(np.float32)
        scale = np.abs(centred).max()
        y = (centred / scale).astype(np.float32)
        out.append(np.concatenate([np.array([scale], np.float32).view(np.uint8), nearest_low(y, dynamic_map())]))
    return np.stack(out)


def ref_q8_0():
    return gguf.quants.quantize(blocks(32), gguf.GGMLQuantizationType.Q8_0)


BLOCK_REFS = {"mxfp4": ref_mxfp4, "mxfp8": ref_mxfp8, "nvfp4": ref_nvfp4, "nf4": ref_nf4,
              "nf4_scales": ref_nf4_scales, "q8_0": ref_q8_0}

SHIM = r"""
#include "core/mx.h"
#define ELEMENT(name, type) \
    void dec_##name(const type *c, float *x, size_t n) { for (size_t i = 0; i < n; i++) x[i] = nib_##name##_decode(c[i]); } \
    void enc_##name(const float *x, type *c, size_t n) { for (size_t i = 0; i < n; i++) c[i] = nib_##name##_encode(x[i]); }
ELEMENT(bf16, uint16_t) ELEMENT(fp16, uint16_t) ELEMENT(e2m1, uint8_t) ELEMENT(e8m0, uint8_t) ELEMENT(e4m3, uint8_t)
void blocks_mxfp4(const float *x, uint8_t *o, size_t n) { for (; n--; x += 32, o += 17) nib_mxfp4_encode(x, o, o + 1); }
void blocks_mxfp8(const float *x, uint8_t *o, size_t n) { for (; n--; x += 32, o += 33) nib_mxfp8_encode(x, o, o + 1); }
void blocks_nvfp4(const float *x, uint8_t *o, size_t n)
{
    float t = nib_nvfp4_tensor_scale(x, n * 16);
    for (; n--; x += 16, o += 9) nib_nvfp4_encode(x, t, o, o + 1);
}
void blocks_nf4(const float *x, uint8_t *o, size_t n)
{
    for (; n--; x += 64, o += 36) { float s; nib_nf4_encode(x, &s, o + 4); memcpy(o, &s, 4); }
}
void blocks_nf4_scales(const float *x, uint8_t *o, size_t n)
{
    for (; n--; x += 256, o += 260) { float s; nib_nf4_scales_encode(x, 256, 0.25f, &s, o + 4); memcpy(o, &s, 4); }
}
void blocks_q8_0(const float *x, uint8_t *o, size_t n)
{
    for (; n--; x += 32, o += 34) { uint16_t s; nib_q8_0_encode(x, &s, (int8_t *)o + 2); memcpy(o, &s, 2); }
}
"""


def build(folder):
    shim = os.path.join(folder, "shim.c")
    with open(shim, "w") as f:
        f.write(SHIM)
    library = os.path.join(folder, "mx.so")
    sources = [os.path.join(ROOT, "core", n) for n in ("mx.c", "mx_block.c", "mx_nf4.c")]
    subprocess.run(["cc", "-std=c11", "-O2", "-shared", "-fPIC", "-I", ROOT, "-o", library, shim, *sources, "-lm"],
                   check=True)
    return ctypes.CDLL(library)


def call(function, x, out, n):
    x = np.ascontiguousarray(x)
    function(x.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(n))
    return out


def expect(name, what, ours, theirs, inputs):
    wrong = np.nonzero(ours != theirs)[0]
    if len(wrong):
        i = wrong[0]
        sys.exit(f"{name}: {what} differs in {len(wrong)} places, first for {inputs[i]!r}: {ours[i]!r}, reference "
                 f"{theirs[i]!r}")


def check_element(lib, e):
    codes = e.codes()
    ours = settle_values(call(getattr(lib, "dec_" + e.name), codes, np.zeros(len(codes), np.float32), len(codes)))
    expect(e.name, "decode", ours.view(np.uint32), settle_values(e.ref_decode(codes)).view(np.uint32), codes)
    x = e.inputs(FULL)
    ours = call(getattr(lib, "enc_" + e.name), x, np.zeros(len(x), e.dtype), len(x))
    expect(e.name, "encode", settle(e.name, ours, x), e.ref_encode(x).astype(e.dtype), x)
    print(f"{e.name}: {len(codes)} codes decoded, {len(x)} values encoded, no difference")


def check_block(lib, name, reference):
    x = {"nvfp4": nvfp4_input, "nf4": lambda: blocks(64),
         "nf4_scales": lambda: nf4_parts()[0].reshape(-1, 256)}.get(name, lambda: blocks(32))()
    theirs = np.ascontiguousarray(reference())
    ours = call(getattr(lib, "blocks_" + name), x, np.zeros_like(theirs), len(theirs))
    expect(name, "encode", ours.reshape(-1), theirs.reshape(-1), np.repeat(np.arange(len(theirs)), theirs.shape[1]))
    print(f"{name}: {len(theirs)} blocks encoded, no difference")


def digest(a):
    return hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()


def write_header():
    lines = ["/* tests/vectors/mx_vectors.h: written by tests/vectors/mx_full.py --write; do not edit.",
             " * SHA-256 of the references' results over the inputs that tests/core/mx_test.c makes. */",
             "#ifndef NIB_TESTS_VECTORS_MX_VECTORS_H", "#define NIB_TESTS_VECTORS_MX_VECTORS_H", "",
             f"#define MX_SEED    {SEED}", f"#define MX_RANDOMS {RANDOMS}", f"#define MX_BLOCKS  {BLOCKS}", ""]
    for e in ELEMENTS:
        x = e.inputs(RANDOMS)
        n = e.name.upper()
        lines += [f"#define MX_{n}_INPUTS {len(x)}",
                  f'#define MX_{n}_DECODE "{digest(settle_values(e.ref_decode(e.codes())))}"',
                  f'#define MX_{n}_INPUT_BITS "{digest(x)}"',
                  f'#define MX_{n}_ENCODE "{digest(e.ref_encode(x).astype(e.dtype))}"']
    for name, reference in BLOCK_REFS.items():
        lines.append(f'#define MX_{name.upper()}_BLOCKS "{digest(reference())}"')
    lines.append(f'#define MX_NF4_MAP "{digest(dynamic_map())}"')
    lines += ["", "#endif", ""]
    path = os.path.join(ROOT, "tests", "vectors", "mx_vectors.h")
    with open(path, "w") as f:
        f.write("\n".join(lines))
    if shutil.which("clang-format"):
        subprocess.run(["clang-format", "-i", path], check=True)


def main():
    with tempfile.TemporaryDirectory() as folder:
        lib = build(folder)
        for e in ELEMENTS:
            check_element(lib, e)
        for name, reference in BLOCK_REFS.items():
            check_block(lib, name, reference)
    if "--write" in sys.argv[1:]:
        write_header()


if __name__ == "__main__":
    main()
