/* tools/chat_demo.c: owns the daemon's process, its folder, configuration and log while the demo runs.
 * Limits: READY_S for the boot. One thread. Fails with one sentence; the daemon's last words when it did not start. */
#include "tools/chat_demo.h"

#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tools/client.h"

#define READY_S    60 /* a 12 MB image is ready in well under a second */
#define IMAGE_FILE "demo.nib"

static const char *const files[] = {"nibbled.yaml", "nibbled.sock", "nibbled.log"};

static enum nib_err find_image(char image[NIB_MAX_PATH_BYTES], struct nib_msg *msg)
{
    static const char *const places[] = {"etc/demo/" IMAGE_FILE, NIB_DATADIR "/" IMAGE_FILE};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        char *path = realpath(places[i], NULL);
        size_t bytes = path ? strlen(path) : NIB_MAX_PATH_BYTES;
        if (bytes < NIB_MAX_PATH_BYTES)
            memcpy(image, path, bytes + 1);
        free(path);
        if (bytes < NIB_MAX_PATH_BYTES)
            return NIB_OK;
    }
    return nib_fail(msg, NIB_E_IO, "there is no %s or %s", places[0], places[1]);
}

static enum nib_err find_daemon(char path[NIB_MAX_PATH_BYTES + 8], struct nib_msg *msg)
{
    ssize_t bytes = readlink("/proc/self/exe", path, NIB_MAX_PATH_BYTES);
    char *slash = bytes > 0 ? memrchr(path, '/', (size_t)bytes) : NULL;
    if (!slash || bytes == NIB_MAX_PATH_BYTES)
        return nib_fail(msg, NIB_E_IO, "cannot tell where this program lies");
    memcpy(slash, "/nibbled", sizeof "/nibbled");
    if (access(path, X_OK) != 0)
        return nib_fail(msg, NIB_E_IO, "there is no %s", path);
    return NIB_OK;
}

static void in_folder(const struct nib_chat_demo *demo, const char *file, char ret_path[NIB_MAX_PATH_BYTES])
{
    (void)snprintf(ret_path, NIB_MAX_PATH_BYTES, "%s/%s", demo->folder, file);
}

static enum nib_err write_config(const struct nib_chat_demo *demo, const char *image, struct nib_msg *msg)
{
    char path[NIB_MAX_PATH_BYTES];
    in_folder(demo, files[0], path);
    FILE *file = fopen(path, "w");
    if (!file)
        return nib_fail(msg, NIB_E_IO, "%s: %s", path, strerror(errno));
    (void)fprintf(file,
                  "image:\n  path: %s\nengine:\n  ctx_tokens: 4096\n  slots: 2\nsocket:\n  path: %s\n  mode: 0600\n",
                  image, demo->socket);
    return fclose(file) == 0 ? NIB_OK : nib_fail(msg, NIB_E_IO, "%s: %s", path, strerror(errno));
}

/* The child: never returns. */
static void become_daemon(const char *program, const char *config, const char *log, pid_t parent)
{
    (void)prctl(PR_SET_PDEATHSIG, SIGTERM); /* it does not outlive a chat that was killed */
    (void)setpgid(0, 0);                    /* the chat's Ctrl-C is not for it */
    FILE *file = freopen(log, "w", stderr);
    if (file && getppid() == parent)
        (void)execl(program, "nibbled", "--config", config, (char *)NULL);
    _exit(127);
}

/* The last line of the log that says why, for the sentence. */
static void last_words(const struct nib_chat_demo *demo, char *ret_line, size_t bytes)
{
    char path[NIB_MAX_PATH_BYTES];
    in_folder(demo, files[2], path);
    FILE *file = fopen(path, "r");
    (void)snprintf(ret_line, bytes, "%s", "it said nothing");
    if (!file)
        return;
    char line[512];
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = '\0';
        if (*line && strncmp(line, "nibbled: stopped", 16) != 0)
            (void)snprintf(ret_line, bytes, "%s", line);
    }
    (void)fclose(file);
}

static enum nib_err wait_ready(struct nib_chat_demo *demo, struct nib_msg *msg)
{
    const struct timespec nap = {.tv_nsec = 20L * 1000 * 1000};
    struct nib_msg ignored;
    for (int i = 0; i < READY_S * 50; i++) {
        json_t *health;
        if (nib_client_get(demo->socket, "/health", &health, &ignored) == NIB_OK) {
            json_decref(health);
            return NIB_OK;
        }
        if (waitpid(demo->pid, NULL, WNOHANG) == demo->pid) {
            char line[512];
            demo->pid = 0;
            last_words(demo, line, sizeof line);
            return nib_fail(msg, NIB_E_IO, "nibbled did not start: %s", line);
        }
        (void)nanosleep(&nap, NULL);
    }
    return nib_fail(msg, NIB_E_IO, "nibbled was not ready after %d s", READY_S);
}

enum nib_err nib_chat_demo_start(struct nib_chat_demo *demo, struct nib_msg *msg)
{
    char image[NIB_MAX_PATH_BYTES], program[NIB_MAX_PATH_BYTES + 8], config[NIB_MAX_PATH_BYTES],
        log[NIB_MAX_PATH_BYTES];
    *demo = (struct nib_chat_demo){.folder = "/tmp/nibble-demo-XXXXXX"};
    enum nib_err err = find_image(image, msg);
    if (!err)
        err = find_daemon(program, msg);
    if (err)
        return err;
    if (!mkdtemp(demo->folder))
        return nib_fail(msg, NIB_E_IO, "/tmp: %s", strerror(errno));
    in_folder(demo, files[0], config);
    in_folder(demo, files[1], demo->socket);
    in_folder(demo, files[2], log);
    err = write_config(demo, image, msg);
    if (!err) {
        pid_t parent = getpid();
        demo->pid = fork();
        if (demo->pid == 0)
            become_daemon(program, config, log, parent);
        err = demo->pid < 0 ? nib_fail(msg, NIB_E_IO, "fork: %s", strerror(errno)) : wait_ready(demo, msg);
    }
    if (err)
        nib_chat_demo_stop(demo);
    return err;
}

void nib_chat_demo_stop(struct nib_chat_demo *demo)
{
    if (demo->pid > 0) {
        (void)kill(demo->pid, SIGTERM);
        while (waitpid(demo->pid, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char path[NIB_MAX_PATH_BYTES];
        in_folder(demo, files[i], path);
        (void)unlink(path);
    }
    (void)rmdir(demo->folder);
    demo->pid = 0;
}
