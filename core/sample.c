/* core/sample.c: one draw from the start to the token, and a slot's token counts.
 * Owns nothing: scratch and state are the caller's. Limits: NIB_MAX_VOCAB, NIB_MAX_LOGIT_BIAS. Any
 * thread. A draw fails, for its own request only, when its logits are not usable. */
#include "core/sample.h"

#include "core/arith.h"
#include "core/sample_impl.h"

#define STATE_PROMPT  0x80000000u /* the token is in the prompt; the other bits count answer tokens */
#define SCRATCH_ALIGN 64u
#define SCRATCH_TAKES 5

void nib_sample_defaults(struct nib_sampling *ret)
{
    *ret = (struct nib_sampling){.temperature = 0.0f, .top_p = 1.0f, .repetition_penalty = 1.0f};
}

static enum nib_err check_range(const char *name, float value, float least, float most, struct nib_msg *msg)
{
    if (value >= least && value <= most)
        return NIB_OK;
    return nib_fail(msg, NIB_E_ARG, "%s is %g: allowed are %g to %g", name, (double)value, (double)least, (double)most);
}

enum nib_err nib_sample_check(const struct nib_sampling *sampling, uint32_t vocab, struct nib_msg *msg)
{
    const struct {
        const char *name;
        float value, least, most;
    } ranges[] = {
        {"temperature", sampling->temperature, 0.0f, 100.0f},
        {"top_p", sampling->top_p, 1e-9f, 1.0f},
        {"min_p", sampling->min_p, 0.0f, 0.999999f},
        {"repetition_penalty", sampling->repetition_penalty, 0.01f, 100.0f},
        {"frequency_penalty", sampling->frequency_penalty, -100.0f, 100.0f},
        {"presence_penalty", sampling->presence_penalty, -100.0f, 100.0f},
    };
    for (size_t i = 0; i < sizeof ranges / sizeof ranges[0]; i++) {
        enum nib_err err = check_range(ranges[i].name, ranges[i].value, ranges[i].least, ranges[i].most, msg);
        if (err)
            return err;
    }
    if (sampling->top_logprobs > NIB_MAX_TOP_LOGPROBS)
        return nib_fail(msg, NIB_E_ARG, "top_logprobs is %u: at most %u", sampling->top_logprobs, NIB_MAX_TOP_LOGPROBS);
    if (sampling->bias_count > NIB_MAX_LOGIT_BIAS)
        return nib_fail(msg, NIB_E_ARG, "logit_bias has %u entries: at most %u", sampling->bias_count,
                        NIB_MAX_LOGIT_BIAS);
    for (uint32_t i = 0; i < sampling->bias_count; i++) {
        if (sampling->bias[i].token >= vocab)
            return nib_fail(msg, NIB_E_ARG, "logit_bias names id %u; ids end at %u", sampling->bias[i].token,
                            vocab - 1);
        enum nib_err err = check_range("logit_bias", sampling->bias[i].bias, -100.0f, 100.0f, msg);
        if (err)
            return err;
    }
    return NIB_OK;
}

uint32_t nib_sample_banned_words(uint32_t vocab)
{
    return (uint32_t)nib_div_up(vocab, SAMPLE_BLOCK);
}

void nib_sample_ban_reserved(const struct nib_shape *shape, uint32_t *banned)
{
    static const uint8_t named[] = {NIB_TOK_STARTOFTEXT, NIB_TOK_ENDOFTEXT, NIB_TOK_RETURN,
                                    NIB_TOK_CONSTRAIN,   NIB_TOK_CHANNEL,   NIB_TOK_START,
                                    NIB_TOK_END,         NIB_TOK_MESSAGE,   NIB_TOK_CALL};
    uint32_t keep = 0; /* bit n: special_base + n has a name */
    for (size_t i = 0; i < sizeof named; i++)
        keep |= 1u << named[i];
    for (uint32_t id = shape->special_base; id < shape->vocab; id++) {
        uint32_t n = id - shape->special_base;
        if (n >= NIB_SPECIAL_SPAN || !(keep >> n & 1))
            banned[id / 32] |= 1u << id % 32;
    }
}

size_t nib_sample_state_bytes(uint32_t vocab)
{
    return vocab * sizeof(uint32_t);
}

