/* tests/gpu/fault_test.c: every call into CUDA fails, at boot and between tokens, in every way it can.
 *
 * Each injection runs a whole life in a child: probe, plan, memory, weights, graphs, prompts of two sequences, a batch with
 * tokens fed back and two steps under way, a sequence that begins behind a known page, close. The outcome must be one of: the right tokens; a boot that ends with one
 * sentence; a step that ends with one, after tokens that were all right. A call that itself never returns is what systemd's
 * watchdog is for. NIB_FAULTS=all runs every occurrence up to the 400th with every result; otherwise a sample is run, chosen
 * by NIB_TEST_SEED, with each result at least once at each call. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>

#include "tests/gpu/gpu_fixture.h"

enum {
    ANSWER = 10,
    PROMPT = 40,
    LIFE_TOKENS = 2 * ANSWER + 1,
    CLOSING = LIFE_TOKENS + 1,
    CHILDREN = 12,
    OCCURRENCES_MAX = 400
};
enum { STEP_MS_MAX = 1500, LIFE_MS_MAX = 60000 };

enum outcome { RIGHT, REFUSED, LOST, STUCK_IN_CALL, WRONG, MUTE, HUNG, CRASHED, OUTCOMES };
static const char *const outcome_names[OUTCOMES] = {
    [RIGHT] = "right answer",
    [REFUSED] = "boot refused with a sentence",
    [LOST] = "step lost with a sentence",
    [STUCK_IN_CALL] = "stuck inside a call of the driver",
    [WRONG] = "WRONG TOKEN",
    [MUTE] = "FAILED WITHOUT A SENTENCE",
    [HUNG] = "HUNG",
    [CRASHED] = "CRASHED",
};

/* What a life tells its parent, in shared memory. */
struct life {
    struct fake_report report;
    uint32_t tokens_count;
    uint32_t token[LIFE_TOKENS];
    uint32_t fired_in_service; /* faults that happened before all was given back */
    bool booted, ended;
    enum nib_err err;
    struct nib_msg msg;
};

struct injection {
    char rule[96];
    pid_t pid;
    uint64_t begin_ms;
    struct life *life;
    int fd;
};

static const struct fixture_options options = {.shape = "nano",
                                               .kernels = &nib_kernels_ref,
                                               .seed = 4,
                                               .ctx_tokens = 256,
                                               .slots = 3,
                                               .step_rows_max = 32,
                                               .threads = 1};
static struct gpu_fixture g;
static struct life golden;
static uint32_t tally[OUTCOMES], runs, fired;

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- a life, in the child ---- */

static enum nib_err collect(struct life *life)
{
    enum nib_err err = g.f.engine->ops->collect(g.f.engine, &g.f.out, &life->msg);
    for (uint32_t i = 0; !err && i < g.f.out.count; i++)
        if (life->tokens_count < LIFE_TOKENS)
            life->token[life->tokens_count++] = g.f.out.sampled[i].token;
    return err;
}

static enum nib_err prefill(struct life *life, uint32_t slot)
{
    uint32_t tokens[PROMPT];
    fixture_tokens(g.f.image.shape, 70 + slot, tokens, PROMPT);
    enum nib_err err = NIB_OK;
    for (uint32_t from = 0; from < PROMPT && !err; from += 20) {
        fixture_begin(&g.f);
        for (uint32_t p = from; p < from + 20; p++)
            fixture_row(&g.f, slot, p, tokens[p], p + 1 == PROMPT ? NIB_ROW_LOGITS : 0);
        err = g.f.engine->ops->submit(g.f.engine, &g.f.step, &life->msg);
        if (!err)
            err = collect(life);
    }
    return err;
}

/* Slots 0 and 2 decode together, a step ahead of what is read. */
static enum nib_err decode(struct life *life)
{
    enum nib_err err = NIB_OK;
    for (uint32_t i = 1; i < ANSWER && !err; i++) {
        fixture_begin(&g.f);
        for (uint32_t slot = 0; slot < 3; slot += 2)
            fixture_row(&g.f, slot, PROMPT + i - 1, 0, NIB_ROW_DECODE | NIB_ROW_LOGITS | NIB_ROW_FEEDBACK);
        err = g.f.engine->ops->submit(g.f.engine, &g.f.step, &life->msg);
        if (!err && i > 1)
            err = collect(life);
    }
    return err ? err : collect(life);
}

