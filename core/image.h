/* core/image.h: the model image, a safetensors file that holds exactly one row of core/model.h.
 *
 *     u64 header length | JSON header, padded with spaces | tensors, each followed by zeros to
 * 4,096
 *
 * The file is canonical: shape, form of the dense matrices, source, the two blob sizes and the tensors' content decide every
 * byte. The reader walks the same description of the header as the writer and compares byte for
 * byte; the only sizes it takes from the file are those of the two blobs, each under its cap. The
 * zeros after a tensor are a u8 tensor "pad.N" of their own (N counts tensors), since safetensors
 * wants no holes.
 *
 * Metadata ("__metadata__", strings): format, shape, dense (only when the dense matrices are not bf16), source,
 * tokenizer_bytes, generation_bytes,
 * header_sha256 (of the whole header with this field and the signature written as zeros), key and
 * signature (Ed25519; both all zeros in an unsigned image), sha256.NAME for each tensor.
 *
 * Boot and tools only. One thread. Messages are one sentence. Nothing here takes heap but libcrypto. */
#ifndef NIB_CORE_IMAGE_H
#define NIB_CORE_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "core/err.h"
#include "core/hash.h"
#include "core/limits.h"
#include "core/model.h"

#define NIB_IMAGE_FORMAT "nibbled image 1"

enum nib_dtype {
    NIB_DTYPE_BF16,
    NIB_DTYPE_U8,
    NIB_DTYPE_E4M3,
};

/* In file order: EMBED, then each layer's ATTN_NORM..DOWN_BIAS, then FINAL_NORM..GENERATION. The scales of a dense matrix
 * follow it. Numbers stay: seeded weights depend on them. */
enum nib_tensor_id {
    NIB_T_EMBED, /* bf16 [V, H] */
    /* each layer */
    NIB_T_ATTN_NORM,     /* bf16 [H] */
    NIB_T_QKV_WEIGHT,    /* dense [q_dim + 2 kv_dim, H]: rows of q, then k, then v */
    NIB_T_QKV_BIAS,      /* bf16 [q_dim + 2 kv_dim] */
    NIB_T_SINKS,         /* bf16 [heads] */
    NIB_T_OUT_WEIGHT,    /* dense [H, q_dim] */
    NIB_T_OUT_BIAS,      /* bf16 [H] */
    NIB_T_MLP_NORM,      /* bf16 [H] */
    NIB_T_ROUTER_WEIGHT, /* bf16 [E, H] */
    NIB_T_ROUTER_BIAS,   /* bf16 [E] */
    NIB_T_UP_BLOCKS,     /* u8 [E, 2I, H/32, 16]: even rows gate, odd rows up */
    NIB_T_UP_SCALES,     /* u8 [E, 2I, H/32] */
    NIB_T_UP_BIAS,       /* bf16 [E, 2I] */
    NIB_T_DOWN_BLOCKS,   /* u8 [E, H, I/32, 16] */
    NIB_T_DOWN_SCALES,   /* u8 [E, H, I/32] */
    NIB_T_DOWN_BIAS,     /* bf16 [E, H] */
    /* once */
    NIB_T_FINAL_NORM, /* bf16 [H] */
    NIB_T_LM_HEAD,    /* dense [V, H] */
    NIB_T_TOKENIZER,  /* u8 [n]: the blob of core/tokenizer.h */
    NIB_T_GENERATION, /* u8 [n]: JSON text of the generation defaults */
    /* of NIB_DENSE_MXFP8, whose dense matrices are E4M3; not in other images */
    NIB_T_QKV_SCALES,     /* u8 [q_dim + 2 kv_dim, H/32], in each layer */
    NIB_T_OUT_SCALES,     /* u8 [H, q_dim/32], in each layer */
    NIB_T_LM_HEAD_SCALES, /* u8 [V, H/32] */
    NIB_T_COUNT
};

