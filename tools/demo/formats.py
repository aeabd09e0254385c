"""Number formats for the demo's dense matrices, through core/mx*.c itself: quantise and give back what the bits mean."""
import ctypes
import pathlib
import subprocess
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
GLUE = """
#include "core/mx.h"
void mxfp8(float *x, size_t n) {
    for (size_t i = 0; i < n; i += 32) {
        uint8_t s, c[32];
        nib_mxfp8_encode(x + i, &s, c);
        nib_mxfp8_decode(s, c, x + i);
    }
}
void mxfp4(float *x, size_t n) {
    for (size_t i = 0; i < n; i += 32) {
        uint8_t s, c[16];
        nib_mxfp4_encode(x + i, &s, c);
        nib_mxfp4_decode(s, c, x + i);
    }
}
void nvfp4(float *x, size_t n) {
    float t = nib_nvfp4_tensor_scale(x, n);
    for (size_t i = 0; i < n; i += 16) {
        uint8_t s, c[8];
        nib_nvfp4_encode(x + i, t, &s, c);
        nib_nvfp4_decode(t, s, c, x + i);
    }
}
static float absmax[1 << 20];
void nf4(float *x, size_t n) {
    static uint8_t codes[1 << 20][32], scales[256];
    size_t blocks = n / 64;
    float mean = 0, group, back[256];
    for (size_t b = 0; b < blocks; b++) {
        nib_nf4_encode(x + 64 * b, &absmax[b], codes[b]);
        mean += absmax[b] / (float)blocks;
    }
    for (size_t b = 0; b < blocks; b += 256) {
        size_t count = blocks - b < 256 ? blocks - b : 256;
        nib_nf4_scales_encode(absmax + b, count, mean, &group, scales);
        nib_nf4_scales_decode(mean, group, scales, count, back);
        for (size_t i = 0; i < count; i++)
            nib_nf4_decode(back[i], codes[b + i], x + 64 * (b + i));
    }
}
"""


def load():
    """The formats by name, as functions of a float32 array to one of the same shape."""
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "glue.c").write_text(GLUE)
    sources = [str(ROOT / "core" / f) for f in ("mx.c", "mx_block.c", "mx_nf4.c")]
    subprocess.run(["cc", "-std=c11", "-O2", "-shared", "-fPIC", f"-I{ROOT}", str(folder / "glue.c"), *sources, "-lm", "-o",
                    str(folder / "mx.so")], check=True)
    library = ctypes.CDLL(str(folder / "mx.so"))

    def through(name):
        def go(x):
            y = np.ascontiguousarray(x, np.float32).copy()
            assert y.size % 64 == 0 and y.size <= 64 << 20
            getattr(library, name)(y.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(y.size))
            return y
        return go

    return {name: through(name) for name in ("mxfp8", "nvfp4", "mxfp4", "nf4")}