void nib_sample_reset(uint32_t *state, uint32_t vocab)
{
    memset(state, 0, nib_sample_state_bytes(vocab));
}

void nib_sample_seen(uint32_t *state, uint32_t token)
{
    state[token] |= STATE_PROMPT;
}

void nib_sample_took(uint32_t *state, uint32_t token)
{
    state[token]++; /* a sequence is far shorter than 2^31 */
}

size_t nib_sample_scratch_bytes(uint32_t vocab)
{
    size_t blocks = nib_sample_banned_words(vocab);
    return blocks * SAMPLE_BLOCK * (2 * sizeof(float) + sizeof(uint32_t)) + blocks * sizeof(float) +
           SAMPLE_BUCKETS * sizeof(uint64_t) + (size_t)SCRATCH_TAKES * SCRATCH_ALIGN;
}

float nib_sample_exp(float x)
{
    return sample_exp(x);
}

static void *carve(uint8_t **at, size_t bytes)
{
    void *p = *at;
    *at += nib_round_up(bytes, SCRATCH_ALIGN);
    return p;
}

static struct sample_work work_of(void *scratch, uint32_t vocab)
{
    uint8_t *at = scratch;
    struct sample_work work = {.blocks = nib_sample_banned_words(vocab), .inv_t = 1.0f};
    size_t ids = (size_t)work.blocks * SAMPLE_BLOCK;
    work.bucket = carve(&at, SAMPLE_BUCKETS * sizeof *work.bucket);
    work.z = carve(&at, ids * sizeof *work.z);
    work.e = carve(&at, ids * sizeof *work.e);
    work.list = carve(&at, ids * sizeof *work.list);
    work.block_max = carve(&at, work.blocks * sizeof *work.block_max);
    return work;
}

/* Copies the logits, banned ids and ids past the end as -inf; adds the bias. The + 0 turns -0 into
 * 0. */
static void load(struct sample_work *work, const struct nib_sample_in *in)
{
    uint32_t whole = in->vocab / SAMPLE_BLOCK;
    for (uint32_t b = 0; b < work->blocks; b++) {
        float *z = work->z + (size_t)b * SAMPLE_BLOCK;
        const float *logits = in->logits + (size_t)b * SAMPLE_BLOCK;
        uint32_t banned = in->banned ? in->banned[b] : 0;
        if (b < whole)
            for (uint32_t i = 0; i < SAMPLE_BLOCK; i++)
                z[i] = logits[i] + 0.0f;
        else
            for (uint32_t i = 0; i < SAMPLE_BLOCK; i++)
                z[i] = i < in->vocab % SAMPLE_BLOCK ? logits[i] + 0.0f : -INFINITY;
        for (; banned != 0; banned &= banned - 1)
            z[__builtin_ctz(banned)] = -INFINITY;
    }
    const struct nib_sampling *sampling = in->sampling;
    for (uint32_t i = 0; i < sampling->bias_count; i++)
        work->z[sampling->bias[i].token] += sampling->bias[i].bias;
}

/* Fills block_max and max. False: a NaN, a +inf, or nothing above -inf. The floats are compared as
 * signed integers in the same order, where NaNs lie outside of [-inf, +inf). */
static bool scan(struct sample_work *work)
{
    const int32_t minus_inf = INT32_MIN + 0x7fffff, plus_inf = 0x7f800000;
    int32_t least = INT32_MAX, most = INT32_MIN;
    for (uint32_t b = 0; b < work->blocks; b++) {
        int32_t key[SAMPLE_BLOCK];
        memcpy(key, work->z + (size_t)b * SAMPLE_BLOCK, sizeof key);
        int32_t low = INT32_MAX, high = INT32_MIN;
        for (uint32_t i = 0; i < SAMPLE_BLOCK; i++) {
            int32_t k = key[i] ^ (key[i] >> 31 & 0x7fffffff);
            low = k < low ? k : low;
            high = k > high ? k : high;
        }
        least = low < least ? low : least;
        most = high > most ? high : most;
        high ^= high < 0 ? 0x7fffffff : 0;
        memcpy(&work->block_max[b], &high, sizeof high);
    }
    if (least < minus_inf || most >= plus_inf || most == minus_inf)
        return false;
    most ^= most < 0 ? 0x7fffffff : 0;
    memcpy(&work->max, &most, sizeof most);
    return true;
}

