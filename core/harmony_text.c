/* core/harmony_text.c: owns the wording of the system and developer messages.
 *
 * The two built-in tools are fixed text: the models were trained on exactly these bytes. Any thread. Fails only on
 * the nesting of a schema. */
#include "core/harmony_text.h"

#include "core/toolschema.h"

static const char browser_text[] =
    "## browser\n\n"
    "// Tool for browsing.\n"
    "// The `cursor` appears in brackets before each browsing display: `[{cursor}]`.\n"
    "// Cite information from the tool using the following format:\n"
    "// `【{cursor}†L{line_start}(-L{line_end})?】`, for example: `【6†L9-L11】` or `【8†L3】`.\n"
    "// Do not quote more than 10 words directly from the tool output.\n"
    "// sources=web (default: web)\n"
    "namespace browser {\n\n"
    "// Searches for information related to `query` and displays `topn` results.\n"
    "type search = (_: {\n"
    "query: string,\n"
    "topn?: number, // default: 10\n"
    "source?: string,\n"
    "}) => any;\n\n"
    "// Opens the link `id` from the page indicated by `cursor` starting at line number `loc`, "
    "showing `num_lines` lines.\n"
    "// Valid link ids are displayed with the formatting: `【{id}†.*】`.\n"
    "// If `cursor` is not provided, the most recent page is implied.\n"
    "// If `id` is a string, it is treated as a fully qualified URL associated with `source`.\n"
    "// If `loc` is not provided, the viewport will be positioned at the beginning of the document "
    "or centered on the most relevant passage, if available.\n"
    "// Use this function without `id` to scroll to a new location of an opened page.\n"
    "type open = (_: {\n"
    "id?: number | string, // default: -1\n"
    "cursor?: number, // default: -1\n"
    "loc?: number, // default: -1\n"
    "num_lines?: number, // default: -1\n"
    "view_source?: boolean, // default: false\n"
    "source?: string,\n"
    "}) => any;\n\n"
    "// Finds exact matches of `pattern` in the current page, or the page given by `cursor`.\n"
    "type find = (_: {\n"
    "pattern: string,\n"
    "cursor?: number, // default: -1\n"
    "}) => any;\n\n"
    "} // namespace browser";

static const char python_text[] =
    "## python\n\n"
    "Use this tool to execute Python code in your chain of thought. The code will not be shown to "
    "the user. This tool should be used for internal reasoning, but not for code that is intended "
    "to be visible to the user (e.g. when creating plots, tables, or files).\n\n"
    "When you send a message containing Python code to python, it will be executed in a stateful "
    "Jupyter notebook environment. python will respond with the output of the execution or time "
    "out after 120.0 seconds. The drive at '/mnt/data' can be used to save and persist user files. "
    "Internet access for this session is UNKNOWN. Depends on the cluster.";

/* Between sections stands a blank line; a section may be empty. */
static void begin_section(struct nib_out *out, bool *any)
{
    if (*any)
        nib_out_lit(out, "\n\n");
    *any = true;
}

/* The first section, which has no heading: a line for each field that is not absent. False when all are. */
static bool put_top(struct nib_out *out, const struct nib_harmony_system *system)
{
    const struct {
        struct nib_span label;
        struct nib_span value;
    } lines[] = {{NIB_SPAN(""), system->identity},
                 {NIB_SPAN("Knowledge cutoff: "), system->cutoff},
                 {NIB_SPAN("Current date: "), system->date}};
    bool any = false;
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) {
        if (!lines[i].value.ptr)
            continue;
        if (any)
            nib_out_lit(out, "\n");
        nib_out_put(out, lines[i].label);
        nib_out_put(out, lines[i].value);
        any = true;
    }
    return any;
}