/* Slot 1 runs a page, whose window layers go into a page that slot 0 does not need; then it begins behind them. */
static enum nib_err begin_warm(struct life *life)
{
    uint32_t tokens[NIB_KV_PAGE_TOKENS + 5];
    const struct nib_kv_copy copy = {.page = g.f.pages[0][3], .index = 0, .slot = 1};
    enum nib_err err = NIB_OK;
    fixture_tokens(g.f.image.shape, 99, tokens, NIB_KV_PAGE_TOKENS + 5);
    for (uint32_t from = 0; from < NIB_KV_PAGE_TOKENS + 5 && !err; from += 32) {
        const bool warm = from == NIB_KV_PAGE_TOKENS;
        fixture_begin(&g.f);
        for (uint32_t p = from; p < from + (warm ? 5 : 32); p++)
            fixture_row(&g.f, 1, p, tokens[p],
                        (p == NIB_KV_PAGE_TOKENS ? NIB_ROW_FIRST : 0) |
                            (p == NIB_KV_PAGE_TOKENS + 4 ? NIB_ROW_LOGITS : 0));
        g.f.step.loads[0] = g.f.step.saves[0] = copy;
        g.f.step.loads_count = warm;
        g.f.step.saves_count = from == 32;
        err = g.f.engine->ops->submit(g.f.engine, &g.f.step, &life->msg);
        if (!err)
            err = collect(life);
    }
    return err;
}

static enum nib_err boot(struct life *life)
{
    enum nib_err err = gpu_fixture_plan(&g, &options, 1024ull << 20, &life->msg);
    if (!err)
        err = gpu_fixture_take(&g, &life->msg);
    if (err)
        return err;
    struct nib_gpu_engine_open open = gpu_fixture_args(&g);
    open.step_ms_max = STEP_MS_MAX;
    open.readers = 1; /* so that the n-th call is the same call in every life */
    err = nib_gpu_engine_open(&open, &g.f.engine, &life->msg);
    if (!err)
        fixture_tables(&g.f);
    return err;
}

static void live(struct life *life)
{
    enum nib_err err = boot(life);
    life->booted = !err;
    if (!err)
        err = prefill(life, 0);
    if (!err)
        err = prefill(life, 2);
    if (!err)
        err = decode(life);
    if (!err)
        err = begin_warm(life);
    life->fired_in_service = life->report.fired;
    __atomic_store_n(&life->report.tokens, CLOSING, __ATOMIC_SEQ_CST);
    if (g.f.engine)
        g.f.engine->ops->close(g.f.engine);
    nib_gpu_close(&g.gpu);
    life->err = err;
    life->ended = true;
}

/* ---- lives, in the parent ---- */

static void spawn(struct injection *in)
{
    char path[64];
    in->fd = memfd_create("life", 0);
    ck_assert_int_ge(in->fd, 0);
    ck_assert_int_eq(ftruncate(in->fd, sizeof(struct life)), 0);
    in->life = mmap(NULL, sizeof(struct life), PROT_READ | PROT_WRITE, MAP_SHARED, in->fd, 0);
    ck_assert_ptr_ne(in->life, MAP_FAILED);
    in->begin_ms = now_ms();
    fflush(NULL);
    in->pid = fork();
    ck_assert_int_ge(in->pid, 0);
    if (in->pid)
        return;
    int quiet = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (quiet >= 0 && !getenv("NIB_FAULTS_LOUD"))
        dup2(quiet, STDERR_FILENO);
    fake_env("h200", in->rule);
    unlink(getenv("NIBBLED_FAKE_REPORT"));
    snprintf(path, sizeof path, "/proc/self/fd/%d", in->fd); /* the report is a life's first member */
    setenv("NIBBLED_FAKE_REPORT", path, 1);
    setenv("NIBBLED_FAKE_FILL_MIB", "1", 1); /* engine_test looks for what is read before it is written */
    live(in->life);
    _exit(0);
}

static bool tokens_right(const struct life *life, uint32_t count)
{
    return life->tokens_count == count && memcmp(life->token, golden.token, count * sizeof golden.token[0]) == 0;
}

