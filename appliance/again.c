/* appliance/again.c: owns nothing. Limits: NIB_MAX_ARCH_ROWS rows. Any thread. What the system refuses is logged. */
#include "appliance/again.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "appliance/log.h"

#define ENVIRONMENT_MAX 512

bool nib_again_parse(char *argument, struct nib_struck *ret)
{
    char *why = strchr(argument, '=');
    if (!why)
        return false;
    *why++ = '\0';
    const struct nib_arch_row *row = nib_arch_find(argument);
    if (!row)
        return false;
    ret->row = row->name;
    (void)nib_fail(&ret->why, NIB_OK, "%s", why);
    return true;
}

/* What systemd said of its socket at the first start was taken out of the environment then. */
static char **environment(int passed_fd)
{
    static char pid[32], *list[ENVIRONMENT_MAX + 3], fds[] = "LISTEN_FDS=1";
    size_t n = 0;
    for (char **e = environ; *e && n < ENVIRONMENT_MAX; e++)
        list[n++] = *e;
    if (passed_fd >= 0) {
        (void)snprintf(pid, sizeof pid, "LISTEN_PID=%ld", (long)getpid());
        list[n++] = pid;
        list[n++] = fds;
    }
    list[n] = NULL;
    return list;
}

void nib_again(const char *config_path, int passed_fd, const struct nib_struck *struck, uint32_t count)
{
    static char name[] = "nibbled", config[] = "--config", option[] = "--struck", path[NIB_MAX_PATH_BYTES];
    static char text[NIB_MAX_ARCH_ROWS][NIB_MAX_MSG_BYTES + 32];
    char *argv[4 + 2 * NIB_MAX_ARCH_ROWS] = {name, config, path};
    int n = 3;
    (void)snprintf(path, sizeof path, "%s", config_path);
    for (uint32_t i = 0; i < count && i < NIB_MAX_ARCH_ROWS; i++) {
        (void)snprintf(text[i], sizeof text[i], "%s=%s", struck[i].row, struck[i].why.text);
        argv[n++] = option;
        argv[n++] = text[i];
    }
    if (passed_fd >= 0)
        (void)fcntl(passed_fd, F_SETFD, 0);
    (void)execve("/proc/self/exe", argv, environment(passed_fd));
    nib_log(NIB_LOG_ERR, "this program cannot be executed again: %s", strerror(errno));
}
