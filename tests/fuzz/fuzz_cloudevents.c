/* What the decoder accepts can be published and encoded, and decodes to the same event again. */
#include <ie/cloudevents.h>

#include <string.h>

#include "fuzz.h"

static bool
same_text(const char *a, const char *b)
{
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

static void
claim_same(const ie_event *a, const ie_event *b)
{
    CLAIM(same_text(a->topic, b->topic) && same_text(a->key, b->key) && same_text(a->id, b->id));
    CLAIM(same_text(a->type, b->type) && same_text(a->source, b->source));
    CLAIM(same_text(a->subject, b->subject) && same_text(a->dataschema, b->dataschema));
    CLAIM(same_text(a->content_type, b->content_type));
    CLAIM(a->time_ms == b->time_ms && a->not_before_ms == b->not_before_ms &&
          a->expires_at_ms == b->expires_at_ms);
    CLAIM((a->data == NULL) == (b->data == NULL) && a->data_bytes == b->data_bytes);
    CLAIM(a->data_bytes == 0 || memcmp(a->data, b->data, a->data_bytes) == 0);
    CLAIM(a->header_count == b->header_count);
    for (size_t i = 0; i < a->header_count; i++) {
        CLAIM(same_text(a->headers[i].name, b->headers[i].name));
        CLAIM(same_text(a->headers[i].value, b->headers[i].value));
        CLAIM(a->headers[i].type == b->headers[i].type);
    }
}

static void
claim_round_trip(const ie_event *event)
{
    ie_buffer json = {0};
    ie_event *again = NULL;
    ie_event *copy = NULL;
    ie_error  err = IE_ERROR_INIT;

    if (event->topic != NULL)
        CLAIM(ie_event_check(event, &err) == IE_OK);
    CLAIM(ie_cloudevents_encode(&json, event, &err) == IE_OK);
    CLAIM(ie_cloudevents_decode(&again, json.data, json.size, &err) == IE_OK);
    claim_same(event, again);
    CLAIM(ie_event_copy(&copy, again, &err) == IE_OK);
    claim_same(event, copy);
    ie_event_free(copy);
    ie_event_free(again);
    ie_buffer_fini(&json);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    ie_error   err = IE_ERROR_INIT;
    ie_event  *event = NULL;
    ie_event **events = NULL;
    size_t     count = 0;

    if (ie_cloudevents_decode(&event, (const char *)data, size, &err) == IE_OK) {
        claim_round_trip(event);
        ie_event_free(event);
    } else {
        CLAIM(event == NULL && err.message[0] != '\0');
    }
    if (ie_cloudevents_decode_batch(&events, &count, (const char *)data, size, NULL) == IE_OK) {
        ie_buffer  json = {0};
        ie_event **again = NULL;
        size_t     again_count = 0;

        CLAIM(ie_cloudevents_encode_batch(&json, (const ie_event *const *)events, count, NULL) ==
              IE_OK);
        CLAIM(ie_cloudevents_decode_batch(&again, &again_count, json.data, json.size, NULL) ==
              IE_OK);
        CLAIM(again_count == count);
        for (size_t i = 0; i < count; i++)
            claim_same(events[i], again[i]);
        ie_cloudevents_batch_free(again, again_count);
        ie_cloudevents_batch_free(events, count);
        ie_buffer_fini(&json);
    }
    return 0;
}
