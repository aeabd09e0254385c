/* tools/hf_tokenizer.c: owns nothing; walks tokenizer.json in the caller's memory. Limits: those of
 * pack_bpe.h; no text inside is taken above MAX_TEXT bytes. One thread. Fails with one sentence
 * that names the file. */
#include "tools/hf_tokenizer.h"

#include <string.h>

#include "tools/jscan.h"
#include "tools/pack_bpe.h"

/* a token in the byte alphabet takes two bytes a byte, a merge has two tokens and a space */
#define MAX_TEXT (4u * NIB_MAX_TOKEN_BYTES + 2u)

struct walk {
    struct nib_bpe bpe;
    struct nib_jscan merges; /* at the value of model.merges, once seen */
    bool has_model, has_vocab, has_merges, has_added;
    struct nib_msg *msg;
};

static enum nib_err bad(const struct walk *w, const char *what)
{
    return nib_fail(w->msg, NIB_E_FORMAT, "%s: %s", w->bpe.label, what);
}

static enum nib_err walk_vocab(struct walk *w, struct nib_jscan *scan)
{
    char text[MAX_TEXT];
    size_t bytes;
    uint64_t id;
    if (nib_jscan_next(scan) != NIB_J_OBJECT)
        return bad(w, "model.vocab must be an object");
    for (;;) {
        enum nib_jevent event = nib_jscan_next(scan);
        if (event == NIB_J_OBJECT_END)
            return NIB_OK;
        if (event != NIB_J_KEY || !nib_jscan_text(scan, text, sizeof text, &bytes) ||
            nib_jscan_next(scan) != NIB_J_NUMBER || !nib_jscan_u64(scan, &id))
            return bad(w, "model.vocab must map tokens to whole numbers");
        enum nib_err err = nib_bpe_add(&w->bpe, text, bytes, id, w->msg);
        if (err)
            return err;
    }
}

/* A pair [left, right]: the opening bracket has been read. */
static bool read_pair(struct nib_jscan *scan, char left[MAX_TEXT], size_t *left_bytes, char right[MAX_TEXT],
                      size_t *right_bytes)
{
    return nib_jscan_next(scan) == NIB_J_STRING && nib_jscan_text(scan, left, MAX_TEXT, left_bytes) &&
           nib_jscan_next(scan) == NIB_J_STRING && nib_jscan_text(scan, right, MAX_TEXT, right_bytes) &&
           nib_jscan_next(scan) == NIB_J_ARRAY_END;
}

/* A string "left right" with one space: the byte alphabet has none. */
static bool read_joined(struct nib_jscan *scan, char left[MAX_TEXT], size_t *left_bytes, char right[MAX_TEXT],
                        size_t *right_bytes)
{
    size_t bytes;
    if (!nib_jscan_text(scan, left, MAX_TEXT, &bytes))
        return false;
    char *space = memchr(left, ' ', bytes);
    if (!space)
        return false;
    *left_bytes = (size_t)(space - left);
    *right_bytes = bytes - *left_bytes - 1;
    memcpy(right, space + 1, *right_bytes);
    return true;
}

static enum nib_err walk_merges(struct walk *w)
{
    struct nib_jscan *scan = &w->merges;
    char left[MAX_TEXT], right[MAX_TEXT];
    size_t left_bytes, right_bytes;
    if (nib_jscan_next(scan) != NIB_J_ARRAY)
        return bad(w, "model.merges must be an array");
    for (;;) {
        enum nib_jevent event = nib_jscan_next(scan);
        if (event == NIB_J_ARRAY_END)
            return NIB_OK;
        bool ok = event == NIB_J_STRING  ? read_joined(scan, left, &left_bytes, right, &right_bytes)
                  : event == NIB_J_ARRAY ? read_pair(scan, left, &left_bytes, right, &right_bytes)
                                         : false;
        if (!ok)
            return bad(w, "model.merges must hold \"left right\" strings or [left, right] pairs");
        enum nib_err err = nib_bpe_merge(&w->bpe, left, left_bytes, right, right_bytes, w->msg);
        if (err)
            return err;
    }
}

