/* appliance/listen.h: the daemon's own listening UNIX socket, when systemd passes none. Boot and
 * exit only. */
#ifndef NIB_APPLIANCE_LISTEN_H
#define NIB_APPLIANCE_LISTEN_H

#include "appliance/config.h"

/* Binds socket.path with socket.mode and socket.group. A socket file nobody listens on is removed
 * first. NIB_E_STATE: another process listens there. NIB_E_IO: the path is something else than a
 * socket, or the system refused; NIB_E_ARG: no such group. */
enum nib_err nib_listen_open(const struct nib_config *config, int *ret_fd, struct nib_msg *msg) NIB_CHECKED;

/* Removes the socket's file; libmicrohttpd closed the socket. */
void nib_listen_close(const struct nib_config *config);

#endif
