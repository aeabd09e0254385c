/* gpu/upload.h: the parts of loading: what is to be loaded, the ring of pinned buffers, the readers that fill them.
 * Private to gpu/upload*.c. Boot only.
 *
 * Readers take jobs, one tensor (or the two of an expert matrix) each, and fill slots chunk by chunk, front to back. A
 * tensor has one hash, so its chunks are hashed in order; two readers on one tensor read side by side and take turns with
 * the hash, which keeps the largest tensors from being the last.
 * The boot thread alone talks to CUDA: it sends filled slots, repacks them, and gives slots back when an event says so. */
#ifndef NIB_GPU_UPLOAD_H
#define NIB_GPU_UPLOAD_H

#include <pthread.h>
#include <stdatomic.h>

#include "gpu/state.h"

#define NIB_GPU_SLOT_BYTES (2u << 20)                               /* of the ring; 32 of them: two a reader */
#define NIB_GPU_SLOT_DATA  (NIB_GPU_SLOT_BYTES - NIB_GPU_SLOT_NOTE) /* the note follows the data */
#define NIB_GPU_SLOT_NOTE  4096u                                    /* struct nib_gpu_letter, pinned like the data */
#define NIB_GPU_MAX_RING   32
#define NIB_GPU_MAX_JOBS   (3 + NIB_MAX_LAYERS * 13)
#define NIB_GPU_CHUNK_ROWS 64 /* a chunk of a matrix begins at a multiple of this row */
#define NIB_GPU_SHARERS    2  /* readers of one job */
/* Bytes of a row of an expert's matrix in a chunk, and what the alignment of the scales may cost it. */
#define NIB_GPU_MX_ROW(k)    ((k) / 2 + (k) / NIB_MX_BLOCK + 1)
#define NIB_GPU_MXFP8_ROW(k) ((k) + (k) / NIB_MX_BLOCK + 1) /* the same of a dense matrix in MXFP8 */

enum nib_gpu_job_kind { NIB_GPU_JOB_PLAIN, NIB_GPU_JOB_DENSE, NIB_GPU_JOB_HEAD, NIB_GPU_JOB_MX, NIB_GPU_JOB_MXFP8 };

struct nib_gpu_job {
    enum nib_gpu_job_kind kind;
    const struct nib_tensor *tensor, *scales; /* scales of NIB_GPU_JOB_MX and NIB_GPU_JOB_MXFP8 */
    nib_gpu_ptr to;
    uint8_t *host_to; /* NIB_GPU_JOB_PLAIN into pinned memory: read in place */
    enum nib_gpu_matrix matrix;
    uint64_t stride; /* NIB_GPU_JOB_MX: bytes between two experts' matrices */
    /* under the loader's lock */
    uint32_t chunks, next, hashed; /* how many; to be read next; hashed so far */
    uint32_t readers;              /* now */
    struct nib_sha256 hash, hash_scales;
};

enum nib_gpu_slot_state { NIB_GPU_SLOT_FREE, NIB_GPU_SLOT_FILLING, NIB_GPU_SLOT_FILLED, NIB_GPU_SLOT_SENT };

/* What lies in the piece of the repack block: the argument of the boot ops, and the sum of what arrived. */
struct nib_gpu_note {
    struct nib_gpu_repack repack;
    uint64_t sum; /* 0 on the way there */
};
_Static_assert(sizeof(struct nib_gpu_note) <= NIB_GPU_PIECE_ALIGN, "piece of the repack block");

/* Travels with a slot, there and back: what comes back must be what was sent, with the wanted sum. */
struct nib_gpu_letter {
    struct nib_gpu_note sent, back;
    uint64_t sum_wanted;
};

struct nib_gpu_slot {
    enum nib_gpu_slot_state state;
    uint8_t *host;
    nib_gpu_ptr device;
    struct nib_gpu_letter *letter;
    const struct nib_gpu_job *job;
    uint64_t bytes;  /* to be sent */
    uint64_t counts; /* bytes of the image that it holds */
    struct CUevent_st *event;
};

struct nib_gpu_loader {
    struct nib_gpu_engine *e;
    const struct nib_gpu_engine_open *open;
    uint32_t jobs_count;
    struct nib_gpu_job jobs[NIB_GPU_MAX_JOBS]; /* largest first */
    uint64_t share_bytes;                      /* tensors above it get two readers at once */
    uint32_t ring_count;
    struct nib_gpu_slot ring[NIB_GPU_MAX_RING];
    uint32_t filled[NIB_GPU_MAX_RING]; /* queue of filled slots: filled_from..filled_to modulo NIB_GPU_MAX_RING */
    uint32_t filled_from, filled_to;
    uint32_t running; /* readers that have not ended */
    uint64_t total_bytes;
    atomic_ullong in_place_bytes; /* read straight to their place */
    bool stop;                    /* someone failed, or the boot thread gave up */
    enum nib_err err;             /* the first failure of a reader */
    struct nib_msg msg;
    pthread_mutex_t lock;               /* of everything above that changes */
    pthread_cond_t freed, came, turned; /* a slot is free; a slot is filled; a chunk is hashed */
};

/* upload_jobs.c: the list; then, from any reader, a job to work on (NULL: none), and a chunk of it (false: none left). */
void nib_gpu_jobs_list(struct nib_gpu_loader *l, uint32_t readers);
void nib_gpu_jobs_drop(struct nib_gpu_loader *l);
struct nib_gpu_job *nib_gpu_job_take(struct nib_gpu_loader *l);
bool nib_gpu_job_chunk(struct nib_gpu_loader *l, struct nib_gpu_job *job, uint32_t *ret_chunk);
/* Rows of a chunk whose rows have `bytes` bytes each. */
uint32_t nib_gpu_job_rows(uint64_t bytes);

/* upload_read.c: one reader; arg is the loader. */
void *nib_gpu_reader(void *arg);

#endif
