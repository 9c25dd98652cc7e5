/*
 * A pool of workers on eb/1, the protocol of the reference event bus.
 *
 *   eb1_pool [URL]     a bus that runs already, "socket://127.0.0.1:9100"; without, one in here
 *
 * Three workers register as members of the event "work". The dispatcher sends them twelve jobs,
 * round robin, and each answers to the service id that the job came from.
 */
#include <ie/ie.h>

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WORKERS 3
#define JOBS    12
#define WAIT_MS 10000

typedef struct worker {
    ie_eb1_client *client;
    atomic_bool    is_ready;
    int            number;
    atomic_int     done;
} worker;

static atomic_int answers;

/* A job: square the number. Runs on the worker's own thread. */
static void
on_job(void *user, uint32_t source, const void *data, size_t bytes)
{
    worker *self = user;
    char    text[32] = "";
    char    answer[96];
    int     length;
    long    n;

    if (bytes == 0) { /* our own message to ourselves, see pool_start() */
        atomic_store(&self->is_ready, true);
        return;
    }
    memcpy(text, data, bytes < sizeof text ? bytes : sizeof text - 1);
    n = strtol(text, NULL, 10);
    length = snprintf(answer, sizeof answer, "%ld squared is %ld, says worker %d", n, n * n,
                      self->number);
    (void)atomic_fetch_add(&self->done, 1);
    (void)ie_eb1_client_send(self->client, source, answer, (size_t)length, NULL);
}

static void
on_answer(void *user, uint32_t source, const void *data, size_t bytes)
{
    (void)user;
    (void)source;
    (void)printf("%.*s\n", (int)bytes, (const char *)data);
    (void)atomic_fetch_add(&answers, 1);
}

static ie_status
client_start(ie_eb1_client **out, const char *url, const char *event, ie_eb1_data_fn on_data,
             void *user, ie_error *err)
{
    ie_eb1_client_options options;
    ie_status             status;

    IE_EB1_CLIENT_OPTIONS_INIT(&options);
    options.url = url;
    options.event = event;
    options.on_data = on_data;
    options.user = user;
    status = ie_eb1_client_open(out, &options, err);
    return status == IE_OK ? ie_eb1_client_wait_connected(*out, WAIT_MS, err) : status;
}

/* eb/1 does not confirm a registration. But the bus handles what a connection sends in order: when
 * a message to ourselves has come back, we are a member. */
static ie_status
pool_start(worker pool[WORKERS], const char *url, ie_error *err)
{
    for (int i = 0; i < WORKERS; i++) {
        ie_status status;

        pool[i].number = i + 1;
        status = client_start(&pool[i].client, url, "work", on_job, &pool[i], err);
        if (status == IE_OK)
            status =
                ie_eb1_client_send(pool[i].client, ie_eb1_client_id(pool[i].client), NULL, 0, err);
        if (status != IE_OK)
            return status;
        for (int ms = 0; !atomic_load(&pool[i].is_ready); ms++) {
            if (ms == WAIT_MS)
                return ie_error_set(err, IE_ETIMEDOUT, "worker %d hears nothing", i + 1);
            (void)usleep(1000);
        }
    }
    return IE_OK;
}

static ie_status
dispatch(ie_eb1_client *dispatcher, ie_error *err)
{
    char text[32];

    for (int n = 1; n <= JOBS; n++) {
        const int       length = snprintf(text, sizeof text, "%d", n);
        const ie_status status = ie_eb1_client_send_event(dispatcher, "work", IE_EB1_ROUND_ROBIN, 0,
                                                          text, (size_t)length, err);

        if (status != IE_OK)
            return status;
    }
    for (int ms = 0; atomic_load(&answers) < JOBS; ms++) {
        if (ms == WAIT_MS)
            return ie_error_set(err, IE_ETIMEDOUT, "%d of %d answers came", atomic_load(&answers),
                                JOBS);
        (void)usleep(1000);
    }
    return IE_OK;
}

int
main(int argc, char **argv)
{
    static const char    *ANY_PORT = "socket://127.0.0.1:0";
    worker                pool[WORKERS] = {0};
    ie_bus_server_options options;
    ie_bus_server        *bus = NULL;
    ie_eb1_client        *dispatcher = NULL;
    ie_error              err = IE_ERROR_INIT;
    ie_status             status = IE_OK;
    const char           *url = argc > 1 ? argv[1] : NULL;

    if (url == NULL) {
        IE_BUS_SERVER_OPTIONS_INIT(&options);
        options.listen = &ANY_PORT;
        options.listen_count = 1;
        status = ie_bus_server_start(&bus, &options, &err);
        url = status == IE_OK ? ie_bus_server_address(bus, 0) : "";
    }
    if (status == IE_OK)
        status = pool_start(pool, url, &err);
    if (status == IE_OK)
        status = client_start(&dispatcher, url, NULL, on_answer, NULL, &err);
    if (status == IE_OK)
        status = dispatch(dispatcher, &err);
    ie_eb1_client_close(dispatcher);
    for (int i = 0; i < WORKERS; i++) {
        ie_eb1_client_close(pool[i].client);
        (void)printf("worker %d did %d\n", i + 1, atomic_load(&pool[i].done));
    }
    ie_bus_server_close(bus);
    if (status != IE_OK)
        (void)fprintf(stderr, "eb1_pool: %s\n", err.message);
    return status == IE_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
