/* tests/fake/fault.c: owns the rules of NIBBLED_FAKE_FAULT and the report.
 * Limits: RULES_MAX rules. Any thread. A rule that cannot be read ends the process: a test would prove nothing. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/fake/fake.h"

#define RULES_MAX 16

enum what { WHAT_CODE, WHAT_HANG, WHAT_LATE, WHAT_FLIP, WHAT_WRONG, WHAT_MISSING, WHAT_OLD };

struct rule {
    char site[40];
    enum fake_image image;
    uint64_t occurrence;
    bool later, tokens, spent;
    enum what what;
    int code;
    unsigned delay_ms;
};

static struct rule rules[RULES_MAX];
static unsigned rules_count;
static pthread_mutex_t rules_lock = PTHREAD_MUTEX_INITIALIZER;
static struct fake_report own_report;
struct fake_report *fake_report = &own_report;

static const char *const call_names[] = {
#define FAKE_NAME(name, since, parameters) #name,
    NIB_CUDA_CALLS(FAKE_NAME)
#undef FAKE_NAME
};

const char *fake_site_name(int site)
{
    if (site < FAKE_CALLS)
        return call_names[site];
    return site < FAKE_ANY_KERNEL ? nib_gpu_op_symbol((enum nib_gpu_op)(site - FAKE_OPS)) : "kernel";
}

static bool known_site(const char *name)
{
    for (int i = 0; i < FAKE_SITES; i++)
        if (strcmp(fake_site_name(i), name) == 0)
            return true;
    return false;
}

static bool parse_what(struct rule *r, const char *text)
{
    static const char *const words[] = {[WHAT_HANG] = "hang",   [WHAT_LATE] = "late",       [WHAT_FLIP] = "flip",
                                        [WHAT_WRONG] = "wrong", [WHAT_MISSING] = "missing", [WHAT_OLD] = "old"};
    for (int w = WHAT_HANG; w <= WHAT_OLD; w++) {
        if (strcmp(words[w], text) == 0) {
            r->what = (enum what)w;
            return true;
        }
    }
    char *end;
    r->what = WHAT_CODE;
    r->code = (int)strtol(text, &end, 10);
    return *end == '\0' && r->code > 0;
}

static bool parse_rule(struct rule *r, const char *text)
{
    char when[24], what[24];
    unsigned delay = 0;
    int fields = sscanf(text, "%39[^:]:%23[^:]:%23[^:]:%u", r->site, when, what, &delay);
    static const char *const images[] = {NULL, "@cubin", "@ptx"};
    for (enum fake_image i = FAKE_IMAGE_CUBIN; fields >= 3 && i <= FAKE_IMAGE_PTX; i++) {
        char *at = strstr(r->site, images[i]);
        if (at) {
            *at = '\0';
            r->image = i;
        }
    }
    if (fields < 3 || !known_site(r->site) || !parse_what(r, what))
        return false;
    char *end;
    r->tokens = when[0] == 't';
    r->occurrence = strtoull(when + r->tokens, &end, 10);
    r->later = *end == '+';
    end += r->later;
    r->delay_ms = fields == 4 ? delay : 1000;
    return *end == '\0' && (r->occurrence > 0 || r->tokens);
}

static void open_report(void)
{
    const char *path = getenv("NIBBLED_FAKE_REPORT");
    if (path) {
        int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        void *at = MAP_FAILED;
        struct stat have;
        /* never shorter: the report may be the beginning of what its reader keeps there */
        if (fd >= 0 && (fstat(fd, &have) == 0 &&
                        (have.st_size >= (off_t)sizeof own_report || ftruncate(fd, sizeof own_report) == 0)))
            at = mmap(NULL, sizeof own_report, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (at == MAP_FAILED) {
            fprintf(stderr, "fake libcuda: %s: %s\n", path, strerror(errno));
            abort();
        }
        close(fd);
        fake_report = at;
    }
    fake_report->sites = FAKE_SITES;
    for (int i = 0; i < FAKE_SITES; i++)
        snprintf(fake_report->site[i].name, sizeof fake_report->site[i].name, "%s", fake_site_name(i));
    fake_report->magic = FAKE_REPORT_MAGIC;
}

