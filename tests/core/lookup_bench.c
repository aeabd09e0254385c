/* tests/core/lookup_bench.c: what guessing is worth on a text that is given back with small changes. Not a test.
 *
 *     lookup_bench IMAGE|SHAPE FILE OLD NEW [DRAFT_TOKENS [VOCAB]]
 *
 * The prompt is FILE's text, the answer is the same text with every OLD replaced by NEW, as a model that edits well would
 * write it. Scheduler and engine run with real times, on the CPU, or on the GPU with made-up weights of SHAPE, one step at a
 * time; the tokens that the engine samples are replaced by the answer's, since no model that could edit is at hand. With VOCAB
 * (a .tiktoken file) the text is cut as that says, and ids beyond the image's vocabulary are folded into it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "appliance/machine.h"
#include "appliance/stepper.h"
#include "core/arith.h"
#include "core/sample.h"
#include "tools/synth.h"
#include "tools/synth_weights.h"

enum { TEXT_BYTES = 1 << 20, TOKENS = 1 << 15 };

static struct nib_machine machine; /* large: not on the stack */
static struct nib_sched *sched;
static struct nib_step step;
static struct nib_step_out out;
static struct nib_sched_event events[NIB_MAX_QUEUE + NIB_MAX_SLOTS];
static uint32_t tokens[2 * TOKENS]; /* prompt, then answer */
static uint32_t prompt_tokens, answer_tokens;

static void must(enum nib_err err, const struct nib_msg *msg)
{
    if (!err)
        return;
    fprintf(stderr, "lookup_bench: %s\n", msg->text);
    exit(1);
}

static char *read_text(const char *path)
{
    static char text[TEXT_BYTES];
    FILE *file = fopen(path, "r");
    const size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
    if (n == 0) {
        fprintf(stderr, "lookup_bench: %s cannot be read\n", path);
        exit(1);
    }
    (void)fclose(file);
    text[n] = '\0';
    return text;
}

/* The text with every `old` replaced. */
static const char *edit(const char *text, const char *old, const char *new)
{
    static char edited[TEXT_BYTES];
    size_t n = 0;
    while (*text && n + strlen(new) + 1 < sizeof edited) {
        const bool here = strncmp(text, old, strlen(old)) == 0;
        n += (size_t)snprintf(edited + n, sizeof edited - n, "%.*s", here ? (int)strlen(new) : 1, here ? new : text);
        text += here ? strlen(old) : 1;
    }
    return edited;
}

static const struct nib_tokenizer *open_vocab(const char *path)
{
    const struct nib_synth synth = {.shape = nib_shape_find("20b"), .vocab_path = path};
    const struct nib_tokenizer *tokenizer;
    struct nib_arena arena;
    struct nib_msg msg;
    uint8_t *blob;
    size_t blob_bytes, bytes;
    must(nib_synth_vocab(&synth, &blob, &blob_bytes, &msg), &msg);
    must(nib_tokenizer_plan(blob, blob_bytes, &bytes, &msg), &msg);
    nib_arena_init(&arena, aligned_alloc(64, nib_round_up(bytes, 64)), bytes);
    must(nib_tokenizer_open(&arena, blob, blob_bytes, &tokenizer, &msg), &msg);
    return tokenizer;
}

static uint32_t encode(const struct nib_tokenizer *tokenizer, const char *text, uint32_t *ids)
{
    struct nib_msg msg;
    size_t count = 0;
    const size_t bytes = nib_tokenizer_scratch_bytes(TEXT_BYTES);
    void *scratch = malloc(bytes);
    must(nib_tokenizer_encode(tokenizer, scratch, bytes, text, strlen(text), ids, TOKENS, &count, &msg), &msg);
    free(scratch);
    for (size_t i = 0; i < count; i++)
        ids[i] %= machine.image.shape->special_base;
    return (uint32_t)count;
}