struct nib_tensor {
    char name[NIB_MAX_TENSOR_NAME]; /* "embed", "layers.3.qkv.weight", ... */
    enum nib_tensor_id id;
    uint32_t layer; /* 0 for tensors outside layers */
    enum nib_dtype dtype;
    uint32_t dim_count;
    uint64_t dims[NIB_MAX_TENSOR_DIMS];
    uint64_t offset; /* bytes from the beginning of the file; multiple of NIB_IMAGE_ALIGN */
    uint64_t bytes;  /* without the padding that follows */
    uint8_t sha256[NIB_SHA256_BYTES];
};

struct nib_image {
    const struct nib_shape *shape;
    enum nib_dense dense;
    uint64_t header_bytes; /* with the 8 of its length; multiple of NIB_IMAGE_ALIGN */
    uint64_t file_bytes;   /* multiple of NIB_IMAGE_ALIGN */
    bool is_signed;
    uint8_t key[NIB_ED25519_KEY_BYTES]; /* public key; zeros when unsigned */
    uint8_t signature[NIB_ED25519_SIGNATURE_BYTES];
    uint8_t header_sha256[NIB_SHA256_BYTES];
    char source[NIB_MAX_SOURCE_BYTES]; /* what it was packed from; printable ASCII without " and \ */
    uint32_t tensor_count;
    struct nib_tensor tensors[NIB_MAX_TENSORS]; /* in file order, offsets ascending */
};

/* Tensors of an image of that shape. */
uint32_t nib_image_tensor_count(const struct nib_shape *shape, enum nib_dense dense);

/* Fills shape, dense, source, sizes, names, dims and offsets of the image that these arguments make;
 * hashes, key and signature are zeros. NIB_E_ARG: source has bytes outside printable ASCII, or " or
 * \; a blob is empty or above its cap. The description of the file, without a file. */
enum nib_err nib_image_layout(const struct nib_shape *shape, enum nib_dense dense, const char *source,
                              uint64_t tokenizer_bytes, uint64_t generation_bytes, struct nib_image *ret_image,
                              struct nib_msg *msg) NIB_CHECKED;

/* The tensor; never NULL. `layer` is 0 for tensors outside layers. The process stops on an id or
 * layer that the image does not have. */
const struct nib_tensor *nib_image_tensor(const struct nib_image *image, enum nib_tensor_id id, uint32_t layer);

/* The scales of a dense matrix by its id; NIB_T_COUNT when `id` is none of the three. */
enum nib_tensor_id nib_image_scales_of(enum nib_tensor_id id);

/* "BF16", "U8", "F8_E4M3": as safetensors calls them */
const char *nib_dtype_name(enum nib_dtype dtype);
uint64_t nib_dtype_bytes(enum nib_dtype dtype);

/* ---- reading ---- */

/* Pure check of head[0..head_bytes), the first bytes of a file of file_bytes bytes: at least its
 * whole header (what nib_image_header_bytes says). Accepts only the bytes that the writer would
 * have made, checks the header's own hash, and a signature against the key beside it. */
enum nib_err nib_image_parse(const uint8_t *head, size_t head_bytes, uint64_t file_bytes, struct nib_image *ret_image,
                             struct nib_msg *msg) NIB_CHECKED;

/* Bytes of the header with its length field, from the first 8 bytes of a file; NIB_E_FORMAT when no
 * image has that. */
enum nib_err nib_image_header_bytes(const uint8_t first[8], uint64_t *ret_bytes, struct nib_msg *msg) NIB_CHECKED;

/* Refuses an unsigned image, one signed by another key, and a signature that does not verify. */
enum nib_err nib_image_check_signature(const struct nib_image *image, const uint8_t key[NIB_ED25519_KEY_BYTES],
                                       struct nib_msg *msg) NIB_CHECKED;

/* Compares the bytes of a whole tensor (t->bytes of them) with its hash. A loader that streams
 * hashes with nib_sha256_* itself and compares by nib_image_check_digest. */
enum nib_err nib_image_check_tensor(const struct nib_tensor *t, const void *bytes, struct nib_msg *msg) NIB_CHECKED;
enum nib_err nib_image_check_digest(const struct nib_tensor *t, const uint8_t digest[NIB_SHA256_BYTES],
                                    struct nib_msg *msg) NIB_CHECKED;

