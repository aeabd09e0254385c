/* appliance/peer.h: who is at the other end of a connection, and what that user may do.
 *
 * The kernel says who connected (SO_PEERCRED); the rules come from the configuration. A table of
 * users with open requests keeps the counts. Front thread only; allocates nothing. */
#ifndef NIB_APPLIANCE_PEER_H
#define NIB_APPLIANCE_PEER_H

#include "appliance/config.h"

struct nib_peer {
    uint32_t uid;
    bool allowed;
    uint64_t requests_max; /* 0 = no own limit */
    uint64_t queue_max;    /* likewise */
    uint64_t ctx_tokens;   /* likewise */
};

/* Users with requests in the daemon; one entry a request at most, so it cannot overflow. */
struct nib_peer_counts {
    uint32_t count;
    struct nib_peer_use {
        uint32_t uid;
        uint32_t running; /* in a slot or about to be */
        uint32_t waiting; /* in the queue */
    } uses[NIB_MAX_SLOTS + NIB_MAX_QUEUE];
};

/* The rule for a user with these groups. gids[0..gids_count) holds all of its groups. */
void nib_peer_decide(const struct nib_config *config, uint32_t uid, const uint32_t *gids, size_t gids_count,
                     struct nib_peer *ret_peer);

/* The same for the client of a connected socket. NIB_E_IO: the kernel does not say who it is. */
enum nib_err nib_peer_of_socket(const struct nib_config *config, int fd, struct nib_peer *ret_peer,
                                struct nib_msg *msg) NIB_CHECKED;

/* Requests of the user now. */
struct nib_peer_use nib_peer_use_of(const struct nib_peer_counts *counts, uint32_t uid);

/* Changes the counts; the entry goes when both are 0. */
void nib_peer_count(struct nib_peer_counts *counts, uint32_t uid, int running, int waiting);

#endif
