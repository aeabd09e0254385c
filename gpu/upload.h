/* gpu/upload.h: the parts of loading: what is to be loaded, the ring of pinned buffers, the readers that fill them.
 * Private to gpu/upload*.c. Boot only.
 *
 * Readers take jobs, one tensor (or the two of an expert matrix) each, and fill slots front to back, hashing on the way.
 * The boot thread alone talks to CUDA: it sends filled slots, repacks them, and gives slots back when an event says so. */
#ifndef NIB_GPU_UPLOAD_H
#define NIB_GPU_UPLOAD_H

#include <pthread.h>
#include <stdatomic.h>

#include "gpu/state.h"

#define NIB_GPU_SLOT_BYTES (4u << 20)                               /* of the ring; 16 of them */
#define NIB_GPU_SLOT_DATA  (NIB_GPU_SLOT_BYTES - NIB_GPU_SLOT_NOTE) /* the note follows the data */
#define NIB_GPU_SLOT_NOTE  4096u                                    /* struct nib_gpu_letter, pinned like the data */
#define NIB_GPU_MAX_RING   16
#define NIB_GPU_MAX_JOBS   (3 + NIB_MAX_LAYERS * 13)
#define NIB_GPU_CHUNK_ROWS 64 /* a chunk of a matrix begins at a multiple of this row */

enum nib_gpu_job_kind { NIB_GPU_JOB_PLAIN, NIB_GPU_JOB_DENSE, NIB_GPU_JOB_MX };

struct nib_gpu_job {
    enum nib_gpu_job_kind kind;
    const struct nib_tensor *tensor, *scales; /* scales of NIB_GPU_JOB_MX */
    nib_gpu_ptr to;
    uint8_t *host_to; /* NIB_GPU_JOB_PLAIN into pinned memory: read in place */
    enum nib_gpu_matrix matrix;
    uint64_t stride; /* NIB_GPU_JOB_MX: bytes between two experts' matrices */
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
    uint32_t ring_count;
    struct nib_gpu_slot ring[NIB_GPU_MAX_RING];
    uint32_t filled[NIB_GPU_MAX_RING]; /* queue of filled slots: filled_from..filled_to modulo NIB_GPU_MAX_RING */
    uint32_t filled_from, filled_to;
    uint32_t next_job, running; /* readers that have not ended */
    uint64_t total_bytes;
    atomic_ullong in_place_bytes; /* read straight to their place */
    bool stop;                    /* someone failed, or the boot thread gave up */
    enum nib_err err;             /* the first failure of a reader */
    struct nib_msg msg;
    pthread_mutex_t lock; /* of everything above that changes */
    pthread_cond_t freed, came;
};

/* upload_jobs.c */
void nib_gpu_jobs_list(struct nib_gpu_loader *l);

/* upload_read.c: one reader; arg is the loader. */
void *nib_gpu_reader(void *arg);

#endif
