/* tools/keys.c: owns key files and `nibble keygen`. Main thread. Fails on the disk and on files that are no keys. */
#include "tools/keys.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/commands.h"

#define DIGITS ((size_t)2 * NIB_ED25519_KEY_BYTES)

enum nib_err nib_key_read(const char *text, uint8_t ret_key[NIB_ED25519_KEY_BYTES], struct nib_msg *msg)
{
    char line[DIGITS + 3];
    if (strlen(text) == DIGITS && nib_hex_parse(text, NIB_ED25519_KEY_BYTES, ret_key))
        return NIB_OK;
    int fd = open(text, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return nib_fail(msg, NIB_E_IO, "cannot open the key file %s: %s", text, strerror(errno));
    ssize_t n = read(fd, line, sizeof line);
    (void)close(fd);
    if (n > 0 && line[n - 1] == '\n')
        n--;
    if (n != (ssize_t)DIGITS || !nib_hex_parse(line, NIB_ED25519_KEY_BYTES, ret_key))
        return nib_fail(msg, NIB_E_FORMAT, "%s is not a key: a key file is one line of %zu lower-case hex digits", text,
                        DIGITS);
    return NIB_OK;
}

enum nib_err nib_key_write(const char *path, const uint8_t key[NIB_ED25519_KEY_BYTES], unsigned mode,
                           struct nib_msg *msg)
{
    char line[DIGITS + 2];
    nib_hex_print(key, NIB_ED25519_KEY_BYTES, line);
    line[DIGITS] = '\n';
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (fd < 0)
        return nib_fail(msg, NIB_E_IO, "cannot create %s: %s", path, strerror(errno));
    bool good = write(fd, line, DIGITS + 1) == (ssize_t)DIGITS + 1 && fsync(fd) == 0;
    good = close(fd) == 0 && good;
    if (!good) {
        (void)unlink(path);
        return nib_fail(msg, NIB_E_IO, "cannot write %s: %s", path, strerror(errno));
    }
    return NIB_OK;
}

int nib_cmd_keygen(int argc, char **argv)
{
    static const struct option options[] = {{0}};
    uint8_t secret[NIB_ED25519_KEY_BYTES];
    uint8_t key[NIB_ED25519_KEY_BYTES];
    char path[NIB_MAX_PATH_BYTES];
    struct nib_msg msg = {""};
    if (getopt_long(argc, argv, "", options, NULL) != -1 || argc - optind != 1)
        return NIB_EXIT_USAGE;
    if (strlen(argv[optind]) > sizeof path - 5) {
        (void)fprintf(stderr, "nibble keygen: the name is longer than %zu bytes\n", sizeof path - 5);
        return NIB_EXIT_FAILED;
    }
    nib_ed25519_generate(secret);
    nib_ed25519_public(secret, key);
    (void)snprintf(path, sizeof path, "%s.key", argv[optind]);
    enum nib_err err = nib_key_write(path, secret, 0600, &msg);
    if (!err) {
        (void)snprintf(path, sizeof path, "%s.pub", argv[optind]);
        err = nib_key_write(path, key, 0644, &msg);
    }
    if (err) {
        (void)fprintf(stderr, "nibble keygen: %s\n", msg.text);
        return NIB_EXIT_FAILED;
    }
    (void)printf("%s.key is the secret, keep it; %s.pub is the public key\n", argv[optind], argv[optind]);
    return NIB_EXIT_OK;
}
