/* core/toolschema.c: owns the walk from a JSON schema to TypeScript text.
 *
 * The walk keeps its own stack of NIB_MAX_JSON_DEPTH frames, so that hostile nesting is an error and not a crash. Any
 * thread. Fails only on nesting; a schema that makes no sense is `any`, as in openai-harmony. */
#include "core/toolschema.h"

#define PROPERTY_INDENT 4
#define VARIANT_INDENT  3

enum frame_kind {
    FRAME_OBJECT,   /* { properties } */
    FRAME_PROPERTY, /* a property that is a oneOf: a line a variant, then a comma */
    FRAME_ONEOF,    /* oneOf anywhere else */
    FRAME_ARRAY     /* items, then [] */
};

struct frame {
    enum frame_kind kind;
    const json_t *node; /* the schema this frame prints */
    void *iter;         /* OBJECT: the next property */
    const json_t *child;
    size_t index;  /* ONEOF, PROPERTY: the next variant */
    size_t start;  /* where the text of the child under way begins */
    size_t indent; /* spaces */
    bool waiting;  /* a child is under way */
};

struct walk {
    struct nib_out *out;
    struct frame frames[NIB_MAX_JSON_DEPTH];
    size_t depth;
    struct nib_msg *msg;
};

static bool is_enum(const json_t *schema)
{
    return json_array_size(json_object_get(schema, "enum")) > 0;
}

static const json_t *one_of(const json_t *schema)
{
    const json_t *variants = json_object_get(schema, "oneOf");
    return json_is_array(variants) ? variants : NULL;
}

static struct nib_span text_of(const json_t *schema, const char *key)
{
    return nib_json_text(json_object_get(schema, key));
}

static void put_comment_line(struct walk *w, size_t indent, struct nib_span text)
{
    nib_out_spaces(w->out, indent);
    nib_out_lit(w->out, "// ");
    nib_out_put(w->out, text);
    nib_out_lit(w->out, "\n");
}

/* "default: x": strings in plain quotes, those of an enum bare, or as JSON when json_enum asks for it. */
static enum nib_err put_default(struct walk *w, const json_t *schema, bool json_enum)
{
    const json_t *value = json_object_get(schema, "default");
    nib_out_lit(w->out, "default: ");
    if (!json_is_string(value) || (json_enum && is_enum(schema)))
        return nib_out_json(w->out, value, w->msg);
    bool quoted = !is_enum(schema);
    if (quoted)
        nib_out_lit(w->out, "\"");
    nib_out_put(w->out, nib_json_text(value));
    if (quoted)
        nib_out_lit(w->out, "\"");
    return NIB_OK;
}

static void put_nullable(struct walk *w, const json_t *schema, size_t from)
{
    if (json_is_true(json_object_get(schema, "nullable")) && !nib_out_contains(w->out, from, NIB_SPAN("null")))
        nib_out_lit(w->out, " | null");
}

/* "string | number" of a `type` that is an array; false when it names no type. */
static bool put_type_list(struct walk *w, const json_t *types)
{
    bool any = false;
    for (size_t i = 0; i < json_array_size(types); i++) {
        struct nib_span name = nib_json_text(json_array_get(types, i));
        if (!name.ptr)
            continue;
        if (any)
            nib_out_lit(w->out, " | ");
        nib_out_put(w->out, nib_span_eq(name, NIB_SPAN("integer")) ? NIB_SPAN("number") : name);
        any = true;
    }
    return any;
}

static void put_string_type(struct walk *w, const json_t *schema)
{
    const json_t *values = json_object_get(schema, "enum");
    bool any = false;
    for (size_t i = 0; i < json_array_size(values); i++) {
        struct nib_span value = nib_json_text(json_array_get(values, i));
        if (!value.ptr)
            continue;
        nib_out_put(w->out, any ? NIB_SPAN(" | \"") : NIB_SPAN("\""));
        nib_out_put(w->out, value);
        nib_out_lit(w->out, "\"");
        any = true;
    }
    if (!any)
        nib_out_lit(w->out, "string");
}

static enum nib_err push(struct walk *w, enum frame_kind kind, const json_t *node, size_t indent)
{
    if (w->depth == NIB_MAX_JSON_DEPTH)
        return nib_fail(w->msg, NIB_E_LIMIT, "a tool's schema nests deeper than the %d levels allowed",
                        NIB_MAX_JSON_DEPTH);
    w->frames[w->depth++] = (struct frame){.kind = kind, .node = node, .indent = indent};
    return NIB_OK;
}

