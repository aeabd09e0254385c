/* appliance/chat_in.h: a chat request's messages and tools, to harmony's structs. Front thread. */
#ifndef NIB_APPLIANCE_CHAT_IN_H
#define NIB_APPLIANCE_CHAT_IN_H

#include "appliance/fields.h"
#include "core/harmony.h"

struct nib_chat {
    struct nib_harmony_developer developer;
    bool has_developer;
    struct nib_harmony_message *messages; /* in the JSON pool */
    size_t messages_count;
    size_t messages_max;
    const json_t *calls; /* of the latest assistant message that has some; NULL: none */
};

/* Decodes "messages", "tools" and "tool_choice". Everything borrowed lives as long as the tree. */
bool nib_chat_decode(const json_t *root, struct nib_chat *ret_chat, struct nib_refusal *ret_refusal) NIB_CHECKED;

#endif
