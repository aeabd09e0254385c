/* tests/vectors/logits.c: runs a sequence through the CPU engine and writes what the model said. For comparisons.
 *
 *     logits IMAGE IDS OUT ROW EVERY COUNT THREADS [KV]
 *
 * IDS holds the prompt as little-endian uint32. The prompt is fed in steps of EVERY prompt rows; the logits after each
 * step go to OUT as raw fp32 [steps][vocab]. Then COUNT tokens are answered greedily, one decode row at a time, and
 * their logits follow, [COUNT][vocab]. The answered ids (the first is from the last prompt row; COUNT + 1 of them) are
 * printed, one a line. ROW is a row of the capability table; exit code 3 when this machine cannot run it. KV is the form
 * of keys and values: bf16, which it is when left out, or fp8. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/cpu.h"
#include "arch/table.h"
#include "core/sample.h"

static struct nib_image image;
static struct nib_plan plan;
static struct nib_step step;
static struct nib_step_out out;
static struct nib_sampling sampling;
static struct nib_msg msg;

static void need(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "%s: %s\n", what, msg.text);
    exit(1);
}

static uint32_t *read_ids(const char *path, uint32_t *ret_count)
{
    FILE *file = fopen(path, "rb");
    need(file && fseek(file, 0, SEEK_END) == 0, path);
    long bytes = ftell(file);
    uint32_t *ids = malloc((size_t)bytes);
    need(bytes > 0 && ids && fseek(file, 0, SEEK_SET) == 0, path);
    need(fread(ids, 1, (size_t)bytes, file) == (size_t)bytes, path);
    fclose(file);
    *ret_count = (uint32_t)(bytes / 4);
    return ids;
}

static struct nib_engine *open_engine(const char *path, const struct nib_arch_row *row, uint32_t ctx, uint32_t rows,
                                      uint32_t threads, enum nib_kv_form kv)
{
    struct nib_image_file file;
    const uint8_t *base;
    need(nib_image_open(path, &file, &image, &msg) == NIB_OK, path);
    need(nib_image_map(&file, &image, &base, &msg) == NIB_OK, path);
    static struct nib_row_facts facts;
    facts = nib_arch_facts(row);
    static struct nib_profile profile;
    need(nib_arch_probe_cpu(&profile, &msg) == NIB_OK, "probe");
    const char *refusal = nib_arch_refusal(row, &profile, 0);
    if (refusal) {
        fprintf(stderr, "%s: %s\n", row->name, refusal);
        exit(3);
    }
    const struct nib_plan_request request = {.profile = &profile,
                                             .row = &facts,
                                             .shape = image.shape,
                                             .dense = image.dense,
                                             .kv = kv,
                                             .ctx_tokens = ctx,
                                             .slots = 1,
                                             .step_rows_max = rows,
                                             .threads = threads};
    need(nib_plan_make(&request, &plan, &msg) == NIB_OK, "plan");
    struct nib_cpu_open open = {.plan = &plan, .kernels = row->kernels, .image = &image, .image_base = base};
    open.base[NIB_SPACE_HOST] = aligned_alloc(4096, plan.arena_bytes[NIB_SPACE_HOST]);
    need(open.base[NIB_SPACE_HOST] != NULL, "memory");
    struct nib_engine *engine = NULL;
    need(nib_cpu_engine_open(&open, &engine, &msg) == NIB_OK, "open");
    nib_image_unmap(&image, base);
    nib_image_close(&file);
    return engine;
}

static uint32_t run(struct nib_engine *engine, FILE *to, float *logits)
{
    step.serial++;
    step.logits = logits;
    need(engine->ops->submit(engine, &step, &msg) == NIB_OK, "submit");
    need(engine->ops->collect(engine, &out, &msg) == NIB_OK, "collect");
    need(fwrite(logits, sizeof(float), engine->shape->vocab, to) == engine->shape->vocab, "write");
    return out.sampled[0].token;
}

int main(int argc, char **argv)
{
    if (argc != 8 && argc != 9) {
        fprintf(stderr, "usage: logits IMAGE IDS OUT ROW EVERY COUNT THREADS [KV]\n");
        return 2;
    }
    uint32_t prompt, every = (uint32_t)atoi(argv[5]), count = (uint32_t)atoi(argv[6]);
    const uint32_t *ids = read_ids(argv[2], &prompt);
    const struct nib_arch_row *row = nib_arch_find(argv[4]);
    need(row && row->kernels, argv[4]);
    enum nib_kv_form kv = NIB_KV_BF16;
    while (argc == 9 && strcmp(argv[8], nib_kv_form_name(kv)) != 0)
        need(++kv < NIB_KV_FORMS, argv[8]);
    struct nib_engine *engine = open_engine(argv[1], row, prompt + count, every, (uint32_t)atoi(argv[7]), kv);
    FILE *to = fopen(argv[3], "wb");
    float *logits = malloc(engine->shape->vocab * sizeof(float));
    uint32_t *pages = malloc(plan.dims.kv_pages * sizeof(uint32_t));
    need(to && logits && pages, argv[3]);
    for (uint32_t i = 0; i < plan.dims.kv_pages; i++)
        pages[i] = i;
    const struct nib_kv_table table = {.pages = pages, .pages_count = plan.dims.kv_pages};
    nib_sample_defaults(&sampling);
    step.tables = &table;
    step.sampling = &sampling;

    uint32_t token = 0;
    for (uint32_t p = 0; p < prompt;) {
        for (step.rows_count = 0; step.rows_count < every && p < prompt; p++)
            step.rows[step.rows_count++] =
                (struct nib_row){.token = ids[p], .pos = p, .flags = p == 0 ? NIB_ROW_FIRST : 0};
        step.rows[step.rows_count - 1].flags |= NIB_ROW_LOGITS;
        token = run(engine, to, logits);
    }
    printf("%u\n", token);
    for (uint32_t i = 0; i < count; i++) {
        step.rows_count = 1;
        step.rows[0] = (struct nib_row){.token = token, .pos = prompt + i, .flags = NIB_ROW_LOGITS | NIB_ROW_DECODE};
        token = run(engine, to, logits);
        printf("%u\n", token);
    }
    engine->ops->close(engine);
    return fclose(to) == 0 ? 0 : 1;
}