__attribute__((constructor)) static void read_environment(void)
{
    char text[1024] = "";
    const char *given = getenv("NIBBLED_FAKE_FAULT");
    snprintf(text, sizeof text, "%s", given ? given : "");
    open_report();
    for (char *save, *one = strtok_r(text, ",", &save); one; one = strtok_r(NULL, ",", &save)) {
        if (rules_count == RULES_MAX || !parse_rule(&rules[rules_count++], one)) {
            fprintf(stderr, "fake libcuda: NIBBLED_FAKE_FAULT: '%s' is no rule\n", one);
            abort();
        }
    }
}

void fake_violation(const char *format, ...)
{
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "fake libcuda: violation: %s\n", text);
    __atomic_add_fetch(&fake_report->violations, 1, __ATOMIC_RELAXED);
}

bool fake_is_sticky(int code)
{
    return (code >= 700 && code < 800 && code != NIB_CU_LAUNCH_OUT_OF_RESOURCES) || code == NIB_CU_ECC_UNCORRECTABLE ||
           code == NIB_CU_NVLINK_UNCORRECTABLE || code == NIB_CU_CONTAINED || code == NIB_CU_UNKNOWN;
}

void fake_poison(int code)
{
    int none = 0;
    __atomic_compare_exchange_n(&fake.sticky, &none, code, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static __thread enum fake_image about;

void fake_about(enum fake_image image)
{
    about = image;
}

static bool due(struct rule *r, int site, uint64_t count)
{
    if (r->spent || strcmp(r->site, fake_site_name(site)) != 0 || (r->image && r->image != about))
        return false;
    uint64_t now = r->tokens ? __atomic_load_n(&fake_report->tokens, __ATOMIC_SEQ_CST) : count;
    bool hit = r->tokens || r->later ? now >= r->occurrence : now == r->occurrence;
    r->spent = hit && !r->later;
    return hit;
}

void fake_hang(void)
{
    __atomic_store_n(&fake.hung, true, __ATOMIC_SEQ_CST);
    for (;;)
        pause();
}

static void sleep_ms(unsigned ms)
{
    struct timespec ts = {.tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000};
    nanosleep(&ts, NULL);
}

enum fake_act fake_fault(int site, int *ret_code)
{
    uint64_t count = __atomic_add_fetch(&fake_report->site[site].count, 1, __ATOMIC_SEQ_CST);
    enum fake_act act = FAKE_GO_ON;
    for (unsigned i = 0; i < rules_count; i++) {
        pthread_mutex_lock(&rules_lock);
        bool hit = due(&rules[i], site, count);
        pthread_mutex_unlock(&rules_lock);
        if (!hit || rules[i].what == WHAT_MISSING || rules[i].what == WHAT_OLD)
            continue;
        __atomic_add_fetch(&fake_report->fired, 1, __ATOMIC_SEQ_CST);
        if (rules[i].what == WHAT_HANG && site < FAKE_CALLS)
            __atomic_store_n(&fake_report->stuck, 1, __ATOMIC_SEQ_CST);
        if (rules[i].what == WHAT_HANG)
            fake_hang();
        if (rules[i].what == WHAT_WRONG) {
            act = FAKE_WRONG;
            *ret_code = (int)rules[i].delay_ms;
        } else if (rules[i].what == WHAT_LATE) {
            sleep_ms(rules[i].delay_ms);
        } else if (rules[i].what == WHAT_FLIP) {
            act = FAKE_FLIP;
            *ret_code = (int)rules[i].delay_ms;
        } else {
            if (fake_is_sticky(rules[i].code))
                fake_poison(rules[i].code);
            *ret_code = rules[i].code;
            return FAKE_FAIL;
        }
    }
    return act;
}

bool fake_missing(const char *name, const char *what)
{
    enum what wanted = strcmp(what, "old") == 0 ? WHAT_OLD : WHAT_MISSING;
    for (unsigned i = 0; i < rules_count; i++) {
        if (rules[i].what == wanted && strcmp(rules[i].site, name) == 0) {
            __atomic_add_fetch(&fake_report->fired, 1, __ATOMIC_SEQ_CST);
            return true;
        }
    }
    return false;
}