/* The object after "model". */
static enum nib_err walk_model(struct walk *w, struct nib_jscan *scan)
{
    if (w->has_model || nib_jscan_next(scan) != NIB_J_OBJECT)
        return bad(w, "model must be one object");
    w->has_model = true;
    for (;;) {
        enum nib_jevent event = nib_jscan_next(scan);
        if (event == NIB_J_OBJECT_END)
            return NIB_OK;
        if (event != NIB_J_KEY)
            return bad(w, "is not well-formed JSON");
        enum nib_err err = NIB_OK;
        if (nib_jscan_is(scan, "vocab")) {
            if (w->has_vocab)
                return bad(w, "model.vocab comes twice");
            w->has_vocab = true;
            err = walk_vocab(w, scan);
        } else if (nib_jscan_is(scan, "merges")) {
            if (w->has_merges)
                return bad(w, "model.merges comes twice");
            w->has_merges = true;
            w->merges = *scan;
            if (!nib_jscan_skip(scan, nib_jscan_next(scan)))
                return bad(w, "is not well-formed JSON");
        } else if (nib_jscan_is(scan, "type")) {
            if (nib_jscan_next(scan) != NIB_J_STRING || !nib_jscan_is(scan, "BPE"))
                return bad(w, "model.type must be BPE");
        } else if (!nib_jscan_skip(scan, nib_jscan_next(scan))) {
            return bad(w, "is not well-formed JSON");
        }
        if (err)
            return err;
    }
}

/* One object of added_tokens: the opening brace has been read. */
static enum nib_err walk_added_token(struct walk *w, struct nib_jscan *scan)
{
    char text[MAX_TEXT];
    size_t bytes = 0;
    uint64_t id = UINT64_MAX;
    for (;;) {
        enum nib_jevent event = nib_jscan_next(scan);
        if (event == NIB_J_OBJECT_END)
            break;
        if (event != NIB_J_KEY)
            return bad(w, "is not well-formed JSON");
        bool ok;
        if (nib_jscan_is(scan, "id"))
            ok = nib_jscan_next(scan) == NIB_J_NUMBER && nib_jscan_u64(scan, &id);
        else if (nib_jscan_is(scan, "content"))
            ok = nib_jscan_next(scan) == NIB_J_STRING && nib_jscan_text(scan, text, sizeof text, &bytes);
        else
            ok = nib_jscan_skip(scan, nib_jscan_next(scan));
        if (!ok)
            return bad(w, "each of added_tokens needs a whole number id and a short content");
    }
    if (bytes == 0 || id < w->bpe.shape->special_base)
        return bad(w, "each of added_tokens needs a content and an id among the special tokens");
    return nib_bpe_add(&w->bpe, text, bytes, id, w->msg);
}

static enum nib_err walk_added(struct walk *w, struct nib_jscan *scan)
{
    if (w->has_added || nib_jscan_next(scan) != NIB_J_ARRAY)
        return bad(w, "added_tokens must be one array");
    w->has_added = true;
    for (;;) {
        enum nib_jevent event = nib_jscan_next(scan);
        if (event == NIB_J_ARRAY_END)
            return NIB_OK;
        if (event != NIB_J_OBJECT)
            return bad(w, "added_tokens must hold objects");
        enum nib_err err = walk_added_token(w, scan);
        if (err)
            return err;
    }
}

static enum nib_err walk_file(struct walk *w, const char *json, size_t bytes)
{
    struct nib_jscan scan;
    nib_jscan_init(&scan, json, bytes);
    if (nib_jscan_next(&scan) != NIB_J_OBJECT)
        return bad(w, "is not a JSON object");
    for (;;) {
        enum nib_jevent event = nib_jscan_next(&scan);
        enum nib_err err = NIB_OK;
        if (event == NIB_J_OBJECT_END)
            break;
        if (event != NIB_J_KEY)
            return bad(w, "is not well-formed JSON");
        if (nib_jscan_is(&scan, "model"))
            err = walk_model(w, &scan);
        else if (nib_jscan_is(&scan, "added_tokens"))
            err = walk_added(w, &scan);
        else if (!nib_jscan_skip(&scan, nib_jscan_next(&scan)))
            err = bad(w, "is not well-formed JSON");
        if (err)
            return err;
    }
    if (nib_jscan_next(&scan) != NIB_J_DONE)
        return bad(w, "has text after its JSON object");
    if (!w->has_vocab || !w->has_merges || !w->has_added)
        return bad(w, "lacks one of model.vocab, model.merges and added_tokens");
    return walk_merges(w);
}

enum nib_err nib_hf_tokenizer_blob(const char *json, size_t bytes, const char *label, const struct nib_shape *shape,
                                   uint8_t **ret_blob, size_t *ret_bytes, struct nib_msg *msg)
{
    struct walk w = {.msg = msg};
    nib_bpe_init(&w.bpe, shape, label, bytes);
    enum nib_err err = walk_file(&w, json, bytes);
    if (!err)
        err = nib_bpe_blob(&w.bpe, ret_blob, ret_bytes, msg);
    nib_bpe_done(&w.bpe);
    return err;
}