/* Step 2: the alternatives, and log(sum exp z). */
static double report(struct sample_work *work, uint32_t want, struct nib_sampled *ret)
{
    double log_sum = (double)work->max + log((double)nib_sample_mass_all(work) / (double)SAMPLE_MASS);
    uint32_t count = 0;
    struct nib_top *top = ret->top;
    for (uint32_t b = 0; b < work->blocks && want > 0; b++) {
        if (count == want && work->block_max[b] <= top[count - 1].logprob)
            continue;
        for (uint32_t id = b * SAMPLE_BLOCK; id < (b + 1) * SAMPLE_BLOCK; id++) {
            float z = work->z[id];
            if (z == -INFINITY || (count == want && z <= top[count - 1].logprob))
                continue;
            uint32_t at = count < want ? count++ : count - 1;
            for (; at > 0 && top[at - 1].logprob < z; at--)
                top[at] = top[at - 1];
            top[at] = (struct nib_top){.token = id, .logprob = z};
        }
    }
    for (uint32_t i = 0; i < count; i++)
        top[i].logprob = (float)((double)top[i].logprob - log_sum);
    ret->top_count = count;
    return log_sum;
}

/* Step 1's z of one id that is not banned. */
static float biased(const struct nib_sample_in *in, uint32_t id)
{
    float z = in->logits[id] + 0.0f;
    for (uint32_t i = 0; i < in->sampling->bias_count; i++)
        if (in->sampling->bias[i].token == id)
            z += in->sampling->bias[i].bias;
    return z;
}

/* Step 3. */
static void penalise(struct sample_work *work, const struct nib_sample_in *in)
{
    const struct nib_sampling *sampling = in->sampling;
    for (uint32_t id = 0; id < in->vocab; id++) {
        uint32_t seen = in->state[id];
        if (seen == 0)
            continue;
        uint32_t answers = seen & ~STATE_PROMPT;
        float z = work->z[id];
        z = z > 0.0f ? z / sampling->repetition_penalty : z * sampling->repetition_penalty;
        z = z - sampling->frequency_penalty * (float)answers;
        z = z - (answers ? sampling->presence_penalty : 0.0f);
        work->z[id] = z + 0.0f;
    }
}

static bool penalties_on(const struct nib_sample_in *in)
{
    const struct nib_sampling *sampling = in->sampling;
    return in->state && (sampling->repetition_penalty != 1.0f || sampling->frequency_penalty != 0.0f ||
                         sampling->presence_penalty != 0.0f);
}

static uint32_t largest(const struct sample_work *work)
{
    uint32_t b = 0;
    while (work->block_max[b] != work->max)
        b++;
    uint32_t id = b * SAMPLE_BLOCK;
    while (work->z[id] != work->max)
        id++;
    return id;
}

void nib_sample(const struct nib_sample_in *in, void *scratch, struct nib_sampled *ret)
{
    const struct nib_sampling *sampling = in->sampling;
    struct sample_work work = work_of(scratch, in->vocab);
    ret->token = 0;
    ret->logprob = 0.0f;
    ret->top_count = 0;
    ret->failed = true;
    load(&work, in);
    if (!scan(&work))
        return;
    double log_sum = 0.0;
    bool logprobs = sampling->logprobs || sampling->top_logprobs > 0;
    if (logprobs)
        log_sum = report(&work, sampling->top_logprobs, ret);
    if (penalties_on(in)) {
        penalise(&work, in);
        if (!scan(&work)) {
            ret->top_count = 0;
            return;
        }
    }
    if (sampling->temperature < NIB_SAMPLE_TEMPERATURE_MIN) {
        ret->token = largest(&work);
    } else {
        work.inv_t = 1.0f / sampling->temperature;
        ret->token = nib_sample_truncate(&work, sampling) ? nib_sample_draw_list(&work, sampling->seed, in->pos)
                                                          : nib_sample_draw_all(&work, sampling->seed, in->pos);
    }
    NIB_MUST(ret->token < in->vocab);
    if (logprobs)
        ret->logprob = (float)((double)biased(in, ret->token) - log_sum);
    ret->failed = false;
}
