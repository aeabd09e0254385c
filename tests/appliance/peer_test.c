/* Peer rules: the first that matches decides; counts come back to nothing. */
#include "appliance/peer.h"

#include <sys/socket.h>
#include <unistd.h>

#include "tests/harness.h"

static struct nib_config config;

static void rules(const char *text)
{
    struct nib_msg msg;
    ck_assert_msg(nib_config_parse(text, strlen(text), &config, &msg) == NIB_OK, "%s", msg.text);
}

static struct nib_peer decide(uint32_t uid, uint32_t gid)
{
    const uint32_t gids[] = {100, gid};
    struct nib_peer peer;
    nib_peer_decide(&config, uid, gids, 2, &peer);
    return peer;
}

START_TEST(test_no_rules_lets_all_in)
{
    rules("");
    ck_assert(decide(1234, 5).allowed);
    ck_assert_uint_eq(decide(1234, 5).uid, 1234);
}
END_TEST

START_TEST(test_first_match_decides)
{
    rules("peers:\n  - uid: 7\n    deny: true\n  - gid: 50\n    requests: 2\n    ctx_tokens: 9\n"
          "  - uid: 8\n    queue: 1\n");
    ck_assert(!decide(7, 50).allowed);
    ck_assert(decide(9, 50).allowed);
    ck_assert_uint_eq(decide(9, 50).requests_max, 2);
    ck_assert_uint_eq(decide(9, 50).ctx_tokens, 9);
    ck_assert_uint_eq(decide(8, 50).queue_max, 0); /* the group's rule came first */
    ck_assert_uint_eq(decide(8, 51).queue_max, 1);
    ck_assert(!decide(9, 51).allowed);
}
END_TEST

START_TEST(test_any)
{
    rules("peers:\n  - uid: 7\n    deny: true\n  - any: true\n    requests: 3\n");
    ck_assert(!decide(7, 1).allowed);
    ck_assert(decide(70, 1).allowed);
    ck_assert_uint_eq(decide(70, 1).requests_max, 3);
}
END_TEST

START_TEST(test_socket)
{
    int fds[2];
    struct nib_peer peer;
    struct nib_msg msg;
    rules("peers:\n  - any: true\n");
    ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    ck_assert_int_eq(nib_peer_of_socket(&config, fds[0], &peer, &msg), NIB_OK);
    ck_assert_uint_eq(peer.uid, getuid());
    ck_assert(peer.allowed);
    (void)close(fds[0]);
    ck_assert_int_eq(nib_peer_of_socket(&config, fds[0], &peer, &msg), NIB_E_IO);
    (void)close(fds[1]);
}
END_TEST

START_TEST(test_counts)
{
    static struct nib_peer_counts counts;
    uint32_t most = sizeof counts.uses / sizeof counts.uses[0];
    for (uint32_t i = 0; i < most; i++)
        nib_peer_count(&counts, 1000 + i, 0, 1);
    ck_assert_uint_eq(counts.count, most);
    for (uint32_t i = 0; i < most; i++) {
        nib_peer_count(&counts, 1000 + i, 1, -1);
        ck_assert_uint_eq(nib_peer_use_of(&counts, 1000 + i).running, 1);
        ck_assert_uint_eq(nib_peer_use_of(&counts, 1000 + i).waiting, 0);
    }
    ck_assert_uint_eq(nib_peer_use_of(&counts, 1).running, 0);
    for (uint32_t i = 0; i < most; i += 2)
        nib_peer_count(&counts, 1000 + i, -1, 0);
    for (uint32_t i = 1; i < most; i += 2)
        ck_assert_uint_eq(nib_peer_use_of(&counts, 1000 + i).running, 1);
    for (uint32_t i = 1; i < most; i += 2)
        nib_peer_count(&counts, 1000 + i, -1, 0);
    ck_assert_uint_eq(counts.count, 0);
}
END_TEST

NIB_SUITE(peer, test_no_rules_lets_all_in, test_first_match_decides, test_any, test_socket, test_counts)
