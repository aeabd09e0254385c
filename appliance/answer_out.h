/* appliance/answer_out.h: how an answer's parts look in JSON. Between answer.c, which knows what
 * happened, and answer_buf.c, which keeps bytes. Front thread. */
#ifndef NIB_APPLIANCE_ANSWER_OUT_H
#define NIB_APPLIANCE_ANSWER_OUT_H

#include "appliance/answer.h"

/* What one token added; streamed, they go out together as one event. */
struct nib_delta {
    struct nib_out content, reasoning, logprobs; /* escaped text; logprobs: ready objects */
    struct nib_out values, tops, offsets;        /* completions */
};

/* Empties the delta over the front's static buffers. */
void nib_delta_reset(struct nib_delta *delta);

/* Log-probabilities of one token, with alternatives, into the delta. */
void nib_delta_logprob(struct nib_delta *delta, const struct nib_answer *answer, const struct nib_sampled *sampled);

/* Sends or keeps what the delta holds, and empties it. */
void nib_answer_flush(struct nib_answer *answer, struct nib_delta *delta);

/* A tool call begins, goes on, ends. */
void nib_answer_call_begin(struct nib_answer *answer, uint32_t index, struct nib_span name);
void nib_answer_call_text(struct nib_answer *answer, uint32_t index, struct nib_span text);
void nib_answer_call_end(struct nib_answer *answer);

/* The last events of a stream, or the pieces of a whole answer; finish_reason is set. */
void nib_answer_close(struct nib_answer *answer);

#endif
