/* tools/plan.c: `nibble plan`: prints the memory plan for this machine or any profile, without starting anything.
 * Owns nothing after return. One thread. Fails with the planner's own sentence. */
#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "appliance/plan_print.h"
#include "arch/table.h"
#include "core/plan.h"
#include "tools/commands.h"
#include "tools/here.h"
#include "tools/profiles.h"
#include "tools/units.h"

struct options {
    const char *shape;
    const char *profile; /* NULL: this machine */
    const char *device;  /* of this machine: "auto", "cpu" or "gpu" */
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
    case 'd':
        o->device = optarg;
        return true;
    case 'c':
        return nib_option_count("nibble plan: --context", optarg, NIB_MAX_CTX_TOKENS, &o->request.ctx_tokens);
    case 'w':
        return nib_option_dense("nibble plan: --dense", optarg, &o->request.dense);
    case 'k':
        return nib_option_kv("nibble plan: --kv", optarg, &o->request.kv);
    case 's':
        return nib_option_count("nibble plan: --slots", optarg, NIB_MAX_SLOTS, &o->request.slots);
    case 't':
        return nib_option_count("nibble plan: --threads", optarg, NIB_MAX_THREADS, &o->request.threads);
    case 'l':
        return nib_option_size("nibble plan: --memory-limit", optarg, &o->request.memory_limit_bytes);
    default:
        return false;
    }
}

static bool parse_args(int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {
        {"profile", required_argument, 0, 'p'}, {"all", no_argument, 0, 'a'},
        {"context", required_argument, 0, 'c'}, {"slots", required_argument, 0, 's'},
        {"threads", required_argument, 0, 't'}, {"memory-limit", required_argument, 0, 'l'},
        {"mask", required_argument, 0, 'm'},    {"device", required_argument, 0, 'd'},
        {"json", no_argument, 0, 'j'},          {"dense", required_argument, 0, 'w'},
        {"kv", required_argument, 0, 'k'},      {0}};
    int option;
    optind = 1;
    while ((option = getopt_long(argc, argv, "", longs, NULL)) != -1)
        if (!parse_option(option, o))
            return false;
    if (!nib_here_device("nibble plan", o->device))
        return false;
    if (o->all ? optind != argc : optind + 1 != argc) {
        (void)fprintf(stderr, "nibble plan: name one shape, or --all\n");
        return false;
    }
    o->shape = argv[optind];
    return true;
}

/* The row that the daemon would run; for another machine also one of which this build has no kernels, if nothing else
 * fits: *ret_note then says so. */
static enum nib_err choose_row(const struct options *o, const struct nib_profile *profile,
                               const struct nib_arch_row **ret_row, struct nib_msg *ret_note, struct nib_msg *msg)
{
    uint32_t mask = 0;
    enum nib_err err = o->mask ? nib_arch_mask_parse(o->mask, &mask, msg) : NIB_OK;
    if (err)
        return err;
    err = nib_arch_select(profile, mask | nib_arch_unbuilt_mask(), ret_row, msg);
    if (err != NIB_E_UNSUPPORTED || (!o->profile && !o->all))
        return err;
    err = nib_arch_select(profile, mask, ret_row, msg);
    if (!err)
        (void)nib_fail(ret_note, NIB_E_UNSUPPORTED,
                       "this build has no kernels for the row %s; on that machine the daemon would run on the CPU",
                       (*ret_row)->name);
    return err;
}

/* Selects the row and makes the plan; the structs it points to are the caller's. */
static enum nib_err make_plan(struct options *o, const struct nib_profile *profile, const char *shape,
                              struct nib_row_facts *facts, struct nib_plan *ret_plan, struct nib_msg *ret_note,
                              struct nib_msg *msg)
{
    const struct nib_arch_row *row;
    struct nib_plan_request request = o->request;
    request.profile = profile;
    request.shape = nib_shape_find(shape);
    if (!request.shape)
        return nib_fail(msg, NIB_E_ARG, "'%s' is no model shape; `nibble --help` names them", shape);
    enum nib_err err = choose_row(o, profile, &row, ret_note, msg);
    if (err)
        return err;
    *facts = nib_arch_facts(row);
    request.row = facts;
    if (!request.threads)
        request.threads = profile->gpu ? 1 : profile->sms;
    return nib_plan_make(&request, ret_plan, msg);
}

/* As the daemon chooses: the GPU when there is one and a row runs on it; else the CPU, and *ret_note says why. */
static enum nib_err plan_here(struct options *o, struct nib_profile *ret_profile, struct nib_row_facts *facts,
                              struct nib_plan *ret_plan, struct nib_msg *ret_note, struct nib_msg *msg)
{
    struct nib_profile host;
    struct nib_msg unused;
    const struct nib_arch_row *row;
    enum nib_err err = nib_here_probe(o->device, ret_profile, &host, ret_note, msg);
    if (err)
        return err;
    if (ret_profile->gpu && !strcmp(o->device, "auto") &&
        choose_row(o, ret_profile, &row, &unused, ret_note) == NIB_E_UNSUPPORTED)
        *ret_profile = host;
    else if (ret_profile->gpu)
        ret_note->text[0] = '\0';
    return make_plan(o, ret_profile, o->shape, facts, ret_plan, &unused, msg);
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
            struct nib_msg note;
            enum nib_err err = make_plan(o, &profiles[i], shapes[s], &facts, &plan, &note, &msg);
            if (o->json)
                json_array_append_new(list, err ? json_pack("{s:s, s:s, s:s}", "shape", shapes[s], "profile",
                                                            profiles[i].name, "refused", msg.text)
                                                : nib_plan_json(&plan, &profiles[i]));
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
    struct options o = {.device = "auto"};
    struct nib_profile profile;
    struct nib_row_facts facts;
    static struct nib_plan plan;
    struct nib_msg msg, note = {.text = ""};
    if (!parse_args(argc, argv, &o))
        return NIB_EXIT_USAGE;
    if (o.all)
        return run_all(&o);
    enum nib_err err =
        o.profile ? nib_profile_load(o.profile, &profile, &msg) : plan_here(&o, &profile, &facts, &plan, &note, &msg);
    if (!err && o.profile)
        err = make_plan(&o, &profile, o.shape, &facts, &plan, &note, &msg);
    if (err) {
        (void)fprintf(stderr, "nibble plan: %s\n", msg.text);
        return NIB_EXIT_FAILED;
    }
    if (o.json)
        print_json(nib_plan_json(&plan, &profile));
    else
        nib_plan_print(stdout, &plan, &profile);
    if (note.text[0] && !o.json)
        (void)printf("\n  %s: %s\n", o.profile ? "note" : "no GPU", note.text);
    return NIB_EXIT_OK;
}
