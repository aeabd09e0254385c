/* appliance/main.c: the daemon's command line. Main thread. Exit codes are sysexits: 0 stopped, 64 usage, 78 configuration,
 * 66 image, 71 system, 70 engine. */
#include <getopt.h>
#include <stdio.h>
#include <sysexits.h>

#include "appliance/again.h"
#include "appliance/boot.h"
#include "appliance/log.h"
#include "appliance/notify.h"
#include "appliance/serve.h"

#define NIB_CONFIG_PATH NIB_SYSCONFDIR "/nibbled.yaml"

static struct nib_config config;
static struct nib_boot boot;

static void print_help(void)
{
    (void)printf(
        "nibbled %s: serves a gpt-oss model image over a UNIX socket, OpenAI's API\n\n"
        "  --config FILE    configuration (default " NIB_CONFIG_PATH ")\n"
        "  --check          read the configuration, say what is wrong with it, and stop\n"
        "  --plan           print the memory plan that boot would carry out, and stop\n"
        "  --print-config   the documented configuration, every key at its default\n"
        "  --print-fields   the parameters of a request, with their ranges, as JSON\n"
        "  --struck ROW=WHY pass over a row of the capability table; what the daemon tells itself when it starts\n"
        "                   again after a self-test has stopped the GPU\n"
        "  --version        the version\n"
        "  --help           this text\n\n"
        "Stays in the foreground; systemd or a shell runs it. Logs to stderr.\n"
        "SIGTERM lets running requests finish, for at most time.drain_ms_max, and stops; a second one\n"
        "ends them at once.\n"
        "Exit codes: 0 stopped, 64 usage, 66 image, 70 engine, 71 system, 78 configuration.\n",
        NIB_VERSION);
}

static void print_fields(void)
{
    static char text[16384];
    struct nib_out out = nib_out_of(text, sizeof text);
    nib_fields_print(&out);
    (void)fwrite(text, 1, out.used, stdout);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'},
        {"check", no_argument, NULL, 'k'},
        {"plan", no_argument, NULL, 'P'},
        {"print-config", no_argument, NULL, 'p'},
        {"print-fields", no_argument, NULL, 'f'},
        {"version", no_argument, NULL, 'v'},
        {"help", no_argument, NULL, 'h'},
        {"struck", required_argument, NULL, 's'},
        {NULL, 0, NULL, 0},
    };
    const char *path = NIB_CONFIG_PATH;
    bool check = false, plan = false;
    for (int o; (o = getopt_long(argc, argv, "c:kvh", options, NULL)) != -1;) {
        switch (o) {
        case 'c':
            path = optarg;
            break;
        case 'k':
            check = true;
            break;
        case 'P':
            plan = true;
            break;
        case 'p':
            nib_config_print(stdout);
            return EX_OK;
        case 'f':
            print_fields();
            return EX_OK;
        case 's':
            if (boot.struck_count == NIB_MAX_ARCH_ROWS || !nib_again_parse(optarg, &boot.struck[boot.struck_count++]))
                return EX_USAGE;
            break;
        case 'v':
            (void)printf("nibbled %s\n", NIB_VERSION);
            return EX_OK;
        case 'h':
            print_help();
            return EX_OK;
        default:
            return EX_USAGE; /* getopt said why */
        }
    }
    nib_log_init();
    nib_notify_init();
    if (optind < argc) {
        nib_log(NIB_LOG_ERR, "unknown argument; see nibbled --help");
        return EX_USAGE;
    }
    struct nib_msg msg;
    if (nib_config_load(path, &config, &msg) != NIB_OK)
        return nib_serve_fail(&msg, EX_CONFIG);
    boot.config = &config;
    boot.config_path = path;
    if (plan)
        return nib_serve_plan(&boot);
    return check ? EX_OK : nib_serve(&boot);
}
