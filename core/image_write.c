/* core/image_write.c: owns the writing side: a temporary file beside the target, filled in the
 * order of the tensors, then given its header, flushed and renamed. Also signs a finished image in
 * its place. Takes heap for one header at the end; one thread; tools only. A failed write leaves
 * the target as it was. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "core/arith.h"
#include "core/image_header.h"

static enum nib_err write_at(int fd, uint64_t offset, const void *bytes, size_t n, struct nib_msg *msg)
{
    size_t done = 0;
    while (done < n) {
        ssize_t put = pwrite(fd, (const uint8_t *)bytes + done, n - done, (off_t)(offset + done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return nib_fail(msg, NIB_E_IO, "writing the image failed at byte %llu: %s",
                            (unsigned long long)(offset + done), put < 0 ? strerror(errno) : "no progress");
        done += (size_t)put;
    }
    return NIB_OK;
}

enum nib_err nib_image_write_begin(struct nib_image_writer *w, const char *path, const struct nib_shape *shape,
                                   enum nib_dense dense, const char *source, uint64_t tokenizer_bytes,
                                   uint64_t generation_bytes, struct nib_msg *msg)
{
    w->hash.ctx = NULL;
    int n = snprintf(w->temp_path, sizeof w->temp_path, "%s.tmp.%ld", path, (long)getpid());
    if (n < 0 || (size_t)n >= sizeof w->temp_path)
        return nib_fail(msg, NIB_E_LIMIT, "the image's path is longer than %d bytes", NIB_MAX_PATH_BYTES - 24);
    (void)snprintf(w->path, sizeof w->path, "%s", path);
    enum nib_err err = nib_image_layout(shape, dense, source, tokenizer_bytes, generation_bytes, &w->image, msg);
    if (err)
        return err;
    w->fd = open(w->temp_path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (w->fd < 0)
        return nib_fail(msg, NIB_E_IO, "cannot create %s: %s", w->temp_path, strerror(errno));
    /* a full disk is better known now; a file system that cannot reserve is told nothing */
    if (fallocate(w->fd, 0, 0, (off_t)w->image.file_bytes) != 0 && (errno == ENOSPC || errno == EFBIG)) {
        err = nib_fail(msg, NIB_E_IO, "the image needs %llu bytes: %s", (unsigned long long)w->image.file_bytes,
                       strerror(errno));
        nib_image_write_abort(w);
        return err;
    }
    w->index = 0;
    w->done_bytes = 0;
    nib_sha256_begin(&w->hash);
    return NIB_OK;
}

const struct nib_tensor *nib_image_write_next(const struct nib_image_writer *w)
{
    return w->index < w->image.tensor_count ? &w->image.tensors[w->index] : NULL;
}

/* The current tensor is full: record its hash, write the zeros after it, go to the next. */
static enum nib_err finish_tensor(struct nib_image_writer *w, struct nib_msg *msg)
{
    static const uint8_t zeros[NIB_IMAGE_ALIGN];
    struct nib_tensor *t = &w->image.tensors[w->index];
    uint64_t end = t->offset + t->bytes;
    nib_sha256_end(&w->hash, t->sha256);
    nib_sha256_begin(&w->hash);
    w->index++;
    w->done_bytes = 0;
    return write_at(w->fd, end, zeros, nib_round_up(end, NIB_IMAGE_ALIGN) - end, msg);
}

enum nib_err nib_image_write(struct nib_image_writer *w, const void *bytes, size_t n, struct nib_msg *msg)
{
    const struct nib_tensor *t = nib_image_write_next(w);
    if (!t || n > t->bytes - w->done_bytes)
        return nib_fail(msg, NIB_E_ARG, "more bytes than tensor %s has (%llu)", t ? t->name : "after the last",
                        t ? (unsigned long long)t->bytes : 0);
    nib_sha256_add(&w->hash, bytes, n);
    enum nib_err err = write_at(w->fd, t->offset + w->done_bytes, bytes, n, msg);
    if (err)
        return err;
    w->done_bytes += n;
    return w->done_bytes == t->bytes ? finish_tensor(w, msg) : NIB_OK;
}

/* Makes the rename itself durable. A folder that cannot be flushed is no reason to call the image
 * lost. */
static void sync_folder(const char *path)
{
    char folder[NIB_MAX_PATH_BYTES];
    (void)snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder ? 1 : 0] = 0;
    int fd = open(slash ? folder : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        (void)close(fd);
    }
}

/* Seals w->image, unsigned when `secret` is NULL, and writes its header. */
static enum nib_err put_header(struct nib_image_writer *w, int fd, const uint8_t *secret, struct nib_msg *msg)
{
    nib_image_header_seal(&w->image, secret, w->header);
    enum nib_err err = write_at(fd, 0, w->header, w->image.header_bytes, msg);
    if (!err && fsync(fd) != 0)
        err = nib_fail(msg, NIB_E_IO, "flushing the image to disk failed: %s", strerror(errno));
    return err;
}

enum nib_err nib_image_write_end(struct nib_image_writer *w, struct nib_msg *msg)
{
    enum nib_err err = NIB_OK;
    const struct nib_tensor *t = nib_image_write_next(w);
    if (t)
        err = nib_fail(msg, NIB_E_STATE, "the image is incomplete: tensor %s has %llu of %llu bytes", t->name,
                       (unsigned long long)w->done_bytes, (unsigned long long)t->bytes);
    if (!err)
        err = put_header(w, w->fd, NULL, msg);
    if (!err && rename(w->temp_path, w->path) != 0)
        err = nib_fail(msg, NIB_E_IO, "cannot rename %s to %s: %s", w->temp_path, w->path, strerror(errno));
    if (err) {
        nib_image_write_abort(w);
        return err;
    }
    nib_sha256_drop(&w->hash);
    (void)close(w->fd);
    w->fd = -1;
    sync_folder(w->path);
    return NIB_OK;
}

void nib_image_write_abort(struct nib_image_writer *w)
{
    nib_sha256_drop(&w->hash);
    (void)close(w->fd);
    w->fd = -1;
    (void)unlink(w->temp_path);
}

enum nib_err nib_image_sign(struct nib_image_writer *w, const char *path, const uint8_t secret[NIB_ED25519_KEY_BYTES],
                            struct nib_msg *msg)
{
    struct nib_image_file file;
    struct stat st;
    enum nib_err err = nib_image_open(path, &file, &w->image, msg);
    if (err)
        return err;
    int fd = open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) != 0)
        err = nib_fail(msg, NIB_E_IO, "cannot open %s for writing: %s", path, strerror(errno));
    else if (st.st_ino != file.at_open.st_ino || st.st_dev != file.at_open.st_dev)
        err = nib_fail(msg, NIB_E_IO, "%s was replaced while it was signed", path);
    if (!err)
        err = put_header(w, fd, secret, msg);
    if (fd >= 0)
        (void)close(fd);
    nib_image_close(&file);
    return err;
}