/* Prints a type that has no inner types, or pushes the frame that prints the rest. */
static enum nib_err enter(struct walk *w, const json_t *schema, size_t indent)
{
    if (one_of(schema))
        return push(w, FRAME_ONEOF, schema, indent);
    const json_t *type = json_object_get(schema, "type");
    if (json_is_array(type) && put_type_list(w, type))
        return NIB_OK;
    struct nib_span name = nib_json_text(type);
    if (nib_span_eq(name, NIB_SPAN("object"))) {
        struct nib_span about = text_of(schema, "description");
        if (about.ptr)
            put_comment_line(w, indent, about);
        nib_out_lit(w->out, "{\n");
        size_t required = json_array_size(json_object_get(schema, "required"));
        if (required > NIB_MAX_SCHEMA_REQUIRED)
            return nib_fail(w->msg, NIB_E_LIMIT, "a tool's schema requires %zu properties; at most %d are allowed",
                            required, NIB_MAX_SCHEMA_REQUIRED);
        enum nib_err err = push(w, FRAME_OBJECT, schema, indent);
        const json_t *properties = json_object_get(schema, "properties");
        if (err == NIB_OK && json_is_object(properties))
            w->frames[w->depth - 1].iter = nib_json_first(properties);
        return err;
    }
    const json_t *items = json_object_get(schema, "items");
    if (nib_span_eq(name, NIB_SPAN("array")) && items)
        return push(w, FRAME_ARRAY, schema, indent);
    if (nib_span_eq(name, NIB_SPAN("string")))
        put_string_type(w, schema);
    else if (nib_span_eq(name, NIB_SPAN("number")) || nib_span_eq(name, NIB_SPAN("integer")))
        nib_out_lit(w->out, "number");
    else if (nib_span_eq(name, NIB_SPAN("boolean")))
        nib_out_lit(w->out, "boolean");
    else if (nib_span_eq(name, NIB_SPAN("array")))
        nib_out_lit(w->out, "Array<any>");
    else
        nib_out_lit(w->out, "any");
    return NIB_OK;
}

static enum nib_err enter_child(struct walk *w, struct frame *top, const json_t *child, size_t indent)
{
    top->child = child;
    top->start = w->out->len;
    top->waiting = true;
    return enter(w, child, indent);
}

static bool is_required(const json_t *schema, struct nib_span key)
{
    const json_t *names = json_object_get(schema, "required");
    for (size_t i = 0; i < json_array_size(names); i++) {
        const json_t *name = json_array_get(names, i);
        if (json_is_string(name) && nib_span_eq(nib_json_text(name), key))
            return true;
    }
    return false;
}

/* The comments above a property, as far as a plain property and a oneOf share them. */
static void put_property_comments(struct walk *w, const json_t *schema, size_t indent)
{
    struct nib_span title = text_of(schema, "title");
    if (title.ptr) {
        put_comment_line(w, indent, title);
        nib_out_spaces(w->out, indent);
        nib_out_lit(w->out, "//\n");
    }
    struct nib_span about = text_of(schema, "description");
    if (about.ptr && !json_object_get(schema, "oneOf"))
        put_comment_line(w, indent, about);
    const json_t *examples = json_object_get(schema, "examples");
    if (json_array_size(examples) > 0)
        put_comment_line(w, indent, NIB_SPAN("Examples:"));
    for (size_t i = 0; i < json_array_size(examples); i++) {
        struct nib_span example = nib_json_text(json_array_get(examples, i));
        if (!example.ptr)
            continue;
        nib_out_spaces(w->out, indent);
        nib_out_lit(w->out, "// - \"");
        nib_out_put(w->out, example);
        nib_out_lit(w->out, "\"\n");
    }
}

/* A description that only repeats the first variant's is not printed above the property. */
static bool described_above(const json_t *schema)
{
    const json_t *about = json_object_get(schema, "description");
    const json_t *first = json_object_get(json_array_get(one_of(schema), 0), "description");
    return json_is_string(about) && !(json_is_string(first) && json_equal(about, first));
}

