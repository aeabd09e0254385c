/* appliance/json_in.h: a request body to a jansson tree, inside a fixed pool.
 *
 * jansson's allocator is set to a bump pool that lives in the plan; a tree is read at once by the
 * front thread and dropped as a whole, so nothing is ever freed singly. Depth is checked before
 * jansson sees the text. One tree at a time; front thread. */
#ifndef NIB_APPLIANCE_JSON_IN_H
#define NIB_APPLIANCE_JSON_IN_H

#include <jansson.h>
#include <stddef.h>

#include "core/err.h"

/* Gives jansson its pool and fixes its hash seed (which would otherwise open a file). Boot, once;
 * every later use of jansson in the process draws on the pool. */
void nib_json_pool_init(void *memory, size_t bytes);

/* Parses text[0..bytes). The tree is valid until the next parse. NIB_E_FORMAT: not JSON, not UTF-8,
 * or a key repeated; the sentence has line and column. NIB_E_LIMIT: nested deeper than
 * NIB_MAX_JSON_DEPTH. NIB_E_FULL: the pool is too small for it. */
enum nib_err nib_json_parse(const char *text, size_t bytes, json_t **ret_root, struct nib_msg *msg) NIB_CHECKED;

/* Memory that lives as long as the tree: for what is decoded from it. NULL when the pool is full.
 */
void *nib_json_take(size_t bytes);

/* Drops everything taken from the pool since nib_json_parse. */
void nib_json_reset(void);

/* Most bytes of the pool in use so far. */
size_t nib_json_pool_peak(void);

#endif