static enum outcome judge(const struct injection *in, bool exited)
{
    const struct life *life = in->life;
    if (life->report.stuck && !life->ended)
        return tokens_right(life, life->tokens_count) ? STUCK_IN_CALL : WRONG;
    if (!life->ended)
        return exited ? CRASHED : HUNG;
    if (life->tokens_count > LIFE_TOKENS || !tokens_right(life, life->tokens_count))
        return WRONG;
    if (!life->err)
        return life->tokens_count == LIFE_TOKENS ? RIGHT : WRONG;
    if (life->msg.text[0] == '\0' || strchr(life->msg.text, '\n'))
        return MUTE;
    return life->booted ? LOST : REFUSED;
}

/* What an error that was returned comes to: never to nothing, but where things are given back; and the sentence names it. */
static bool fits_code(const struct injection *in, enum outcome outcome)
{
    static const char *const at_the_end[] = {"cuEventDestroy",           "cuGraphExecDestroy", "cuModuleUnload",
                                             "cuStreamDestroy",          "cuMemFree",          "cuMemFreeHost",
                                             "cuDevicePrimaryCtxRelease"};
    char site[64] = "", code[16] = "", named[32];
    if (sscanf(in->rule, "%63[^:]:%*[^:]:%15[0-9]", site, code) != 2 || !in->life->report.fired)
        return true;
    snprintf(named, sizeof named, "(%s)", code);
    if (outcome != RIGHT)
        return outcome == STUCK_IN_CALL || strstr(in->life->msg.text, named) != NULL;
    if (in->life->fired_in_service == 0)
        return true;
    for (size_t i = 0; i < sizeof at_the_end / sizeof at_the_end[0]; i++)
        if (strcmp(site, at_the_end[i]) == 0)
            return true;
    return false;
}

/* What must not be called a success: the outcome does not fit what was injected. */
static bool fits(const struct injection *in, enum outcome outcome)
{
    if (!fits_code(in, outcome))
        return false;
    if (!in->life->report.fired) /* a machine that is busy enough misses a deadline by itself */
        return outcome == RIGHT || (outcome == LOST && strstr(in->life->msg.text, " ms"));
    bool hang = strstr(in->rule, ":hang") != NULL, call = strstr(in->rule, "cu") != NULL;
    if (outcome == STUCK_IN_CALL)
        return hang && call;
    if (outcome == LOST)
        return in->life->err == NIB_E_DEVICE;
    if (strstr(in->rule, ":flip"))
        return outcome == REFUSED;
    if (in->life->report.violations)
        return false;
    return outcome <= REFUSED;
}

/* Waits a moment; true when the life is over and judged. */
static bool reap(struct injection *in)
{
    int status = 0;
    pid_t pid = waitpid(in->pid, &status, WNOHANG);
    bool exited = pid == in->pid;
    ck_assert(pid == 0 || exited);
    bool stuck = __atomic_load_n(&in->life->report.stuck, __ATOMIC_SEQ_CST) && !in->life->ended;
    if (!exited && !stuck && now_ms() - in->begin_ms < LIFE_MS_MAX)
        return false;
    if (!exited) {
        kill(in->pid, SIGKILL);
        waitpid(in->pid, &status, 0);
    } else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        in->life->ended = false;
    }
    enum outcome outcome = judge(in, exited);
    tally[outcome]++;
    runs++;
    fired += in->life->report.fired > 0;
    if (!fits(in, outcome)) {
        printf("%s: %s; error %s, tokens %u: %s\n", in->rule, outcome_names[outcome], nib_err_name(in->life->err),
               in->life->tokens_count, in->life->msg.text);
        tally[WRONG] += outcome < WRONG;
    }
    munmap(in->life, sizeof *in->life);
    close(in->fd);
    in->pid = 0;
    return true;
}

static struct injection running[CHILDREN];

static struct injection *free_place(void)
{
    const struct timespec nap = {.tv_nsec = 500000};
    for (;;) {
        for (size_t i = 0; i < CHILDREN; i++)
            if (running[i].pid == 0 || reap(&running[i]))
                return &running[i];
        nanosleep(&nap, NULL);
    }
}

