/* core/harmony_text.h: the text of the system and developer messages, before it is encoded. Each puts the whole
 * content of the message, without header or special tokens. Any thread. */
#ifndef NIB_CORE_HARMONY_TEXT_H
#define NIB_CORE_HARMONY_TEXT_H

#include "core/harmony.h"
#include "core/harmony_out.h"

/* `has_functions`: the conversation has function tools, so say where their calls go. */
void nib_harmony_put_system(struct nib_out *out, const struct nib_harmony_system *system, bool has_functions);

/* NIB_E_LIMIT: a schema nested too deeply. */
NIB_CHECKED enum nib_err nib_harmony_put_developer(struct nib_out *out, const struct nib_harmony_developer *developer,
                                                   struct nib_msg *msg);

#endif
