/* core/model.c: owns the table of shapes and the names of the forms of dense matrices and of KV pages. Limits: see core/limits.h. Any thread. Cannot fail. */
#include "core/model.h"

#include <string.h>

static const struct nib_shape shapes[] = {
    {.name = "20b",
     .layers = 24,
     .experts = 32,
     .experts_used = 4,
     .hidden = 2880,
     .intermediate = 2880,
     .heads = 64,
     .kv_heads = 8,
     .vocab = 201088,
     .special_base = 199998,
     .window = 128,
     .ctx_max = 131072},
    {.name = "120b",
     .layers = 36,
     .experts = 128,
     .experts_used = 4,
     .hidden = 2880,
     .intermediate = 2880,
     .heads = 64,
     .kv_heads = 8,
     .vocab = 201088,
     .special_base = 199998,
     .window = 128,
     .ctx_max = 131072},
    /* the 20b's layers, four of them, with a small vocabulary: measures the layer kernels on small machines */
    {.name = "20b-slice",
     .layers = 4,
     .experts = 32,
     .experts_used = 4,
     .hidden = 2880,
     .intermediate = 2880,
     .heads = 64,
     .kv_heads = 8,
     .vocab = 8192,
     .special_base = 8160,
     .window = 128,
     .ctx_max = 131072},
    /* the whole vocabulary on a small body: the demo until a trained model exists */
    {.name = "small",
     .layers = 4,
     .experts = 8,
     .experts_used = 4,
     .hidden = 256,
     .intermediate = 256,
     .heads = 8,
     .kv_heads = 1,
     .vocab = 201088,
     .special_base = 199998,
     .window = 128,
     .ctx_max = 131072},
    /* what tools/demo trains, with a vocabulary of its own */
    {.name = "demo",
     .layers = 8,
     .experts = 8,
     .experts_used = 4,
     .hidden = 256,
     .intermediate = 192,
     .heads = 8,
     .kv_heads = 1,
     .vocab = 1536,
     .special_base = 1504,
     .window = 128,
     .ctx_max = 131072},
    /* unit tests */
    {.name = "tiny",
     .layers = 4,
     .experts = 8,
     .experts_used = 4,
     .hidden = 96,
     .intermediate = 64,
     .heads = 16,
     .kv_heads = 2,
     .vocab = 512,
     .special_base = 480,
     .window = 128,
     .ctx_max = 131072},
    {.name = "nano",
     .layers = 2,
     .experts = 4,
     .experts_used = 4,
     .hidden = 32,
     .intermediate = 32,
     .heads = 8,
     .kv_heads = 1,
     .vocab = 288,
     .special_base = 256,
     .window = 128,
     .ctx_max = 131072},
};

const struct nib_shape *nib_shapes(size_t *ret_count)
{
    *ret_count = sizeof shapes / sizeof shapes[0];
    return shapes;
}

const struct nib_shape *nib_shape_find(const char *name)
{
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
        if (strcmp(shapes[i].name, name) == 0)
            return &shapes[i];
    return NULL;
}

const struct nib_shape *nib_shape_match(const struct nib_shape *d)
{
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        const struct nib_shape *s = &shapes[i];
        if (s->layers == d->layers && s->experts == d->experts && s->experts_used == d->experts_used &&
            s->hidden == d->hidden && s->intermediate == d->intermediate && s->heads == d->heads &&
            s->kv_heads == d->kv_heads && s->vocab == d->vocab && s->window == d->window && s->ctx_max == d->ctx_max)
            return s;
    }
    return NULL;
}

static const char *const dense_names[NIB_DENSE_COUNT] = {[NIB_DENSE_BF16] = "bf16", [NIB_DENSE_MXFP8] = "mxfp8"};

const char *nib_dense_name(enum nib_dense dense)
{
    return (unsigned)dense < NIB_DENSE_COUNT ? dense_names[dense] : "unknown";
}

bool nib_dense_find(const char *name, enum nib_dense *ret_dense)
{
    for (unsigned i = 0; i < NIB_DENSE_COUNT; i++)
        if (strcmp(dense_names[i], name) == 0) {
            *ret_dense = (enum nib_dense)i;
            return true;
        }
    return false;
}

const char *nib_kv_form_name(enum nib_kv_form kv)
{
    static const char *const names[NIB_KV_FORMS] = {[NIB_KV_BF16] = "bf16", [NIB_KV_FP8] = "fp8"};
    return (unsigned)kv < NIB_KV_FORMS ? names[kv] : "unknown";
}
