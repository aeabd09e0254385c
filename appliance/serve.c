/* appliance/serve.c: owns the front and the stepper of a process, and the order of their life. Main thread. Fails with
 * the sentence of the part that failed, and its exit code. */
#include "appliance/serve.h"

#include <signal.h>
#include <stdio.h>
#include <sysexits.h>
#include <unistd.h>

#include "appliance/listen.h"
#include "appliance/log.h"
#include "appliance/notify.h"
#include "appliance/plan_print.h"

static struct nib_stepper stepper;
static struct nib_front front;

int nib_serve_fail(const struct nib_msg *msg, int code)
{
    nib_log(NIB_LOG_ERR, "%s", msg->text);
    nib_notify_status(false, "failed: %s", msg->text);
    return code;
}

int nib_serve_plan(struct nib_boot *boot)
{
    struct nib_msg msg;
    boot->front = &front;
    enum nib_err err = nib_boot_plan(boot, &stepper, &msg);
    if (!err)
        nib_plan_print(stdout, &boot->machine.plan, &boot->machine.profile);
    nib_machine_close(&boot->machine);
    return err ? nib_serve_fail(&msg, nib_boot_exit_code(err)) : EX_OK;
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
static int end_stepper(struct nib_boot *boot, int code)
{
    struct nib_msg msg;
    if (!front.draining && (front.stuck || atomic_load(&stepper.state) == NIB_STATE_FAILED))
        nib_boot_again(boot);
    bool at_once = front.stuck || atomic_load(&stepper.state) == NIB_STATE_LOADING;
    if (!at_once && !nib_stepper_stop(&stepper)) {
        at_once = true;
        (void)nib_fail(&msg, NIB_E_DEVICE, "the engine did not end in %d ms: the GPU's driver does not return",
                       NIB_STOP_MS);
        code = nib_serve_fail(&msg, EX_SOFTWARE);
    } else if (!at_once) {
        at_once = nib_machine_lost(&boot->machine);
        if (code == EX_OK && atomic_load(&stepper.state) == NIB_STATE_FAILED) /* after the last answer */
            code = nib_serve_fail(&stepper.failure, EX_SOFTWARE);
    }
    if (at_once) {
        (void)fflush(NULL);
        _exit(code);
    }
    return code;
}

int nib_serve(struct nib_boot *boot)
{
    struct nib_msg msg;
    block_signals();
    int fd = -1;
    if (nib_notify_listen_fd(&fd, &msg) != NIB_OK)
        return nib_serve_fail(&msg, EX_CONFIG);
    bool own = fd < 0;
    if (own) {
        enum nib_err err = nib_listen_open(boot->config, &fd, &msg);
        if (err)
            return nib_serve_fail(&msg, err == NIB_E_ARG ? EX_CONFIG : EX_OSERR);
    }
    front.config = boot->config;
    boot->front = &front;
    boot->passed_fd = own ? -1 : fd;
    front.stepper = &stepper;
    front.listen_fd = fd;
    front.passed = !own;
    stepper.boot = nib_boot_run;
    stepper.boot_arg = boot;
    stepper.idle_ms_max = (nib_notify_watchdog_ms() + 1) / 2; /* an idle turn before each ping */
    int code = EX_OSERR;
    if (nib_stepper_start(&stepper, &msg) != NIB_OK) {
        (void)nib_serve_fail(&msg, code);
    } else {
        code = nib_front_run(&front);
        if (own)
            nib_listen_close(boot->config);
        return end_stepper(boot, code);
    }
    if (own)
        nib_listen_close(boot->config);
    return code;
}
