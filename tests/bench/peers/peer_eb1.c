/*
 * eb/1 over the bus under test, through our client of it. eb/1 acknowledges nothing, so the loop is
 * closed here: no more than so many messages are on their way, and every one has to arrive.
 */
#include "peers.h"

#include <ie/eb1.h>

#include <string.h>
#include <time.h>
#include <unistd.h>

#define EVENT      "BNCH"
#define WAIT_MS    10000
#define ON_THE_WAY 16384
#define PAUSE_NS   50000

static void
on_data(void *user, uint32_t source, const void *data, size_t bytes)
{
    (void)source;
    peers_received(user, data, bytes);
}

static ie_eb1_client *
client_open(peers_run *run, bool is_member)
{
    ie_eb1_client_options options;
    ie_eb1_client        *client = NULL;
    ie_error              err = IE_ERROR_INIT;
    char                  url[64];

    (void)snprintf(url, sizeof url, "socket://%s:%d", run->server, run->port);
    IE_EB1_CLIENT_OPTIONS_INIT(&options);
    options.url = url;
    if (is_member) {
        options.event = EVENT;
        options.on_data = on_data;
        options.user = run;
    }
    if (ie_eb1_client_open(&client, &options, &err) != IE_OK ||
        ie_eb1_client_wait_connected(client, WAIT_MS, &err) != IE_OK)
        bench_die("eb1: %s", err.message);
    return client;
}

static void
subscribe(peers_run *run)
{
    (void)client_open(run, true);
    peers_ready(run);
    for (;;)
        (void)pause();
}

static int64_t
received(const peers_run *run)
{
    return atomic_load_explicit(&run->shared->subscriber[0].received, memory_order_acquire);
}

static void
publish(peers_run *run)
{
    static const struct timespec PAUSE = {.tv_nsec = PAUSE_NS};
    ie_eb1_client               *client = client_open(run, false);
    ie_error                     err = IE_ERROR_INIT;
    int64_t                      arrived = 0;

    peers_begin(run);
    while (peers_next(run)) {
        ie_status status;

        if (run->next - arrived > ON_THE_WAY) {
            const int64_t deadline = bench_now_ns() + (int64_t)WAIT_MS * 1000000;

            while (run->next - (arrived = received(run)) > ON_THE_WAY * 3 / 4) {
                if (bench_now_ns() > deadline)
                    return; /* lost: what is missing is counted */
                (void)nanosleep(&PAUSE, NULL);
            }
        }
        status = ie_eb1_client_send_event(client, EVENT, IE_EB1_ROUND_ROBIN, 0, run->data,
                                          run->bytes, &err);
        if (status != IE_OK)
            bench_die("eb1: %s", err.message);
    }
    ie_eb1_client_close(client);
}

const peers_peer PEERS_EB1 = {
    .name = "eb1",
    .subscribe = subscribe,
    .publish = publish,
};
