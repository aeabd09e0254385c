/* core/generation.h: the generation defaults that an image carries as its `generation` tensor.
 *
 * The text is canonical, so that the same defaults give the same bytes:
 *
 *     {"bos_token_id":199998,"do_sample":true,"eos_token_id":[200002,199999,200012],
 *      "pad_token_id":199999,"temperature":1,"top_p":1}        (one line, no spaces)
 *
 * The ids that end an answer always include <|return|>, <|endoftext|> and <|call|>, in that order,
 * before any others: checkpoints converted before autumn 2025 lack <|call|>, which makes tool calls
 * run on. The parser takes heap while it runs (jansson), so it is for boot and tools. One thread.
 */
#ifndef NIB_CORE_GENERATION_H
#define NIB_CORE_GENERATION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/err.h"
#include "core/limits.h"
#include "core/model.h"

struct nib_generation {
    uint32_t eos[NIB_MAX_STOP_TOKENS]; /* [eos_count], no id twice */
    uint32_t eos_count;
    uint32_t bos;
    uint32_t pad;
    bool do_sample;
    double temperature; /* 0..2 */
    double top_p;       /* more than 0, at most 1 */
};

/* What gpt-oss recommends: the three eos ids, sampling at temperature 1 and top_p 1. */
void nib_generation_default(const struct nib_shape *shape, struct nib_generation *ret);

/* Reads generation_config.json or the text above. A member that is absent keeps its default;
 * members it does not know are passed over; a known one of the wrong kind or range, or an id that
 * the shape does not have, is NIB_E_FORMAT. The three eos ids are added when they are missing:
 * *ret_added (or NULL) says how many were, of those a given eos_token_id should have had. `label`
 * names the file in messages. */
enum nib_err nib_generation_parse(const char *text, size_t bytes, const char *label, const struct nib_shape *shape,
                                  struct nib_generation *ret, uint32_t *ret_added, struct nib_msg *msg) NIB_CHECKED;

/* Writes the canonical text with a NUL; returns its bytes without it. 512 bytes always suffice. */
#define NIB_GENERATION_TEXT_BYTES 512
size_t nib_generation_print(const struct nib_generation *generation, char out[NIB_GENERATION_TEXT_BYTES]);

#endif
