/* appliance/main.c: the daemon's command line and the order of its life. Main thread, which becomes
 * the front thread. Exit codes are sysexits: 0 stopped, 64 usage, 78 configuration, 66 image, 71
 * system, 70 engine. */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sysexits.h>
#include <unistd.h>

#include "appliance/again.h"
#include "appliance/boot.h"
#include "appliance/listen.h"
#include "appliance/log.h"
#include "appliance/notify.h"
#include "appliance/plan_print.h"

#define NIB_CONFIG_PATH NIB_SYSCONFDIR "/nibbled.yaml"

static struct nib_config config;
static struct nib_stepper stepper;
static struct nib_front front;
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

static int fail(const struct nib_msg *msg, int code)
{
    nib_log(NIB_LOG_ERR, "%s", msg->text);
    nib_notify_status(false, "failed: %s", msg->text);
    return code;
}

/* What boot would plan, from the configuration and the image's header alone. */
static int print_plan(void)
{
    struct nib_msg msg;
    boot.config = &config;
    boot.front = &front;
    enum nib_err err = nib_boot_plan(&boot, &stepper, &msg);
    if (!err)
        nib_plan_print(stdout, &boot.machine.plan, &boot.machine.profile);
    nib_machine_close(&boot.machine);
    return err ? fail(&msg, nib_boot_exit_code(err)) : EX_OK;
}

static void block_signals(void)
{
    sigset_t set;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGHUP);
    (void)sigprocmask(SIG_BLOCK, &set, NULL); /* read through a signalfd; threads inherit it */
    (void)signal(SIGPIPE, SIG_IGN);
}

/* After the front. A load cannot be interrupted, nor what is stuck in the driver: they end with the process, at once; and
 * the driver's own clean-up could wait for a GPU that never answers. */
static int end_stepper(int code)
{
    struct nib_msg msg;
    if (!front.draining && (front.stuck || atomic_load(&stepper.state) == NIB_STATE_FAILED))
        nib_boot_again(&boot);
    bool at_once = front.stuck || atomic_load(&stepper.state) == NIB_STATE_LOADING;
    if (!at_once && !nib_stepper_stop(&stepper)) {
        at_once = true;
        (void)nib_fail(&msg, NIB_E_DEVICE, "the engine did not end in %d ms: the GPU's driver does not return",
                       NIB_STOP_MS);
        code = fail(&msg, EX_SOFTWARE);
    } else if (!at_once) {
        at_once = nib_machine_lost(&boot.machine);
        if (code == EX_OK && atomic_load(&stepper.state) == NIB_STATE_FAILED) /* after the last answer */
            code = fail(&stepper.failure, EX_SOFTWARE);
    }
    if (at_once) {
        (void)fflush(NULL);
        _exit(code);
    }
    return code;
}

static int serve(void)
{
    struct nib_msg msg;
    block_signals();
    int fd = -1;
    if (nib_notify_listen_fd(&fd, &msg) != NIB_OK)
        return fail(&msg, EX_CONFIG);
    bool own = fd < 0;
    if (own) {
        enum nib_err err = nib_listen_open(&config, &fd, &msg);
        if (err)
            return fail(&msg, err == NIB_E_ARG ? EX_CONFIG : EX_OSERR);
    }
    boot.config = front.config = &config;
    boot.front = &front;
    boot.passed_fd = own ? -1 : fd;
    front.stepper = &stepper;
    front.listen_fd = fd;
    front.passed = !own;
    stepper.boot = nib_boot_run;
    stepper.boot_arg = &boot;
    stepper.idle_ms_max = (nib_notify_watchdog_ms() + 1) / 2; /* an idle turn before each ping */
    int code = EX_OSERR;
    if (nib_stepper_start(&stepper, &msg) != NIB_OK) {
        (void)fail(&msg, code);
    } else {
        code = nib_front_run(&front);
        if (own)
            nib_listen_close(&config);
        return end_stepper(code);
    }
    if (own)
        nib_listen_close(&config);
    return code;
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
        return fail(&msg, EX_CONFIG);
    boot.config_path = path;
    if (plan)
        return print_plan();
    return check ? EX_OK : serve();
}