static enum nib_err step_object(struct walk *w, struct frame *top)
{
    enum nib_err err = NIB_OK;
    if (top->waiting) {
        put_nullable(w, top->child, top->start);
        nib_out_lit(w->out, ",");
        if (!json_object_get(top->child, "oneOf") && json_object_get(top->child, "default")) {
            nib_out_lit(w->out, " // ");
            err = put_default(w, top->child, false);
        }
        nib_out_lit(w->out, "\n");
    }
    top->waiting = false;
    if (err != NIB_OK)
        return err;
    if (!top->iter) {
        nib_out_spaces(w->out, top->indent);
        nib_out_lit(w->out, "}");
        w->depth--;
        return NIB_OK;
    }
    struct nib_span key = nib_json_key(top->iter);
    const json_t *child = json_object_iter_value(top->iter);
    top->iter = nib_json_next(json_object_get(top->node, "properties"), top->iter);
    put_property_comments(w, child, top->indent);
    bool variants = one_of(child) != NULL;
    if (variants && described_above(child))
        put_comment_line(w, top->indent, text_of(child, "description"));
    if (variants && json_object_get(child, "default")) {
        nib_out_spaces(w->out, top->indent);
        nib_out_lit(w->out, "// ");
        err = put_default(w, child, false);
        nib_out_lit(w->out, "\n");
    }
    nib_out_spaces(w->out, top->indent);
    nib_out_put(w->out, key);
    if (!is_required(top->node, key))
        nib_out_lit(w->out, "?");
    nib_out_put(w->out, variants ? NIB_SPAN(":\n") : NIB_SPAN(": "));
    if (err != NIB_OK)
        return err;
    if (variants)
        return push(w, FRAME_PROPERTY, child, top->indent);
    return enter_child(w, top, child, top->indent + PROPERTY_INDENT);
}

/* What follows a variant's type on its line. */
static enum nib_err put_variant_comment(struct walk *w, const struct frame *top, bool about)
{
    bool property = top->kind == FRAME_PROPERTY;
    bool has_default = json_object_get(top->child, "default") != NULL;
    if (!about && !has_default)
        return NIB_OK;
    nib_out_lit(w->out, " // ");
    if (about)
        nib_out_put(w->out, text_of(top->child, "description"));
    if (about && has_default)
        nib_out_lit(w->out, " ");
    return has_default ? put_default(w, top->child, !property) : NIB_OK;
}

static enum nib_err step_variants(struct walk *w, struct frame *top)
{
    bool property = top->kind == FRAME_PROPERTY;
    if (top->waiting) {
        put_nullable(w, top->child, top->start);
        const json_t *about = json_object_get(top->child, "description");
        bool show = json_is_string(about);
        if (property && top->index == 1 && described_above(top->node))
            show = false;
        if (property && show && json_equal(about, json_object_get(top->node, "description")))
            show = false;
        enum nib_err err = put_variant_comment(w, top, show);
        if (err != NIB_OK)
            return err;
        if (property)
            nib_out_lit(w->out, "\n");
    }
    top->waiting = false;
    const json_t *variant = json_array_get(one_of(top->node), top->index++);
    if (!variant) {
        if (property) {
            nib_out_spaces(w->out, top->indent);
            nib_out_lit(w->out, ",\n");
        }
        w->depth--;
        return NIB_OK;
    }
    if (!property)
        nib_out_lit(w->out, "\n");
    nib_out_spaces(w->out, top->indent);
    nib_out_lit(w->out, " | ");
    return enter_child(w, top, variant, top->indent + VARIANT_INDENT);
}

static enum nib_err step_array(struct walk *w, struct frame *top)
{
    if (!top->waiting)
        return enter_child(w, top, json_object_get(top->node, "items"), top->indent);
    nib_out_lit(w->out, "[]");
    w->depth--;
    return NIB_OK;
}

enum nib_err nib_toolschema_print(struct nib_out *out, const json_t *schema, struct nib_msg *msg)
{
    struct walk w = {.out = out, .msg = msg};
    enum nib_err err = enter(&w, schema, 0);
    while (err == NIB_OK && w.depth > 0) {
        struct frame *top = &w.frames[w.depth - 1];
        if (top->kind == FRAME_OBJECT)
            err = step_object(&w, top);
        else if (top->kind == FRAME_ARRAY)
            err = step_array(&w, top);
        else
            err = step_variants(&w, top);
    }
    return err;
}
