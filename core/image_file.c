/* core/image_file.c: owns the reading side's descriptor: open, read, check against the hashes, map.
 * Takes heap for one header while opening; one thread; boot and tools. Every failure is one
 * sentence and leaves nothing open. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/arith.h"
#include "core/image.h"

enum nib_err nib_image_read(const struct nib_image_file *file, uint64_t offset, void *buf, size_t n,
                            struct nib_msg *msg)
{
    size_t done = 0;
    while (done < n) {
        ssize_t got = pread(file->fd, (uint8_t *)buf + done, n - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return nib_fail(msg, NIB_E_IO, "reading the image failed at byte %llu: %s",
                            (unsigned long long)(offset + done), strerror(errno));
        if (got == 0)
            return nib_fail(msg, NIB_E_IO, "the image ends at byte %llu: it shrank while it was read",
                            (unsigned long long)(offset + done));
        done += (size_t)got;
    }
    return NIB_OK;
}

/* A regular file, not empty, with no hole: an unfinished download that was given its full size has
 * one. */
static enum nib_err check_kind(const char *path, int fd, struct stat *ret_stat, struct nib_msg *msg)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return nib_fail(msg, NIB_E_IO, "cannot look at %s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return nib_fail(msg, NIB_E_IO, "%s is %s; a model image must be a regular file", path,
                        S_ISDIR(st.st_mode)    ? "a folder"
                        : S_ISFIFO(st.st_mode) ? "a pipe"
                                               : "not a regular file");
    if (st.st_size == 0)
        return nib_fail(msg, NIB_E_FORMAT, "%s is empty", path);
    off_t hole = lseek(fd, 0, SEEK_HOLE);
    if (hole >= 0 && hole < st.st_size)
        return nib_fail(msg, NIB_E_FORMAT,
                        "%s has a hole at byte %lld of %lld: it is incomplete, or was copied sparsely", path,
                        (long long)hole, (long long)st.st_size);
    *ret_stat = st;
    return NIB_OK;
}

static enum nib_err read_header(const struct nib_image_file *file, struct nib_image *ret_image, struct nib_msg *msg)
{
    static uint8_t head[NIB_MAX_HEADER_BYTES];
    uint8_t first[8];
    uint64_t header_bytes;
    uint64_t file_bytes = (uint64_t)file->at_open.st_size;
    if (file_bytes < sizeof first)
        return nib_fail(msg, NIB_E_FORMAT, "not a model image: it has %llu bytes, too few for a header",
                        (unsigned long long)file_bytes);
    enum nib_err err = nib_image_read(file, 0, first, sizeof first, msg);
    if (!err)
        err = nib_image_header_bytes(first, &header_bytes, msg);
    if (err)
        return err;
    if (header_bytes > file_bytes)
        return nib_fail(msg, NIB_E_FORMAT, "the image is cut: its header needs %llu bytes and %llu are there",
                        (unsigned long long)header_bytes, (unsigned long long)file_bytes);
    err = nib_image_read(file, 0, head, header_bytes, msg);
    if (!err)
        err = nib_image_parse(head, header_bytes, file_bytes, ret_image, msg);
    return err;
}

enum nib_err nib_image_open(const char *path, struct nib_image_file *ret_file, struct nib_image *ret_image,
                            struct nib_msg *msg)
{
    struct nib_image_file file;
    /* O_NONBLOCK: opening a FIFO must not wait for a writer */
    file.fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (file.fd < 0)
        return nib_fail(msg, NIB_E_IO, "cannot open %s: %s", path, strerror(errno));
    enum nib_err err = check_kind(path, file.fd, &file.at_open, msg);
    if (!err)
        err = read_header(&file, ret_image, msg);
    if (err) {
        (void)close(file.fd);
        return err;
    }
    *ret_file = file;
    return NIB_OK;
}

