/* core/toolschema.h: a JSON schema as the TypeScript type that gpt-oss was trained to read.
 *
 * The text is openai-harmony's (0.0.8), byte for byte, also where that is odd: only `type`, `properties`, `required`,
 * `items`, `enum` (of strings), `oneOf`, `nullable`, `title`, `description`, `examples` and `default` are looked at;
 * whatever else a schema says (`anyOf`, `$ref`, `allOf`, `const`) is `any`. */
#ifndef NIB_CORE_TOOLSCHEMA_H
#define NIB_CORE_TOOLSCHEMA_H

#include "core/harmony_out.h"

/* Puts the type of `schema`. NIB_E_LIMIT: nested deeper than NIB_MAX_JSON_DEPTH; the text put so far is then rubbish.
 * Any thread. */
NIB_CHECKED enum nib_err nib_toolschema_print(struct nib_out *out, const json_t *schema, struct nib_msg *msg);

#endif