/* An open image file. The descriptor is opened once; everything is read through it. */
struct nib_image_file {
    int fd;
    struct stat at_open;
};

/* Opens a regular file without holes, reads and checks its header. A FIFO, device, folder, empty
 * file, a file with holes or of the wrong size is refused. One
 * thread at a time: there is one buffer for headers. On failure nothing stays open. */
enum nib_err nib_image_open(const char *path, struct nib_image_file *ret_file, struct nib_image *ret_image,
                            struct nib_msg *msg) NIB_CHECKED;

/* Refuses when the file changed size or content time since it was opened: call after the last read.
 */
enum nib_err nib_image_check_unchanged(const struct nib_image_file *file, struct nib_msg *msg) NIB_CHECKED;

/* Reads n bytes at offset into buf, whole or NIB_E_IO. */
enum nib_err nib_image_read(const struct nib_image_file *file, uint64_t offset, void *buf, size_t n,
                            struct nib_msg *msg) NIB_CHECKED;

/* Checks tensor i and the zeros after it, reading through buf (any size from 4,096 bytes;
 * NIB_MAX_IO_CHUNK_BYTES is good). `progress` (or NULL) is called with the bytes just read. */
enum nib_err nib_image_check_stored(const struct nib_image_file *file, const struct nib_image *image, uint32_t index,
                                    void *buf, size_t buf_bytes, void (*progress)(void *arg, uint64_t bytes), void *arg,
                                    struct nib_msg *msg) NIB_CHECKED;

/* Maps the whole file read-only; tensor t is at base + t->offset. A file that shrinks later makes
 * reads fault. */
enum nib_err nib_image_map(const struct nib_image_file *file, const struct nib_image *image, const uint8_t **ret_base,
                           struct nib_msg *msg) NIB_CHECKED;
void nib_image_unmap(const struct nib_image *image, const uint8_t *base);
void nib_image_close(struct nib_image_file *file);

/* ---- writing ---- */

/* Writes PATH.tmp.PID in the order of the tensors, hashing as it goes; write_end puts the header in
 * place, flushes to disk and renames over PATH. The struct is large: keep it off small stacks. */
struct nib_image_writer {
    struct nib_image image; /* layout; hashes are filled as tensors complete */
    char path[NIB_MAX_PATH_BYTES];
    char temp_path[NIB_MAX_PATH_BYTES];
    int fd;
    uint32_t index;      /* tensor that the next byte belongs to */
    uint64_t done_bytes; /* of that tensor */
    struct nib_sha256 hash;
    uint8_t header[NIB_MAX_HEADER_BYTES]; /* write_end and sign make it here */
};

enum nib_err nib_image_write_begin(struct nib_image_writer *w, const char *path, const struct nib_shape *shape,
                                   enum nib_dense dense, const char *source, uint64_t tokenizer_bytes,
                                   uint64_t generation_bytes, struct nib_msg *msg) NIB_CHECKED;

/* The tensor that the next byte belongs to, or NULL when all are complete. */
const struct nib_tensor *nib_image_write_next(const struct nib_image_writer *w);

/* Appends n bytes of the current tensor (w's next), at most what it still lacks; the following
 * tensor begins when it is full. After a failure only write_abort is allowed. */
enum nib_err nib_image_write(struct nib_image_writer *w, const void *bytes, size_t n, struct nib_msg *msg) NIB_CHECKED;

/* All tensors must be complete. On failure the temporary file is gone, and PATH is as before.
 * Closes w. */
enum nib_err nib_image_write_end(struct nib_image_writer *w, struct nib_msg *msg) NIB_CHECKED;

/* Removes the temporary file. Closes w. */
void nib_image_write_abort(struct nib_image_writer *w);

/* Signs the image at PATH in its place with a 32-byte Ed25519 secret; only the header's hash, key and signature
 * change. w is room to work in, not a writer that has begun. The caller has checked the tensors. */
enum nib_err nib_image_sign(struct nib_image_writer *w, const char *path, const uint8_t secret[NIB_ED25519_KEY_BYTES],
                            struct nib_msg *msg) NIB_CHECKED;

#endif
