/* mosquitto through its C client, QoS 0. */
#include "peers.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <mosquitto.h>

#define TOPIC       "bench/orders/new"
#define WINDOW      1000 /* publishes that the client has not written */
#define KEEPALIVE_S 60

typedef struct mqtt_link {
    pthread_mutex_t mutex;
    pthread_cond_t  changed;
    peers_run      *run;
    int64_t         unwritten;
    bool            is_connected;
} mqtt_link;

static void
check(int code, const char *what)
{
    if (code != MOSQ_ERR_SUCCESS)
        bench_die("mosquitto: %s: %s", what, mosquitto_strerror(code));
}

static void
on_connect(struct mosquitto *mosquitto, void *user, int code)
{
    mqtt_link *self = user;

    (void)mosquitto;
    if (code != 0)
        bench_die("mosquitto: refused: %d", code);
    (void)pthread_mutex_lock(&self->mutex);
    self->is_connected = true;
    (void)pthread_cond_signal(&self->changed);
    (void)pthread_mutex_unlock(&self->mutex);
}

static void
on_subscribe(struct mosquitto *mosquitto, void *user, int id, int count, const int *granted)
{
    mqtt_link *self = user;

    (void)mosquitto;
    (void)id;
    (void)count;
    (void)granted;
    peers_ready(self->run);
}

static void
on_message(struct mosquitto *mosquitto, void *user, const struct mosquitto_message *message)
{
    mqtt_link *self = user;

    (void)mosquitto;
    peers_received(self->run, message->payload, (size_t)message->payloadlen);
}

static void
on_publish(struct mosquitto *mosquitto, void *user, int id)
{
    mqtt_link *self = user;

    (void)mosquitto;
    (void)id;
    (void)pthread_mutex_lock(&self->mutex);
    self->unwritten--;
    (void)pthread_cond_signal(&self->changed);
    (void)pthread_mutex_unlock(&self->mutex);
}

static struct mosquitto *
connection(mqtt_link *self, peers_run *run)
{
    struct mosquitto *made;

    check(mosquitto_lib_init(), "init");
    (void)pthread_mutex_init(&self->mutex, NULL);
    (void)pthread_cond_init(&self->changed, NULL);
    self->run = run;
    made = mosquitto_new(NULL, true, self);
    if (made == NULL)
        bench_die("mosquitto: out of memory");
    mosquitto_connect_callback_set(made, on_connect);
    mosquitto_subscribe_callback_set(made, on_subscribe);
    mosquitto_message_callback_set(made, on_message);
    mosquitto_publish_callback_set(made, on_publish);
    check(mosquitto_int_option(made, MOSQ_OPT_TCP_NODELAY, 1), "nodelay");
    check(mosquitto_connect(made, run->server, run->port, KEEPALIVE_S), "connect");
    return made;
}

static void
subscribe(peers_run *run)
{
    mqtt_link         self = {.unwritten = 0};
    struct mosquitto *mosquitto = connection(&self, run);

    check(mosquitto_subscribe(mosquitto, NULL, TOPIC, 0), "subscribe");
    check(mosquitto_loop_forever(mosquitto, -1, 1), "loop");
}

static void
publish(peers_run *run)
{
    mqtt_link         self = {.unwritten = 0};
    struct mosquitto *mosquitto = connection(&self, run);

    check(mosquitto_loop_start(mosquitto), "thread");
    (void)pthread_mutex_lock(&self.mutex);
    while (!self.is_connected)
        (void)pthread_cond_wait(&self.changed, &self.mutex);
    (void)pthread_mutex_unlock(&self.mutex);
    peers_begin(run);
    while (peers_next(run)) {
        (void)pthread_mutex_lock(&self.mutex);
        while (self.unwritten >= WINDOW)
            (void)pthread_cond_wait(&self.changed, &self.mutex);
        self.unwritten++;
        (void)pthread_mutex_unlock(&self.mutex);
        check(mosquitto_publish(mosquitto, NULL, TOPIC, (int)run->bytes, run->data, 0, false),
              "publish");
    }
    (void)pthread_mutex_lock(&self.mutex);
    while (self.unwritten > 0)
        (void)pthread_cond_wait(&self.changed, &self.mutex);
    (void)pthread_mutex_unlock(&self.mutex);
    check(mosquitto_disconnect(mosquitto), "disconnect");
    check(mosquitto_loop_stop(mosquitto, false), "stop");
}

/* CONNECT and SUBSCRIBE of MQTT 3.1.1, by hand. */
static size_t
idle(int fd)
{
    unsigned char  out[128];
    const int      id = snprintf((char *)out + 14, 16, "%08x", (unsigned)fd);
    unsigned char *at = out + 14 + id;
    const int      topic = snprintf((char *)at + 6, 32, "bench/idle/%d", fd);

    memcpy(out, "\x10\0\0\x04MQTT\x04\x02\0\0\0\0", 14);
    out[1] = (unsigned char)(12 + id);
    out[13] = (unsigned char)id;
    memcpy(at, "\x82\0\0\x01\0\0", 6);
    at[1] = (unsigned char)(5 + topic);
    at[5] = (unsigned char)topic;
    at[6 + topic] = 0; /* QoS */
    peers_write_all(fd, out, (size_t)(at + 7 + topic - out));
    return 4 + 5; /* CONNACK, SUBACK */
}

const peers_peer PEERS_MOSQUITTO = {
    .name = "mosquitto",
    .subscribe = subscribe,
    .publish = publish,
    .idle = idle,
};
