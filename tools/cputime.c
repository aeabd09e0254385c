/* tools/cputime.c: owns nothing. Limits: the threads of /proc. One thread. Fails where /proc has no such process. */
#include "tools/cputime.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* The first number of schedstat: nanoseconds on a processor. */
static bool thread_time(pid_t pid, const char *thread, double *ret_s)
{
    char path[96], text[96];
    (void)snprintf(path, sizeof path, "/proc/%d/task/%.32s/schedstat", (int)pid, thread);
    FILE *file = fopen(path, "r");
    if (!file)
        return false;
    const bool ok = fgets(text, sizeof text, file) != NULL;
    (void)fclose(file);
    if (ok)
        *ret_s = (double)strtoull(text, NULL, 10) * 1e-9;
    return ok;
}

bool nib_cputime_of(pid_t pid, struct nib_cputime *ret_time)
{
    char path[64];
    struct nib_cputime time = {0};
    (void)snprintf(path, sizeof path, "/proc/%d/task", (int)pid);
    DIR *threads = opendir(path);
    if (!threads)
        return false;
    for (const struct dirent *e; (e = readdir(threads));) {
        double s;
        if (e->d_name[0] == '.' || !thread_time(pid, e->d_name, &s))
            continue;
        time.all_s += s;
        if (strtol(e->d_name, NULL, 10) == (long)pid)
            time.main_s = s;
    }
    (void)closedir(threads);
    if (time.main_s > 0)
        *ret_time = time;
    return time.main_s > 0;
}

pid_t nib_cputime_listener(const char *path)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct ucred peer = {0};
    socklen_t bytes = sizeof peer;
    if (strlen(path) >= sizeof addr.sun_path)
        return 0;
    memcpy(addr.sun_path, path, strlen(path) + 1);
    const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return 0;
    if (connect(fd, (const struct sockaddr *)&addr, sizeof addr) != 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) != 0)
        peer.pid = 0;
    (void)close(fd);
    return peer.pid > 1 ? peer.pid : 0; /* 1: systemd, which opened the socket for its service */
}