static void finish_all(void)
{
    const struct timespec nap = {.tv_nsec = 500000};
    for (size_t i = 0; i < CHILDREN; i++)
        while (running[i].pid != 0 && !reap(&running[i]))
            nanosleep(&nap, NULL);
}

static void inject_rule(const char *rule)
{
    struct injection *in = free_place();
    *in = (struct injection){0};
    snprintf(in->rule, sizeof in->rule, "%s", rule);
    spawn(in);
}

static void inject(const char *site, const char *when, const char *what)
{
    char rule[96];
    snprintf(rule, sizeof rule, "%s:%s:%s", site, when, what);
    inject_rule(rule);
}

static void run_golden(void)
{
    struct injection in = {.rule = ""};
    spawn(&in);
    int status;
    waitpid(in.pid, &status, 0);
    golden = *in.life;
    munmap(in.life, sizeof *in.life);
    close(in.fd);
    ck_assert_msg(golden.ended && golden.err == NIB_OK, "%s", golden.msg.text);
    ck_assert_uint_eq(golden.tokens_count, LIFE_TOKENS);
    ck_assert_uint_eq(golden.report.violations, 0);
    ck_assert_int_eq((int)golden.report.objects, 0);
    ck_assert_uint_eq(golden.report.device_bytes + golden.report.pinned_bytes, 0);
}

static const char *const whats[] = {"2",   "700", "702",  "719",      "214",      "220",
                                    "800", "999", "hang", "late:100", "late:3000"};
enum { WHATS = sizeof whats / sizeof whats[0] };

static bool for_all(void)
{
    const char *s = getenv("NIB_FAULTS");
    return s && strcmp(s, "all") == 0;
}

/* In a sample: one occurrence in any case, the first and last more often than others. */
static bool chosen(uint64_t n, uint64_t count, uint64_t sure, uint64_t *state)
{
    uint64_t r = nib_test_rand(state);
    if (for_all() || n == sure)
        return true;
    return n == 1 || n == count ? r % 4 == 0 : r % (count < 12 ? 12 : 2 * count) == 0;
}

static void inject_site(uint32_t site, uint64_t *state)
{
    const char *name = golden.report.site[site].name;
    uint64_t count = golden.report.site[site].count;
    uint64_t last = count < OCCURRENCES_MAX ? count : OCCURRENCES_MAX;
    char when[24];
    for (uint32_t w = 0; w < WHATS; w++) {
        const uint64_t sure = 1 + nib_test_rand(state) % last;
        for (uint64_t n = 1; n <= last; n++) {
            snprintf(when, sizeof when, "%llu", (unsigned long long)n);
            if (chosen(n, last, sure, state))
                inject(name, when, whats[w]);
        }
        for (uint32_t tokens = 1; tokens < LIFE_TOKENS; tokens += for_all() ? 3 : 9) {
            snprintf(when, sizeof when, "t%u", tokens);
            if (chosen(tokens, LIFE_TOKENS, 0, state))
                inject(name, when, whats[w]);
        }
    }
}

static void print_tally(const char *name)
{
    finish_all();
    printf("%s: %u injections, %u fired:", name, runs, fired);
    for (int i = 0; i < OUTCOMES; i++)
        if (tally[i])
            printf(" %u %s;", tally[i], outcome_names[i]);
    printf("\n");
    fflush(stdout);
    for (int i = WRONG; i < OUTCOMES; i++)
        ck_assert_uint_eq(tally[i], 0);
}

/* NIB_FAULT_ONE=rule: that one life, with what it and the library say. */
START_TEST(one_fault)
{
    struct injection *in = &running[0];
    run_golden();
    snprintf(in->rule, sizeof in->rule, "%s", getenv("NIB_FAULT_ONE"));
    spawn(in);
    print_tally(in->rule);
}
END_TEST

START_TEST(every_call_fails_in_every_way)
{
    uint64_t seed = nib_test_seed();
    run_golden();
    for (uint32_t site = 0; site < golden.report.sites; site++)
        if (golden.report.site[site].count > 0)
            inject_site(site, &seed);
    print_tally("calls and kernels");
    ck_assert_uint_gt(fired, runs / 2);
}
END_TEST

