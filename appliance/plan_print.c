/* appliance/plan_print.c: owns nothing. Limits: the plan's. Any one thread. Printing fails only as stdout does; the JSON
 * value is NULL when there is no memory for it. */
#include "appliance/plan_print.h"

#include <inttypes.h>

static double gib(uint64_t bytes)
{
    return (double)bytes / (double)(1ull << 30);
}

static void print_region(FILE *out, const struct nib_region *r, uint32_t merged, uint64_t bytes)
{
    char name[64];
    if (merged > 1)
        (void)snprintf(name, sizeof name, "%s, %u layers", nib_region_name(r->kind), merged);
    else
        (void)snprintf(name, sizeof name, "%s", nib_region_name(r->kind));
    const char *life = r->phase_first == 0 && r->phase_last == NIB_PHASE_COUNT - 1 ? "" : "  shared";
    (void)fprintf(out, "  %-8s %-24s %16" PRIu64 " %10.3f GiB  at %14" PRIu64 "%s\n", nib_space_name(r->space), name,
                  bytes, gib(bytes), r->offset, life);
}

static void print_regions(FILE *out, const struct nib_plan *plan)
{
    for (uint32_t i = 0; i < plan->regions_count;) {
        const struct nib_region *r = &plan->regions[i];
        uint64_t bytes = 0;
        uint32_t merged = 0;
        for (; i < plan->regions_count && plan->regions[i].kind == r->kind && plan->regions[i].space == r->space; i++) {
            bytes += plan->regions[i].bytes;
            merged++;
        }
        print_region(out, r, merged, bytes);
    }
}

void nib_plan_print(FILE *out, const struct nib_plan *plan, const struct nib_profile *profile)
{
    (void)fprintf(out, "%s on %s, row %s\n\n", plan->shape->name, profile->name, plan->row->name);
    print_regions(out, plan);
    (void)fprintf(out, "\n");
    for (int s = 0; s < NIB_SPACE_COUNT; s++)
        if (plan->arena_bytes[s])
            (void)fprintf(out, "  %-8s arena %16" PRIu64 " of %16" PRIu64 " bytes (%.1f %%)\n",
                          nib_space_name((enum nib_space)s), plan->arena_bytes[s], plan->budget_bytes[s],
                          100.0 * (double)plan->arena_bytes[s] / (double)plan->budget_bytes[s]);
    if (plan->driver_bytes)
        (void)fprintf(out,
                      "  driver   %22" PRIu64 " bytes of the device: its context, kernels and graphs, and others\n",
                      plan->driver_bytes);
    (void)fprintf(out, "\n  weights %.3f GiB, KV cache %.3f GiB of %s\n", gib(plan->weight_bytes), gib(plan->kv_bytes),
                  nib_kv_form_name(plan->kv));
    (void)fprintf(out, "  context %u tokens, %u slots, %u KV pages of %d tokens, %u rows a step, %u thread%s\n",
                  plan->dims.ctx_tokens, plan->dims.slots, plan->dims.kv_pages, NIB_KV_PAGE_TOKENS,
                  plan->dims.step_rows_max, plan->threads, plan->threads == 1 ? "" : "s");
    (void)fprintf(out, "  spilled to pinned memory: %s%s%u of %u layers' experts\n",
                  plan->embed_spilled ? "embedding" : "", plan->embed_spilled ? ", " : "", plan->spilled_layers,
                  plan->shape->layers);
    (void)fprintf(out, "  decode reads %.3f GB a token at batch 1\n", (double)plan->decode_bytes / 1e9);
    if (plan->decode_tokens_s > 0)
        (void)fprintf(out, "  roof: %.0f tokens/s alone, %.0f tokens/s with %u slots, prefill %.0f tokens/s\n",
                      plan->decode_tokens_s, plan->batch_decode_tokens_s, plan->dims.slots, plan->prefill_tokens_s);
    else
        (void)fprintf(out, "  roof: unknown here; `nibble bench` measures the memory's read rate\n");
}

json_t *nib_plan_json(const struct nib_plan *plan, const struct nib_profile *profile)
{
    json_t *regions = json_array();
    for (uint32_t i = 0; i < plan->regions_count; i++) {
        const struct nib_region *r = &plan->regions[i];
        json_array_append_new(regions, json_pack("{s:s, s:s, s:i, s:I, s:I, s:I, s:i, s:i}", "name",
                                                 nib_region_name(r->kind), "space", nib_space_name(r->space), "layer",
                                                 (int)r->layer, "offset", (json_int_t)r->offset, "bytes",
                                                 (json_int_t)r->bytes, "align", (json_int_t)r->align, "phase_first",
                                                 (int)r->phase_first, "phase_last", (int)r->phase_last));
    }
    json_t *arenas = json_object();
    for (int s = 0; s < NIB_SPACE_COUNT; s++)
        json_object_set_new(arenas, nib_space_name((enum nib_space)s),
                            json_pack("{s:I, s:I}", "bytes", (json_int_t)plan->arena_bytes[s], "budget_bytes",
                                      (json_int_t)plan->budget_bytes[s]));
    return json_pack(
        "{s:s, s:s, s:s, s:i, s:i, s:i, s:s, s:i, s:i, s:b, s:i, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:o, s:o}", "shape",
        plan->shape->name, "profile", profile->name, "row", plan->row->name, "context_tokens",
        (int)plan->dims.ctx_tokens, "slots", (int)plan->dims.slots, "kv_pages", (int)plan->dims.kv_pages, "kv_form",
        nib_kv_form_name(plan->kv), "page_tokens", NIB_KV_PAGE_TOKENS, "step_rows", (int)plan->dims.step_rows_max,
        "embedding_spilled", plan->embed_spilled, "spilled_layers", (int)plan->spilled_layers, "driver_bytes",
        (json_int_t)plan->driver_bytes, "weight_bytes", (json_int_t)plan->weight_bytes, "kv_bytes",
        (json_int_t)plan->kv_bytes, "decode_bytes", (json_int_t)plan->decode_bytes, "decode_tokens_s",
        plan->decode_tokens_s, "batch_decode_tokens_s", plan->batch_decode_tokens_s, "prefill_tokens_s",
        plan->prefill_tokens_s, "arenas", arenas, "regions", regions);
}
