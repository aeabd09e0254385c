/* tools/arch.c: `nibble arch`: prints the capability table for a machine: each row, what it is, and why it was taken or not.
 * Owns nothing after return. One thread. Fails when no row is left. */
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "arch/table.h"
#include "tools/commands.h"
#include "tools/here.h"
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
    return nib_here_device("nibble arch", o->device) && optind == argc;
}

/* "avx2 avx512", or "none". */
static void print_features(uint32_t features, char *to, size_t bytes)
{
    static const struct {
        uint32_t bit;
        const char *name;
    } names[] = {{NIB_CPU_AVX2, "avx2"},
                 {NIB_CPU_AVX512, "avx512"},
                 {NIB_CPU_AVX512_VNNI, "vnni"},
                 {NIB_CPU_AVX512_BF16, "bf16"},
                 {NIB_CPU_AMX_BF16, "amx"}};
    (void)snprintf(to, bytes, "%s", features ? "" : "none");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        const size_t used = strlen(to);
        if (features & names[i].bit)
            (void)snprintf(to + used, bytes - used, "%s%s", used ? " " : "", names[i].name);
    }
}

static void print_row(const struct nib_arch_row *row, const char *state)
{
    char needs[64];
    if (row->gpu && row->cc_min == row->cc_max)
        (void)snprintf(needs, sizeof needs, "sm_%u, %u KiB shared", row->cc_min, row->shared_bytes >> 10);
    else if (row->gpu)
        (void)snprintf(needs, sizeof needs, "sm_%u..%u, %u KiB shared", row->cc_min, row->cc_max,
                       row->shared_bytes >> 10);
    else
        print_features(row->cpu_features, needs, sizeof needs);
    (void)printf("  %-8s %s\n", row->name, state);
    (void)printf("          needs     %s\n", needs);
    (void)printf("          uses      %s\n", row->features);
    (void)printf("          numbers   %s\n", row->numbers);
    (void)printf("          weights   %s\n", row->layout);
    (void)printf("          tiles     %s\n", row->tiles);
    (void)printf("          kernels   %s%s\n", row->gpu ? row->module ? row->module : "none written" : "C",
                 row->module && !row->gpu_kernels ? ", not in this build" : "");
    (void)printf("          falls to  %s\n", row->fallback ? row->fallback : row->gpu ? "the CPU's rows" : "-");
}

static enum nib_err print_table(const struct nib_profile *profile, uint32_t mask, struct nib_msg *msg)
{
    size_t count;
    const struct nib_arch_row *rows = nib_arch_rows(&count), *taken = NULL;
    enum nib_err err = nib_arch_select(profile, mask | nib_arch_unbuilt_mask(), &taken, msg);
    char features[64];
    print_features(profile->cpu_features, features, sizeof features);
    (void)printf("%s: ", profile->name);
    if (profile->gpu)
        (void)printf("compute capability %u.%u, %u multiprocessors, %.1f GiB, %llu KiB shared memory a block\n",
                     profile->compute_capability / 10, profile->compute_capability % 10, profile->sms,
                     (double)profile->memory_bytes / (double)(1ull << 30),
                     (unsigned long long)profile->shared_bytes >> 10);
    else
        (void)printf("%u cores, %.1f GiB, features %s\n", profile->sms,
                     (double)profile->memory_bytes / (double)(1ull << 30), features);
    for (size_t i = 0; i < count; i++) {
        const char *why = nib_arch_refusal(&rows[i], profile, mask | nib_arch_unbuilt_mask());
        print_row(&rows[i], why ? why : &rows[i] == taken ? "taken" : "a better row was taken");
    }
    return err;
}

/* Of this machine; of its CPU too when the daemon would leave its GPU to it. */
static enum nib_err print_here(const char *device, uint32_t mask, struct nib_msg *msg)
{
    struct nib_profile profile, host;
    struct nib_msg note;
    enum nib_err err = nib_here_probe(device, &profile, &host, &note, msg);
    if (err)
        return err;
    if (note.text[0])
        (void)printf("no GPU: %s\n", note.text);
    err = print_table(&profile, mask, msg);
    if (err != NIB_E_UNSUPPORTED || !profile.gpu || strcmp(device, "auto") != 0)
        return err;
    (void)printf("%s; the CPU runs the model\n", msg->text);
    return print_table(&host, mask, msg);
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
    if (!err && o.profile)
        err = nib_profile_load(o.profile, &profile, &msg);
    if (!err)
        err = o.profile ? print_table(&profile, mask, &msg) : print_here(o.device, mask, &msg);
    if (err)
        (void)fprintf(stderr, "nibble arch: %s\n", msg.text);
    return err ? NIB_EXIT_FAILED : NIB_EXIT_OK;
}
