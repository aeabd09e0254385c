/* tools/plan.c: `nibble plan`: prints the memory plan for this machine or any profile, without starting anything.
 * Owns nothing after return. One thread. Fails with the planner's own sentence. */
#include <getopt.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arch/table.h"
#include "core/plan.h"
#include "tools/commands.h"
#include "tools/profiles.h"
#include "tools/units.h"

struct options {
    const char *shape;
    const char *profile; /* NULL: this machine's CPU */
    const char *mask;
    struct nib_plan_request request;
    bool json;
    bool all;
};

static double gib(uint64_t bytes)
{
    return (double)bytes / (double)(1ull << 30);
}

static bool parse_option(int option, struct options *o)
{
    switch (option) {
    case 'p':
        o->profile = optarg;
        return true;
    case 'a':
        o->all = true;
        return true;
    case 'j':
        o->json = true;
        return true;
    case 'm':
        o->mask = optarg;
        return true;
    case 'c':
        return nib_parse_count(optarg, NIB_MAX_CTX_TOKENS, &o->request.ctx_tokens);
    case 's':
        return nib_parse_count(optarg, NIB_MAX_SLOTS, &o->request.slots);
    case 't':
        return nib_parse_count(optarg, NIB_MAX_THREADS, &o->request.threads);
    case 'l':
        return nib_parse_size(optarg, &o->request.memory_limit_bytes);
    default:
        return false;
    }
}

/* Returns an exit code, or -1 to go on. */
static int parse_args(int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {{"profile", required_argument, 0, 'p'},
                                          {"all", no_argument, 0, 'a'},
                                          {"context", required_argument, 0, 'c'},
                                          {"slots", required_argument, 0, 's'},
                                          {"threads", required_argument, 0, 't'},
                                          {"memory-limit", required_argument, 0, 'l'},
                                          {"mask", required_argument, 0, 'm'},
                                          {"json", no_argument, 0, 'j'},
                                          {0}};
    int option;
    optind = 1;
    while ((option = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        if (!parse_option(option, o)) {
            if (option != '?')
                (void)fprintf(stderr, "nibble plan: '%s' is no valid value\n", optarg);
            return NIB_EXIT_USAGE;
        }
    }
    if (o->all ? optind != argc : optind + 1 != argc)
        return NIB_EXIT_USAGE;
    o->shape = argv[optind];
    return -1;
}

/* Selects the row and makes the plan; the structs it points to are the caller's. */
static enum nib_err make_plan(struct options *o, const struct nib_profile *profile, const char *shape,
                              struct nib_row_facts *facts, struct nib_plan *ret_plan, struct nib_msg *msg)
{
    const struct nib_arch_row *row;
    uint32_t mask = 0;
    struct nib_plan_request request = o->request;
    request.profile = profile;
    request.shape = nib_shape_find(shape);
    if (!request.shape)
        return nib_fail(msg, NIB_E_ARG, "'%s' is no model shape; `nibble --help` names them", shape);
    enum nib_err err = o->mask ? nib_arch_mask_parse(o->mask, &mask, msg) : NIB_OK;
    if (!err)
        err = nib_arch_select(profile, mask, &row, msg);
    if (err)
        return err;
    *facts = nib_arch_facts(row);
    request.row = facts;
    if (!request.threads)
        request.threads = profile->gpu ? 1 : profile->sms;
    return nib_plan_make(&request, ret_plan, msg);
}

static void print_region(const struct nib_region *r, uint32_t merged, uint64_t bytes)
{
    char name[64];
    if (merged > 1)
        (void)snprintf(name, sizeof name, "%s, %u layers", nib_region_name(r->kind), merged);
    else
        (void)snprintf(name, sizeof name, "%s", nib_region_name(r->kind));
    const char *life = r->phase_first == 0 && r->phase_last == NIB_PHASE_COUNT - 1 ? "" : "shared";
    (void)printf("  %-8s %-24s %16" PRIu64 " %10.3f GiB  at %14" PRIu64 "  %s\n", nib_space_name(r->space), name, bytes,
                 gib(bytes), r->offset, life);
}

static void print_regions(const struct nib_plan *plan)
{
    for (uint32_t i = 0; i < plan->regions_count;) {
        const struct nib_region *r = &plan->regions[i];
        uint64_t bytes = 0;
        uint32_t merged = 0;
        for (; i < plan->regions_count && plan->regions[i].kind == r->kind && plan->regions[i].space == r->space; i++) {
            bytes += plan->regions[i].bytes;
            merged++;
        }
        print_region(r, merged, bytes);
    }
}

static void print_text(const struct nib_plan *plan, const struct nib_profile *profile)
{
    (void)printf("%s on %s, row %s\n\n", plan->shape->name, profile->name, plan->row->name);
    print_regions(plan);
    (void)printf("\n");
    for (int s = 0; s < NIB_SPACE_COUNT; s++)
        if (plan->arena_bytes[s])
            (void)printf("  %-8s arena %16" PRIu64 " of %16" PRIu64 " bytes (%.1f %%)\n",
                         nib_space_name((enum nib_space)s), plan->arena_bytes[s], plan->budget_bytes[s],
                         100.0 * (double)plan->arena_bytes[s] / (double)plan->budget_bytes[s]);
    (void)printf("\n  weights %.3f GiB, KV cache %.3f GiB\n", gib(plan->weight_bytes), gib(plan->kv_bytes));
    (void)printf("  context %u tokens, %u slots, %u KV pages of %d tokens, %u rows a step, %u thread%s\n",
                 plan->dims.ctx_tokens, plan->dims.slots, plan->dims.kv_pages, NIB_KV_PAGE_TOKENS,
                 plan->dims.step_rows_max, plan->threads, plan->threads == 1 ? "" : "s");
    (void)printf("  spilled to pinned memory: %s%s%u of %u layers' experts\n", plan->embed_spilled ? "embedding" : "",
                 plan->embed_spilled ? ", " : "", plan->spilled_layers, plan->shape->layers);
    (void)printf("  decode reads %.3f GB a token at batch 1\n", (double)plan->decode_bytes / 1e9);
    if (plan->decode_tokens_s > 0)
        (void)printf("  roof: %.0f tokens/s alone, %.0f tokens/s with %u slots, prefill %.0f tokens/s\n",
                     plan->decode_tokens_s, plan->batch_decode_tokens_s, plan->dims.slots, plan->prefill_tokens_s);
    else
        (void)printf("  roof: unknown here; `nibble bench` measures the memory's read rate\n");
}

static json_t *plan_json(const struct nib_plan *plan, const struct nib_profile *profile)
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
    return json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:b, s:i, s:I, s:I, s:I, s:f, s:f, s:f, s:o, s:o}",
                     "shape", plan->shape->name, "profile", profile->name, "row", plan->row->name, "context_tokens",
                     (int)plan->dims.ctx_tokens, "slots", (int)plan->dims.slots, "kv_pages", (int)plan->dims.kv_pages,
                     "page_tokens", NIB_KV_PAGE_TOKENS, "step_rows", (int)plan->dims.step_rows_max, "embedding_spilled",
                     plan->embed_spilled, "spilled_layers", (int)plan->spilled_layers, "weight_bytes",
                     (json_int_t)plan->weight_bytes, "kv_bytes", (json_int_t)plan->kv_bytes, "decode_bytes",
                     (json_int_t)plan->decode_bytes, "decode_tokens_s", plan->decode_tokens_s, "batch_decode_tokens_s",
                     plan->batch_decode_tokens_s, "prefill_tokens_s", plan->prefill_tokens_s, "arenas", arenas,
                     "regions", regions);
}

