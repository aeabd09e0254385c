/* tools/arch.c: `nibble arch`: prints the capability table for a machine: each row, what it is, and why it was taken or not.
 * Owns nothing after return. One thread. Fails when no row is left. */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "arch/table.h"
#include "gpu/gpu.h"
#include "tools/commands.h"
#include "tools/profiles.h"

struct options {
    const char *profile;
    const char *mask;
    const char *device; /* "auto", "cpu" or "gpu" */
};

static bool parse_args(int argc, char **argv, struct options *o)
{
    static const struct option longs[] = {{"profile", required_argument, 0, 'p'},
                                          {"mask", required_argument, 0, 'm'},
                                          {"device", required_argument, 0, 'd'},
                                          {0}};
    int option;
    optind = 1;
    while ((option = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        if (option == 'p')
            o->profile = optarg;
        else if (option == 'm')
            o->mask = optarg;
        else if (option == 'd')
            o->device = optarg;
        else
            return false;
    }
    const bool known = !strcmp(o->device, "auto") || !strcmp(o->device, "cpu") || !strcmp(o->device, "gpu");
    if (!known)
        (void)fprintf(stderr, "nibble arch: '%s' is no device; allowed are auto, cpu and gpu\n", o->device);
    return known && optind == argc;
}

/* Of this machine: its GPU, or its CPU when there is none or it is asked for. */
static enum nib_err probe(const struct options *o, struct nib_profile *ret_profile, struct nib_msg *msg)
{
    static struct nib_gpu gpu;
    struct nib_profile host;
    enum nib_err err = nib_arch_probe_cpu(&host, msg);
    if (err)
        return err;
    *ret_profile = host;
    if (!strcmp(o->device, "cpu"))
        return NIB_OK;
    err = nib_gpu_open(&gpu, msg);
    if (err == NIB_E_UNSUPPORTED && !strcmp(o->device, "auto")) {
        (void)printf("no GPU: %s\n", msg->text);
        return NIB_OK;
    }
    if (err)
        return err;
    err = nib_gpu_probe(&gpu, &host, ret_profile, msg);
    nib_gpu_close(&gpu);
    return err;
}

static void print_row(const struct nib_arch_row *row, const char *state)
{
    char needs[64] = "";
    if (row->gpu && row->cc_min == row->cc_max)
        (void)snprintf(needs, sizeof needs, "sm_%u", row->cc_min);
    else if (row->gpu)
        (void)snprintf(needs, sizeof needs, "sm_%u..%u", row->cc_min, row->cc_max);
    else
        (void)snprintf(needs, sizeof needs, "features %#x", row->cpu_features);
    (void)printf("  %-7s %-14s %-7s %-5s %-62s %s\n", row->name, needs, row->fallback ? row->fallback : "-",
                 row->kernels || row->gpu_kernels ? "yes" : "no", row->numbers, state);
}

static enum nib_err print_table(const struct nib_profile *profile, uint32_t mask, struct nib_msg *msg)
{
    size_t count;
    const struct nib_arch_row *rows = nib_arch_rows(&count), *taken = NULL;
    enum nib_err err = nib_arch_select(profile, mask | nib_arch_unbuilt_mask(), &taken, msg);
    (void)printf("%s: ", profile->name);
    if (profile->gpu)
        (void)printf("compute capability %u.%u, %u multiprocessors, %.1f GiB, %llu KiB shared memory a block\n",
                     profile->compute_capability / 10, profile->compute_capability % 10, profile->sms,
                     (double)profile->memory_bytes / (double)(1ull << 30),
                     (unsigned long long)profile->shared_bytes >> 10);
    else
        (void)printf("%u cores, %.1f GiB, features %#x\n", profile->sms,
                     (double)profile->memory_bytes / (double)(1ull << 30), profile->cpu_features);
    (void)printf("  %-7s %-14s %-7s %-5s %-62s %s\n", "row", "needs", "falls", "built", "numbers", "here");
    for (size_t i = 0; i < count; i++) {
        const char *why = nib_arch_refusal(&rows[i], profile, mask | nib_arch_unbuilt_mask());
        print_row(&rows[i], why ? why : &rows[i] == taken ? "taken" : "a better row was taken");
    }
    return err;
}

int nib_cmd_arch(int argc, char **argv)
{
    struct options o = {.device = "auto"};
    struct nib_profile profile;
    struct nib_msg msg;
    uint32_t mask = 0;
    if (!parse_args(argc, argv, &o))
        return NIB_EXIT_USAGE;
    enum nib_err err = o.mask ? nib_arch_mask_parse(o.mask, &mask, &msg) : NIB_OK;
    if (!err)
        err = o.profile ? nib_profile_load(o.profile, &profile, &msg) : probe(&o, &profile, &msg);
    if (!err)
        err = print_table(&profile, mask, &msg);
    if (err)
        (void)fprintf(stderr, "nibble arch: %s\n", msg.text);
    return err ? NIB_EXIT_FAILED : NIB_EXIT_OK;
}