static void put_channels(struct nib_out *out, const struct nib_harmony_system *system, bool has_functions)
{
    nib_out_lit(out, "# Valid channels: ");
    for (size_t i = 0; i < system->channels_count; i++) {
        if (i > 0)
            nib_out_lit(out, ", ");
        nib_out_put(out, system->channels[i]);
    }
    nib_out_lit(out, ".");
    if (system->channel_required)
        nib_out_lit(out, " Channel must be included for every message.");
    if (has_functions)
        nib_out_lit(out, "\nCalls to these tools must go to the commentary channel: 'functions'.");
}

void nib_harmony_put_system(struct nib_out *out, const struct nib_harmony_system *system, bool has_functions)
{
    static const char *const efforts[] = {
        [NIB_EFFORT_LOW] = "low", [NIB_EFFORT_MEDIUM] = "medium", [NIB_EFFORT_HIGH] = "high"};
    bool any = put_top(out, system);
    if (system->effort != NIB_EFFORT_NONE) {
        const char *effort = efforts[system->effort];
        begin_section(out, &any);
        nib_out_lit(out, "Reasoning: ");
        nib_out_put(out, nib_span_of(effort, strlen(effort)));
    }
    if (system->browser || system->python) {
        begin_section(out, &any);
        nib_out_lit(out, "# Tools");
    }
    if (system->browser) {
        begin_section(out, &any);
        nib_out_put(out, nib_span_of(browser_text, sizeof browser_text - 1));
    }
    if (system->python) {
        begin_section(out, &any);
        nib_out_put(out, nib_span_of(python_text, sizeof python_text - 1));
    }
    if (system->channels_count > 0) {
        begin_section(out, &any);
        put_channels(out, system, has_functions);
    }
}

static enum nib_err put_tool(struct nib_out *out, const struct nib_harmony_tool *tool, struct nib_msg *msg)
{
    nib_out_lines(out, NIB_SPAN("// "), tool->description);
    nib_out_lit(out, "type ");
    nib_out_put(out, tool->name);
    if (!tool->parameters || json_is_null(tool->parameters)) {
        nib_out_lit(out, " = () => any;\n\n");
        return NIB_OK;
    }
    nib_out_lit(out, " = (_: ");
    enum nib_err err = nib_toolschema_print(out, tool->parameters, msg);
    nib_out_lit(out, ") => any;\n\n");
    return err;
}

static enum nib_err put_tools(struct nib_out *out, const struct nib_harmony_developer *developer, struct nib_msg *msg)
{
    nib_out_lit(out, "# Tools\n\n## functions\n\nnamespace functions {\n\n");
    for (size_t i = 0; i < developer->tools_count; i++) {
        enum nib_err err = put_tool(out, &developer->tools[i], msg);
        if (err != NIB_OK)
            return err;
    }
    nib_out_lit(out, "} // namespace functions");
    return NIB_OK;
}

static enum nib_err put_formats(struct nib_out *out, const struct nib_harmony_developer *developer, struct nib_msg *msg)
{
    nib_out_lit(out, "# Response Formats");
    for (size_t i = 0; i < developer->formats_count; i++) {
        const struct nib_harmony_format *format = &developer->formats[i];
        nib_out_lit(out, "\n\n## ");
        nib_out_put(out, format->name);
        nib_out_lit(out, "\n\n");
        nib_out_lines(out, NIB_SPAN("// "), format->description);
        enum nib_err err = nib_out_json(out, format->schema, msg);
        if (err != NIB_OK)
            return err;
    }
    return NIB_OK;
}

enum nib_err nib_harmony_put_developer(struct nib_out *out, const struct nib_harmony_developer *developer,
                                       struct nib_msg *msg)
{
    enum nib_err err = NIB_OK;
    bool any = false;
    if (developer->instructions.ptr) {
        begin_section(out, &any);
        nib_out_lit(out, "# Instructions\n\n");
        nib_out_put(out, developer->instructions);
    }
    if (developer->tools_count > 0) {
        begin_section(out, &any);
        err = put_tools(out, developer, msg);
    }
    if (err == NIB_OK && developer->formats_count > 0) {
        begin_section(out, &any);
        err = put_formats(out, developer, msg);
    }
    return err;
}
