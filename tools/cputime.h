/* tools/cputime.h: processor time of another process, from /proc. One thread. */
#ifndef NIB_TOOLS_CPUTIME_H
#define NIB_TOOLS_CPUTIME_H

#include <stdbool.h>
#include <sys/types.h>

struct nib_cputime {
    double main_s; /* of its first thread: nibbled's front */
    double all_s;  /* of all threads that live */
};

/* False, and nothing is set, when the system does not say. */
bool nib_cputime_of(pid_t pid, struct nib_cputime *ret_time);

/* The process that listens on a UNIX socket; 0: not known. */
pid_t nib_cputime_listener(const char *path);

#endif
