/* The publisher against the suite that comes with libie: three functions and a row. */
#include "conformance.h"
#include "lines.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct peer {
    char  path[64];
    char  url[80];
    FILE *in;
} peer;

static peer the_peer;

static void *
peer_setup(void)
{
    int fd;

    (void)strcpy(the_peer.path, "/tmp/lines-XXXXXX");
    fd = mkstemp(the_peer.path);
    if (fd < 0)
        return NULL;
    (void)snprintf(the_peer.url, sizeof the_peer.url, "lines:%s", the_peer.path);
    the_peer.in = fdopen(fd, "r");
    return the_peer.in != NULL ? &the_peer : NULL;
}

static const char *
peer_url(void *peer_)
{
    return ((peer *)peer_)->url;
}

static const char *
peer_url_away(void *peer_)
{
    (void)peer_;
    return "lines:/nonexistent/folder/file";
}

static ie_event *
peer_receive(void *peer_, int timeout_ms)
{
    ie_event  event = IE_EVENT_INIT;
    ie_event *copy = NULL;
    char      topic[256];
    char      id[256];

    (void)timeout_ms; /* delivered means written, so it is there */
    if (fscanf(((peer *)peer_)->in, "%255s %255s", topic, id) != 2)
        return NULL;
    event.topic = topic;
    event.id = id;
    return ie_event_copy(&copy, &event, NULL) == IE_OK ? copy : NULL;
}

static void
peer_teardown(void *peer_)
{
    (void)fclose(((peer *)peer_)->in);
    (void)unlink(((peer *)peer_)->path);
}

int
main(void)
{
    static const ie_conformance_row ROW = {
        .name = "lines",
        .ops = &LINES,
        .setup = peer_setup,
        .url = peer_url,
        .url_away = peer_url_away,
        .receive = peer_receive,
        .teardown = peer_teardown,
        .carries_id_only = true,
        .bad_url = "lines:stderr?nonsense=1",
        .bad_option = "nonsense",
    };

    return ie_conformance_main(&ROW) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
