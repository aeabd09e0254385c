/* appliance/peer.c: owns nothing; the counts belong to the front. Limits: NIB_MAX_UID_RULES rules,
 * NIB_PEER_GROUPS groups of a client. Front thread. Fails when the kernel does not name the peer;
 * the connection is then refused. */
#include "appliance/peer.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define NIB_PEER_GROUPS 256 /* supplementary groups looked at */

static bool rule_matches(const struct nib_peer_rule *rule, uint32_t uid, const uint32_t *gids, size_t gids_count)
{
    if (rule->subject == NIB_PEER_ANY)
        return true;
    if (rule->subject == NIB_PEER_UID)
        return rule->id == uid;
    for (size_t i = 0; i < gids_count; i++)
        if (gids[i] == rule->id)
            return true;
    return false;
}

void nib_peer_decide(const struct nib_config *config, uint32_t uid, const uint32_t *gids, size_t gids_count,
                     struct nib_peer *ret_peer)
{
    *ret_peer = (struct nib_peer){.uid = uid, .allowed = config->peers_count == 0};
    for (uint64_t i = 0; i < config->peers_count; i++) {
        const struct nib_peer_rule *rule = &config->peers[i];
        if (!rule_matches(rule, uid, gids, gids_count))
            continue;
        ret_peer->allowed = !rule->deny;
        ret_peer->requests_max = rule->requests;
        ret_peer->queue_max = rule->queue;
        ret_peer->ctx_tokens = rule->ctx_tokens;
        return;
    }
}

enum nib_err nib_peer_of_socket(const struct nib_config *config, int fd, struct nib_peer *ret_peer, struct nib_msg *msg)
{
    struct ucred cred;
    socklen_t len = sizeof cred;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) != 0 || len != sizeof cred)
        return nib_fail(msg, NIB_E_IO, "the kernel does not say who connected: %s", strerror(errno));
    uint32_t gids[NIB_PEER_GROUPS + 1];
    size_t count = 0;
    gids[count++] = cred.gid;
#ifdef SO_PEERGROUPS
    len = NIB_PEER_GROUPS * sizeof gids[0];
    if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, gids + 1, &len) == 0)
        count += len / sizeof gids[0];
#endif
    nib_peer_decide(config, cred.uid, gids, count, ret_peer);
    return NIB_OK;
}

static struct nib_peer_use *find(struct nib_peer_counts *counts, uint32_t uid)
{
    for (uint32_t i = 0; i < counts->count; i++)
        if (counts->uses[i].uid == uid)
            return &counts->uses[i];
    return NULL;
}

struct nib_peer_use nib_peer_use_of(const struct nib_peer_counts *counts, uint32_t uid)
{
    for (uint32_t i = 0; i < counts->count; i++)
        if (counts->uses[i].uid == uid)
            return counts->uses[i];
    return (struct nib_peer_use){.uid = uid};
}

void nib_peer_count(struct nib_peer_counts *counts, uint32_t uid, int running, int waiting)
{
    struct nib_peer_use *use = find(counts, uid);
    if (!use) {
        NIB_MUST(counts->count < sizeof counts->uses / sizeof counts->uses[0]);
        use = &counts->uses[counts->count++];
        *use = (struct nib_peer_use){.uid = uid};
    }
    NIB_MUST((int64_t)use->running + running >= 0 && (int64_t)use->waiting + waiting >= 0);
    use->running = (uint32_t)((int64_t)use->running + running);
    use->waiting = (uint32_t)((int64_t)use->waiting + waiting);
    if (use->running == 0 && use->waiting == 0)
        *use = counts->uses[--counts->count];
}
