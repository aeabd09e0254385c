/* appliance/answer.h: from sampled tokens to the text of one response.
 *
 * A chat answer goes through harmony's parser, a completion through the UTF-8 decoder; stop strings
 * are found on the way. Streamed, the text becomes server-sent events in a ring of the job's
 * buffer; else it is kept as ready JSON text, by section, until the end. Fixed buffers, no
 * allocation. Front thread. */
#ifndef NIB_APPLIANCE_ANSWER_H
#define NIB_APPLIANCE_ANSWER_H

#include "appliance/fields.h"
#include "appliance/job.h"
#include "core/harmony_parse.h"
#include "core/tokenizer.h"
#include "core/utf8.h"

/* Parts of a response that is not streamed. Completions use TOKENS..OFFSETS for their log-probs. */
enum nib_section {
    NIB_SEC_CONTENT,
    NIB_SEC_REASONING,
    NIB_SEC_CALLS,
    NIB_SEC_LOGPROBS, /* chat: the list's objects; completions: tokens */
    NIB_SEC_LOGPROBS_VALUES,
    NIB_SEC_LOGPROBS_TOPS,
    NIB_SEC_LOGPROBS_OFFSETS,
    NIB_SEC_COUNT
};

#define NIB_ANSWER_PIECES      24
#define NIB_ANSWER_FRAME_BYTES 2048 /* fixed text around the sections */
#define NIB_ANSWER_RESERVE     4096 /* of a whole answer's buffer, kept for its end */

/* A response is a list of pieces: fixed text in `frame`, or a whole section. */
struct nib_piece {
    bool is_section;
    uint32_t at;  /* in frame, or the section */
    uint64_t len; /* bytes */
};

struct nib_answer {
    /* given */
    const struct nib_tokenizer *tokenizer;
    char *buf; /* [buf_bytes] */
    size_t buf_bytes;
    bool chat, stream, logprobs;
    bool usage, continuous_usage; /* streamed: told at the end; in every event, too */
    uint32_t top_logprobs;
    const char *model;
    uint64_t id, created;
    uint32_t prompt_tokens;
    uint32_t cached_tokens; /* of them, computed before the request came; set with the first token */
    struct nib_stop stop;

    /* state */
    struct nib_harmony_parser parser;
    struct nib_utf8_stream utf8;
    uint32_t answer_tokens, reasoning_tokens;
    bool in_reasoning, in_content; /* kind of the open message */
    bool begun;                    /* streamed: the role was sent */
    bool closing;                  /* the end is being written: it may use the reserve */
    bool finished;                 /* nothing more is taken */
    bool stop_hit;                 /* a stop string was found */
    bool turn_over;                /* the parser saw the end of the turn before the engine did */
    bool overflow;                 /* the buffer is full */
    const char *finish_reason;
    uint64_t text_chars; /* completions: text so far, for text_offset */

    /* streamed: a ring of bytes */
    uint64_t head, tail; /* ever written, ever read */

    /* not streamed: records {section, len, bytes} and, at the end, the pieces */
    size_t log_used;
    size_t last_record; /* SIZE_MAX: none */
    uint64_t section_bytes[NIB_SEC_COUNT];
    char frame[NIB_ANSWER_FRAME_BYTES];
    size_t frame_used;
    struct nib_piece pieces[NIB_ANSWER_PIECES];
    uint32_t pieces_count;
    uint64_t total_bytes;
    /* where the reader stands */
    uint32_t read_piece;
    uint64_t read_in_piece;
    size_t read_record;
    size_t read_in_record;
};

struct nib_answer_spec {
    const struct nib_tokenizer *tokenizer;
    char *buf;
    size_t buf_bytes;
    bool chat;
    const struct nib_params *params;
    const char *model;
    uint64_t id, created;
    uint32_t prompt_tokens;
};

void nib_answer_init(struct nib_answer *answer, const struct nib_answer_spec *spec);

/* Takes one sampled token (the end token too). Afterwards look at stop_hit, turn_over and overflow:
 * each means that the job should be cancelled; the first two then end with nib_answer_end. */
void nib_answer_token(struct nib_answer *answer, const struct nib_sampled *sampled);

/* The end: length (cut) or not. Closes what is open; streamed: the last events and [DONE]; else the
 * pieces. */
void nib_answer_end(struct nib_answer *answer, bool cut);

/* Streamed only: an error object and the end of the stream. */
void nib_answer_fail(struct nib_answer *answer, const char *code, const char *message);

/* Bytes that wait in the ring. */
static inline uint64_t nib_answer_waiting(const struct nib_answer *answer)
{
    return answer->head - answer->tail;
}

/* Moves up to max bytes of the response to `to`; returns their number. */
size_t nib_answer_read(struct nib_answer *answer, char *to, size_t max);

/* Whether records with `len` more bytes fit; if not, sets overflow. */
bool nib_answer_fits(struct nib_answer *answer, size_t len);

/* Appends raw JSON text to a section, or sets overflow. */
void nib_answer_keep(struct nib_answer *answer, enum nib_section section, const char *text, size_t len);

/* Appends bytes to the ring, all or none (then overflow). */
void nib_answer_send(struct nib_answer *answer, const char *text, size_t len);

#endif