static void print_json(json_t *value)
{
    (void)json_dumpf(value, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9));
    (void)putchar('\n');
    json_decref(value);
}

static void print_line(const struct nib_plan *plan)
{
    (void)printf("  %-5s %-6s %8.1f %7.1f %8.2f %8u %6u %7u %9.0f %10.0f\n", plan->shape->name, plan->row->name,
                 gib(plan->weight_bytes), gib(plan->arena_bytes[NIB_SPACE_DEVICE]), gib(plan->kv_bytes),
                 plan->dims.ctx_tokens, plan->dims.slots, plan->spilled_layers, plan->decode_tokens_s,
                 plan->batch_decode_tokens_s);
}

static int run_all(struct options *o)
{
    static const char *const shapes[] = {"20b", "120b"};
    static struct nib_profile profiles[NIB_MAX_PROFILES];
    struct nib_msg msg;
    size_t count;
    if (nib_profiles_list(profiles, &count, &msg)) {
        (void)fprintf(stderr, "nibble plan: %s\n", msg.text);
        return NIB_EXIT_FAILED;
    }
    json_t *list = json_array();
    for (size_t i = 0; i < count; i++) {
        if (!o->json)
            (void)printf("%s\n  shape row     weights  device  kv cache  context  slots spilled  tok/s b1 tok/s full\n",
                         profiles[i].name);
        for (size_t s = 0; s < 2; s++) {
            struct nib_row_facts facts;
            struct nib_plan plan;
            enum nib_err err = make_plan(o, &profiles[i], shapes[s], &facts, &plan, &msg);
            if (o->json)
                json_array_append_new(list, err ? json_pack("{s:s, s:s, s:s}", "shape", shapes[s], "profile",
                                                            profiles[i].name, "refused", msg.text)
                                                : plan_json(&plan, &profiles[i]));
            else if (err)
                (void)printf("  %-5s refused: %s\n", shapes[s], msg.text);
            else
                print_line(&plan);
        }
    }
    if (o->json)
        print_json(list);
    else
        json_decref(list);
    return NIB_EXIT_OK;
}

int nib_cmd_plan(int argc, char **argv)
{
    struct options o = {0};
    struct nib_profile profile;
    struct nib_row_facts facts;
    static struct nib_plan plan;
    struct nib_msg msg;
    int code = parse_args(argc, argv, &o);
    if (code >= 0)
        return code;
    if (o.all)
        return run_all(&o);
    enum nib_err err = o.profile ? nib_profile_load(o.profile, &profile, &msg) : nib_arch_probe_cpu(&profile, &msg);
    if (!err)
        err = make_plan(&o, &profile, o.shape, &facts, &plan, &msg);
    if (err) {
        (void)fprintf(stderr, "nibble plan: %s\n", msg.text);
        return NIB_EXIT_FAILED;
    }
    if (o.json)
        print_json(plan_json(&plan, &profile));
    else
        print_text(&plan, &profile);
    return NIB_EXIT_OK;
}
