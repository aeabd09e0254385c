/* appliance/listen.c: owns the socket file while the daemon runs. Limits: a backlog of
 * NIB_LISTEN_BACKLOG. Boot thread. Fails with a sentence that names the path. */
#include "appliance/listen.h"

#include <errno.h>
#include <grp.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define NIB_LISTEN_BACKLOG 128 /* connections the kernel holds before accept */

static void address(const char *path, struct sockaddr_un *ret_addr)
{
    memset(ret_addr, 0, sizeof *ret_addr);
    ret_addr->sun_family = AF_UNIX;
    size_t n = strlen(path);
    NIB_MUST(n < sizeof ret_addr->sun_path); /* the range of socket.path */
    memcpy(ret_addr->sun_path, path, n);
}

/* Removes a socket file that no process listens on. */
static enum nib_err clear_stale(const char *path, struct nib_msg *msg)
{
    struct stat st;
    if (lstat(path, &st) != 0)
        return errno == ENOENT ? NIB_OK : nib_fail(msg, NIB_E_IO, "%s: %s", path, strerror(errno));
    if (!S_ISSOCK(st.st_mode))
        return nib_fail(msg, NIB_E_IO, "%s exists and is not a socket; it is left alone", path);
    struct sockaddr_un addr;
    address(path, &addr);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return nib_fail(msg, NIB_E_IO, "socket: %s", strerror(errno));
    int rc = connect(fd, (const struct sockaddr *)&addr, sizeof addr);
    int error = rc == 0 ? 0 : errno;
    (void)close(fd);
    if (error != ECONNREFUSED)
        return nib_fail(msg, NIB_E_STATE, "%s: another process listens there", path);
    if (unlink(path) != 0)
        return nib_fail(msg, NIB_E_IO, "%s: cannot remove the stale socket: %s", path, strerror(errno));
    return NIB_OK;
}

static enum nib_err set_group(const struct nib_config *config, struct nib_msg *msg)
{
    if (config->socket_group[0] == '\0')
        return NIB_OK;
    const struct group *g = getgrnam(config->socket_group);
    if (!g)
        return nib_fail(msg, NIB_E_ARG, "socket.group: this machine has no group \"%s\"", config->socket_group);
    if (chown(config->socket_path, (uid_t)-1, g->gr_gid) != 0)
        return nib_fail(msg, NIB_E_IO, "%s: cannot set the group: %s", config->socket_path, strerror(errno));
    return NIB_OK;
}

static enum nib_err bind_listen(const struct nib_config *config, int fd, struct nib_msg *msg)
{
    struct sockaddr_un addr;
    address(config->socket_path, &addr);
    mode_t old = umask(0777); /* nobody connects before mode and group are right */
    int rc = bind(fd, (const struct sockaddr *)&addr, sizeof addr);
    int error = errno;
    (void)umask(old);
    if (rc != 0)
        return nib_fail(msg, NIB_E_IO, "%s: cannot bind: %s", config->socket_path, strerror(error));
    enum nib_err err = set_group(config, msg);
    if (!err && chmod(config->socket_path, (mode_t)config->socket_mode) != 0)
        err = nib_fail(msg, NIB_E_IO, "%s: cannot set the mode: %s", config->socket_path, strerror(errno));
    if (!err && listen(fd, NIB_LISTEN_BACKLOG) != 0)
        err = nib_fail(msg, NIB_E_IO, "%s: cannot listen: %s", config->socket_path, strerror(errno));
    if (err)
        (void)unlink(config->socket_path);
    return err;
}

enum nib_err nib_listen_open(const struct nib_config *config, int *ret_fd, struct nib_msg *msg)
{
    enum nib_err err = clear_stale(config->socket_path, msg);
    if (err)
        return err;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return nib_fail(msg, NIB_E_IO, "socket: %s", strerror(errno));
    err = bind_listen(config, fd, msg);
    if (err)
        (void)close(fd);
    else
        *ret_fd = fd;
    return err;
}

void nib_listen_close(const struct nib_config *config)
{
    (void)unlink(config->socket_path);
}