/* A call that fails once and for ever after. */
START_TEST(every_call_fails_for_ever)
{
    run_golden();
    for (uint32_t site = 0; site < golden.report.sites; site++)
        for (uint32_t w = 0; w < 7 && golden.report.site[site].count > 0; w++)
            inject(golden.report.site[site].name, w % 2 ? "1+" : "3+", whats[w]);
    print_tally("for ever");
}
END_TEST

/* When all is given back there is nobody left to be told. How often the stream is asked before depends on the machine's load. */
START_TEST(what_fails_while_all_is_given_back_spoils_nothing)
{
    char when[24];
    run_golden();
    snprintf(when, sizeof when, "t%u", (unsigned)CLOSING);
    for (uint32_t site = 0; site < golden.report.sites; site++)
        if (golden.report.site[site].count > 0)
            inject(golden.report.site[site].name, when, "700");
    print_tally("given back");
    ck_assert_uint_eq(tally[RIGHT], runs);
    ck_assert_uint_gt(fired, 5);
}
END_TEST

/* Saying what failed fails too, or never returns. */
START_TEST(every_name_of_an_error_fails)
{
    static const char *const firsts[] = {"cuDeviceGetName:1:999", "cuMemAlloc:1:2",     "cuMemcpyHtoDAsync:9:700",
                                         "cuGraphUpload:2:719",   "cuGraphLaunch:3:2",  "cuGraphLaunch:t3:700",
                                         "cuStreamQuery:t5:214",  "nib_gpu_attn:9:700", "nib_gpu_sample:t9:719"};
    static const char *const seconds[] = {"1", "700", "hang", "late:100"};
    char rule[96];
    run_golden();
    for (size_t i = 0; i < sizeof firsts / sizeof firsts[0]; i++)
        for (size_t w = 0; w < sizeof seconds / sizeof seconds[0]; w++) {
            snprintf(rule, sizeof rule, "%s,cuGetErrorName:1:%s", firsts[i], seconds[w]);
            inject_rule(rule);
        }
    print_tally("names of errors");
    ck_assert_uint_eq(tally[RIGHT], 0);
}
END_TEST

/* A result that cannot be is a lost device, whoever it was that spoilt it. */
START_TEST(no_impossible_result_is_a_token)
{
    char when[24], what[24];
    run_golden();
    for (unsigned tokens = 2; tokens < LIFE_TOKENS; tokens += 4) { /* the prompts' own tokens come first */
        for (unsigned how = 1; how <= 6; how++) {
            snprintf(when, sizeof when, "t%u", tokens);
            snprintf(what, sizeof what, "wrong:%u", how);
            inject("nib_gpu_sample", when, what);
        }
    }
    print_tally("impossible results");
    ck_assert_uint_eq(tally[LOST], runs);
}
END_TEST

/* One bit of a copy to the device: weights, and what tells the kernels where they lie. */
START_TEST(every_flipped_bit_is_seen)
{
    uint64_t seed = nib_test_seed();
    run_golden();
    for (uint32_t site = 0; site < golden.report.sites; site++) {
        if (strcmp(golden.report.site[site].name, "cuMemcpyHtoDAsync") != 0)
            continue;
        for (uint64_t n = 1; n <= golden.report.site[site].count; n++) {
            char when[24], what[24];
            snprintf(when, sizeof when, "%llu", (unsigned long long)n);
            snprintf(what, sizeof what, "flip:%u", (unsigned)(nib_test_rand(&seed) % 1000000));
            inject("cuMemcpyHtoDAsync", when, what);
        }
    }
    print_tally("flipped bits");
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("fault");
    TCase *tcase = tcase_create("fault");
    tcase_set_timeout(tcase, for_all() ? 36000 : NIB_TEST_TIMEOUT_S);
    if (getenv("NIB_FAULT_ONE")) {
        tcase_add_test(tcase, one_fault);
    } else {
        tcase_add_test(tcase, every_call_fails_in_every_way);
        tcase_add_test(tcase, every_call_fails_for_ever);
        tcase_add_test(tcase, what_fails_while_all_is_given_back_spoils_nothing);
        tcase_add_test(tcase, every_name_of_an_error_fails);
        tcase_add_test(tcase, no_impossible_result_is_a_token);
        tcase_add_test(tcase, every_flipped_bit_is_seen);
    }
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
