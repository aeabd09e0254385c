/* appliance/again.h: the daemon begins anew in its own process when a row's self-test has stopped the GPU.
 *
 * After an illegal address or a kernel that does not end, the driver serves this process no more, and only its end frees the
 * GPU. So the program is executed again, under the same process id and with the same listening socket, and told by --struck
 * which rows to pass over. Any thread: the others end with it. */
#ifndef NIB_APPLIANCE_AGAIN_H
#define NIB_APPLIANCE_AGAIN_H

#include "appliance/machine.h"

/* "ROW=WHY", an argument of --struck, which must outlive *ret. False: no such row. */
bool nib_again_parse(char *argument, struct nib_struck *ret);

/* Executes this program again. passed_fd: the listening socket that systemd gave, or -1. Returns only if the system refuses. */
void nib_again(const char *config_path, int passed_fd, const struct nib_struck *struck, uint32_t count);

#endif