enum nib_err nib_image_check_unchanged(const struct nib_image_file *file, struct nib_msg *msg)
{
    struct stat now;
    if (fstat(file->fd, &now) != 0)
        return nib_fail(msg, NIB_E_IO, "cannot look at the image again: %s", strerror(errno));
    if (now.st_size != file->at_open.st_size)
        return nib_fail(msg, NIB_E_IO, "the image went from %lld to %lld bytes while it was read",
                        (long long)file->at_open.st_size, (long long)now.st_size);
    if (now.st_mtim.tv_sec != file->at_open.st_mtim.tv_sec || now.st_mtim.tv_nsec != file->at_open.st_mtim.tv_nsec)
        return nib_fail(msg, NIB_E_IO, "the image was written to while it was read");
    return NIB_OK;
}

enum nib_err nib_image_check_digest(const struct nib_tensor *t, const uint8_t digest[NIB_SHA256_BYTES],
                                    struct nib_msg *msg)
{
    if (memcmp(digest, t->sha256, NIB_SHA256_BYTES) != 0)
        return nib_fail(msg, NIB_E_HASH, "tensor %s differs from its hash: the image is damaged", t->name);
    return NIB_OK;
}

enum nib_err nib_image_check_tensor(const struct nib_tensor *t, const void *bytes, struct nib_msg *msg)
{
    uint8_t digest[NIB_SHA256_BYTES];
    nib_sha256(bytes, t->bytes, digest);
    return nib_image_check_digest(t, digest, msg);
}

/* The zeros from the end of t to its multiple of the alignment; buf holds NIB_IMAGE_ALIGN bytes. */
static enum nib_err check_padding(const struct nib_image_file *file, const struct nib_tensor *t, uint8_t *buf,
                                  struct nib_msg *msg)
{
    uint64_t end = t->offset + t->bytes;
    uint64_t pad = nib_round_up(end, NIB_IMAGE_ALIGN) - end;
    enum nib_err err = nib_image_read(file, end, buf, pad, msg);
    for (uint64_t i = 0; !err && i < pad; i++)
        if (buf[i] != 0)
            return nib_fail(msg, NIB_E_HASH, "the padding after tensor %s is not zero at byte %llu", t->name,
                            (unsigned long long)(end + i));
    return err;
}

enum nib_err nib_image_check_stored(const struct nib_image_file *file, const struct nib_image *image, uint32_t index,
                                    void *buf, size_t buf_bytes, void (*progress)(void *arg, uint64_t bytes), void *arg,
                                    struct nib_msg *msg)
{
    NIB_MUST(index < image->tensor_count && buf_bytes >= NIB_IMAGE_ALIGN);
    const struct nib_tensor *t = &image->tensors[index];
    struct nib_sha256 hash;
    uint8_t digest[NIB_SHA256_BYTES];
    nib_sha256_begin(&hash);
    for (uint64_t at = 0; at < t->bytes;) {
        size_t n = (size_t)nib_min_u64(t->bytes - at, buf_bytes);
        enum nib_err err = nib_image_read(file, t->offset + at, buf, n, msg);
        if (err) {
            nib_sha256_drop(&hash);
            return err;
        }
        nib_sha256_add(&hash, buf, n);
        if (progress)
            progress(arg, n);
        at += n;
    }
    nib_sha256_end(&hash, digest);
    enum nib_err err = nib_image_check_digest(t, digest, msg);
    return err ? err : check_padding(file, t, buf, msg);
}

enum nib_err nib_image_map(const struct nib_image_file *file, const struct nib_image *image, const uint8_t **ret_base,
                           struct nib_msg *msg)
{
    void *base = mmap(NULL, image->file_bytes, PROT_READ, MAP_PRIVATE, file->fd, 0);
    if (base == MAP_FAILED)
        return nib_fail(msg, NIB_E_NOMEM, "cannot map the image (%llu bytes): %s",
                        (unsigned long long)image->file_bytes, strerror(errno));
    *ret_base = base;
    return NIB_OK;
}

void nib_image_unmap(const struct nib_image *image, const uint8_t *base)
{
    NIB_MUST(munmap((void *)(uintptr_t)base, image->file_bytes) == 0);
}

void nib_image_close(struct nib_image_file *file)
{
    (void)close(file->fd);
    file->fd = -1;
}
