/* tools/weights.h: the tensors of a source checkpoint, wherever they lie: any number of files, one
 * list of names.
 *
 * Everything comes from files that nobody has checked. A tensor is accepted only when its name is
 * printable ASCII, its type is one of the six below, its size follows from its shape, and its bytes
 * lie in its file; the list as a whole only when no name comes twice and no two tensors of a file
 * share a byte. Takes heap; one thread; boot-time tool code only. */
#ifndef NIB_TOOLS_WEIGHTS_H
#define NIB_TOOLS_WEIGHTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "core/err.h"
#include "core/limits.h"

enum nib_weight_type {
    NIB_W_F32,
    NIB_W_F16,
    NIB_W_BF16,
    NIB_W_U8,
    NIB_W_Q8_0,  /* GGUF: fp16 scale and 32 int8 */
    NIB_W_MXFP4, /* GGUF: E8M0 scale and 16 bytes; low nibbles are elements 0..15, high 16..31 */
    NIB_W_COUNT
};

struct nib_weight {
    char name[NIB_MAX_TENSOR_NAME];
    enum nib_weight_type type;
    uint32_t dim_count;
    uint64_t dims[NIB_MAX_TENSOR_DIMS]; /* outermost first; unused ones are 1 */
    uint32_t file;                      /* index into files */
    uint64_t offset;                    /* bytes from the beginning of that file */
    uint64_t bytes;
};

struct nib_weight_file {
    char *label; /* name for messages: the last part of the path */
    int fd;
    uint64_t bytes;
    struct stat at_open;
};

struct nib_weights {
    uint32_t file_count;
    struct nib_weight_file files[NIB_MAX_SHARDS];
    uint32_t count;
    struct nib_weight list[NIB_MAX_SRC_TENSORS]; /* by name once sealed */
};

/* An empty list. About 300 KB, never NULL (no memory stops the process). */
struct nib_weights *nib_weights_new(void);
/* Closes the files and frees; NULL is legal. */
void nib_weights_free(struct nib_weights *w);

/* "F32", "MXFP4", ... */
const char *nib_weight_type_name(enum nib_weight_type type);
/* Elements of one block, and its bytes (1 and the element's size for plain types). */
uint32_t nib_weight_block(enum nib_weight_type type);
uint32_t nib_weight_block_bytes(enum nib_weight_type type);

/* Opens a regular, non-empty file for reading. */
enum nib_err nib_weights_open(struct nib_weights *w, const char *path, uint32_t *ret_file,
                              struct nib_msg *msg) NIB_CHECKED;

/* True when text[0..bytes) fits a tensor's name: printable ASCII without " and \, not empty. */
bool nib_weights_name_ok(const char *text, size_t bytes);

/* Checks one tensor and adds it. Computes `bytes` from type and dims (what the caller left there is
 * not read); a last dimension that is not whole blocks, or a range outside the file, is refused. */
enum nib_err nib_weights_add(struct nib_weights *w, const struct nib_weight *tensor, struct nib_msg *msg) NIB_CHECKED;

/* Sorts the list and refuses double names and shared bytes. After the last add. */
enum nib_err nib_weights_seal(struct nib_weights *w, struct nib_msg *msg) NIB_CHECKED;

/* The tensor, or NULL. After the seal. */
const struct nib_weight *nib_weights_find(const struct nib_weights *w, const char *name);

/* Reads n bytes at `at` of the tensor, whole or NIB_E_IO. at + n <= tensor->bytes. */
enum nib_err nib_weights_read(const struct nib_weights *w, const struct nib_weight *tensor, uint64_t at, void *buf,
                              size_t n, struct nib_msg *msg) NIB_CHECKED;

/* The same anywhere in a file. */
enum nib_err nib_weights_read_file(const struct nib_weights *w, uint32_t file, uint64_t offset, void *buf, size_t n,
                                   struct nib_msg *msg) NIB_CHECKED;

/* Refuses when a file changed size or content time since it was opened. */
enum nib_err nib_weights_check_unchanged(const struct nib_weights *w, struct nib_msg *msg) NIB_CHECKED;

#endif
