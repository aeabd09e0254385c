/* tools/chat_tools.c: owns nothing. Limits: the zones listed here, without summer time. One thread. Fails with a
 * sentence on what it does not know, and with the daemon's own. */
#include "tools/chat_tools.h"

#include <string.h>
#include <time.h>

#include "tools/client.h"

json_t *nib_chat_tools(void)
{
    return json_pack("[{s:s, s:{s:s, s:s}}, {s:s, s:{s:s, s:s, s:{s:s, s:{s:{s:s}}, s:[s]}}}]", "type", "function",
                     "function", "name", "get_status", "description", "Status of the daemon.", "type", "function",
                     "function", "name", "get_time", "description", "The current time.", "parameters", "type", "object",
                     "properties", "zone", "type", "string", "required", "zone");
}

static enum nib_err status_result(const char *socket, char **ret_result, struct nib_msg *msg)
{
    json_t *health;
    enum nib_err err = nib_client_get(socket, "/health", &health, msg);
    if (err)
        return err;
    *ret_result = json_dumps(health, JSON_COMPACT);
    json_decref(health);
    return NIB_OK;
}

static enum nib_err time_result(const char *arguments, char **ret_result, struct nib_msg *msg)
{
    static const struct {
        const char *name;
        int minutes; /* east of UTC */
    } zones[] = {{"UTC", 0},   {"GMT", 0},   {"CET", 60},   {"MSK", 180},
                 {"IST", 330}, {"JST", 540}, {"EST", -300}, {"PST", -480}};
    json_t *given = json_loads(arguments, 0, NULL);
    const char *zone = json_string_value(json_object_get(given, "zone"));
    enum nib_err err = nib_fail(msg, NIB_E_ARG, "get_time knows UTC, GMT, CET, MSK, IST, JST, EST and PST only");
    for (size_t i = 0; zone && i < sizeof zones / sizeof zones[0]; i++) {
        if (strcmp(zone, zones[i].name) != 0)
            continue;
        time_t now = time(NULL) + 60L * zones[i].minutes;
        struct tm tm;
        char date[16], clock[8];
        (void)gmtime_r(&now, &tm);
        (void)strftime(date, sizeof date, "%Y-%m-%d", &tm);
        (void)strftime(clock, sizeof clock, "%H:%M", &tm);
        json_t *result = json_pack("{s:s, s:s, s:s}", "zone", zone, "date", date, "time", clock);
        *ret_result = json_dumps(result, 0);
        json_decref(result);
        err = NIB_OK;
    }
    json_decref(given);
    return err;
}

enum nib_err nib_chat_tool_run(const char *socket, const char *name, const char *arguments, char **ret_result,
                               struct nib_msg *msg)
{
    if (strcmp(name, "get_status") == 0)
        return status_result(socket, ret_result, msg);
    if (strcmp(name, "get_time") == 0)
        return time_result(arguments, ret_result, msg);
    return nib_fail(msg, NIB_E_ARG, "the model called a function that is not there");
}
