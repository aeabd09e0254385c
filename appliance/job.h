/* appliance/job.h: one request between the two threads.
 *
 * The front takes a job from a fixed table, fills it, and pushes its index; the stepper hands it to
 * the scheduler, which copies the prompt, and answers with events that carry the index. The front
 * frees the job after its last event, so an index never names two requests. */
#ifndef NIB_APPLIANCE_JOB_H
#define NIB_APPLIANCE_JOB_H

#include "core/engine.h"

/* What the stepper reads; written by the front before the push, then left alone. */
struct nib_job_in {
    uint32_t *prompt; /* [ctx_tokens] */
    uint32_t prompt_tokens;
    uint32_t answer_tokens_max;
    uint32_t uid;
    uint32_t stop_count;
    uint32_t stop[NIB_MAX_STOP_TOKENS];
    struct nib_sampling sampling;
};

/* Front to stepper. */
enum nib_cmd_type { NIB_CMD_SUBMIT, NIB_CMD_CANCEL, NIB_CMD_DRAIN };
struct nib_cmd {
    uint32_t type; /* enum nib_cmd_type */
    uint32_t job;
};

/* How a job ended, as the front sees it. */
enum nib_end {
    NIB_END_NONE,      /* goes on */
    NIB_END_STOP,      /* the model ended its turn */
    NIB_END_LENGTH,    /* answer_tokens_max */
    NIB_END_CANCELLED, /* the front asked for it */
    NIB_END_FAILED,    /* the engine gave no usable value, or is lost */
    NIB_END_FULL,      /* never queued: no place */
    NIB_END_REFUSED,   /* never queued: the scheduler refused it */
    NIB_END_DRAINING   /* never queued: shutting down */
};

/* Stepper to front: a token, or an end, or both. */
struct nib_job_event {
    uint32_t job;
    uint32_t end; /* enum nib_end */
    bool started; /* the first event of a job that got a slot carries its first token */
    bool has_token;
    uint32_t reused_tokens; /* of the prompt, computed before it came; with a token */
    uint64_t retry_ms;      /* with NIB_END_FULL */
    struct nib_sampled sampled;
};

#endif
