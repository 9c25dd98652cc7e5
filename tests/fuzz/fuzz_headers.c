/* Stored headers of a stranger: what is read can be written, and reads the same again. */
#include "headers.h"

#include <string.h>

#include "core.h"
#include "fuzz.h"

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ie_event  event = IE_EVENT_INIT;
    ie_event  again = IE_EVENT_INIT;
    ie_buffer json = {0};
    void     *arena = NULL;
    void     *again_arena = NULL;
    ie_error  err = IE_ERROR_INIT;

    if (ie__headers_decode(&event, &arena, (const char *)data, size, &err) != IE_OK) {
        CLAIM(arena == NULL && err.message[0] != '\0');
        return 0;
    }
    event.topic = "t";
    CLAIM(ie_event_check(&event, &err) == IE_OK);
    CLAIM(ie__headers_encode(&json, &event) == IE_OK);
    CLAIM(json.size <= IE__HEADERS_STORED_BYTES_MAX);
    if (json.size > 0) {
        CLAIM(ie__headers_decode(&again, &again_arena, json.data, json.size, &err) == IE_OK);
        CLAIM(again.header_count == event.header_count);
        CLAIM((again.subject == NULL) == (event.subject == NULL));
        CLAIM(event.subject == NULL || strcmp(event.subject, again.subject) == 0);
        for (size_t i = 0; i < event.header_count; i++) {
            CLAIM(strcmp(event.headers[i].name, again.headers[i].name) == 0);
            CLAIM(strcmp(event.headers[i].value, again.headers[i].value) == 0);
            CLAIM(event.headers[i].type == again.headers[i].type);
        }
    }
    ie__free(again_arena);
    ie__free(arena);
    ie_buffer_fini(&json);
    return 0;
}