static void open_machine(const char *image, uint32_t draft_tokens)
{
    struct nib_msg msg = {""};
    const struct nib_shape *made_up = nib_shape_find(image);
    const struct nib_machine_options options = {
        .image = image,
        .device = made_up ? NIB_DEVICE_GPU : NIB_DEVICE_CPU,
        .made_up = made_up,
        .made_up_source = made_up ? nib_synth_source(made_up) : (struct nib_gpu_source){0},
        .ask = {.ctx_tokens = TOKENS, .slots = made_up ? 1 + NIB_MAX_DRAFT_TOKENS : 1, .draft_tokens = draft_tokens}};
    must(nib_machine_plan(&machine, &options, &msg), &msg);
    must(nib_machine_map(&machine, &msg), &msg);
    must(nib_machine_load(&machine, NULL, NULL, &msg), &msg);
    struct nib_arena arena;
    nib_arena_init(&arena, nib_plan_carve(&machine.plan, NIB_R_SCHED, -1, machine.base),
                   nib_plan_region(&machine.plan, NIB_R_SCHED, -1)->bytes);
    must(nib_sched_init(&arena, &machine.plan.sched, &sched, &msg), &msg);
}

/* One step; true when the request has ended. */
static bool run_step(void)
{
    struct nib_msg msg = {""};
    uint32_t count = 0;
    must(nib_sched_next_step(sched, 0, &step, events, &count), &msg);
    const uint64_t begin_us = nib_now_us();
    must(machine.engine->ops->submit(machine.engine, &step, &msg), &msg);
    must(machine.engine->ops->collect(machine.engine, &out, &msg), &msg);
    must(nib_sched_took(sched, nib_now_us() - begin_us), &msg);
    for (uint32_t i = 0, n = 0; i < step.rows_count; i++)
        if (step.rows[i].flags & NIB_ROW_LOGITS)
            out.sampled[n++].token = tokens[step.rows[i].pos + 1];
    must(nib_sched_finish_step(sched, 0, &out, events, &count), &msg);
    return count > 0 && events[count - 1].finish != NIB_FINISH_NONE;
}

int main(int argc, char **argv)
{
    if (argc < 5 || argc > 7) {
        fprintf(stderr, "usage: lookup_bench IMAGE|SHAPE FILE OLD NEW [DRAFT_TOKENS [VOCAB]]\n");
        return 64;
    }
    if (argc < 7 && nib_shape_find(argv[1])) {
        fprintf(stderr, "lookup_bench: made-up weights have no vocabulary: give one\n");
        return 64;
    }
    open_machine(argv[1], argc > 5 ? (uint32_t)atoi(argv[5]) : NIB_MAX_DRAFT_TOKENS);
    const struct nib_tokenizer *tokenizer = argc > 6 ? open_vocab(argv[6]) : machine.tokenizer;
    const char *text = read_text(argv[2]);
    prompt_tokens = encode(tokenizer, text, tokens);
    answer_tokens = encode(tokenizer, edit(text, argv[3], argv[4]), tokens + prompt_tokens);
    struct nib_sampling sampling;
    nib_sample_defaults(&sampling);
    const struct nib_request request = {
        .prompt = tokens, .prompt_tokens = prompt_tokens, .answer_tokens_max = answer_tokens, .sampling = &sampling};
    struct nib_handle handle;
    struct nib_msg msg = {""};
    must(nib_sched_submit(sched, &request, &handle, &msg), &msg);
    uint64_t begin_us = 0;
    clock_t begin_cpu = 0;
    struct nib_sched_stats s = {0};
    for (bool ended = false; !ended; nib_sched_stats(sched, &s)) {
        if (s.tokens == 0) { /* the answer's time alone */
            begin_us = nib_now_us();
            begin_cpu = clock();
        }
        ended = run_step();
    }
    const double seconds = (double)(nib_now_us() - begin_us) * 1e-6;
    const double cpu_seconds = (double)(clock() - begin_cpu) / CLOCKS_PER_SEC;
    printf("%s, row %s, %u prompt and %u answer tokens: %.1f tokens/s (%.1f a CPU second), %llu rows, %llu guessed, "
           "%llu right\n",
           machine.image.shape->name, machine.row->name, prompt_tokens, answer_tokens,
           (double)(answer_tokens - 1) / seconds, (double)(answer_tokens - 1) / cpu_seconds,
           (unsigned long long)s.rows_decode, (unsigned long long)s.tokens_drafted,
           (unsigned long long)s.tokens_accepted);
    nib_machine_close(&machine);
    return 0;
}
