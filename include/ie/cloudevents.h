/**
 * @file
 * CloudEvents 1.0 in its JSON format: one event, or a batch.
 *
 * Mapping: topic <-> extension "topic", key <-> "partitionkey", expires_at_ms <->
 * "expirytime", not_before_ms <-> "notbefore"; every other header is an extension of the
 * same name. Payload bytes and numbers pass through untouched: JSON data is spliced in, never
 * parsed and printed again.
 */
#ifndef IE_CLOUDEVENTS_H
#define IE_CLOUDEVENTS_H

#include <ie/event.h>

#ifdef __cplusplus
extern "C" {
#endif

#define IE_CLOUDEVENTS_CONTENT_TYPE       "application/cloudevents+json"
#define IE_CLOUDEVENTS_BATCH_CONTENT_TYPE "application/cloudevents-batch+json"

#define IE_CLOUDEVENTS_BATCH_MAX 10000 /* events in one batch that we decode */

/**
 * Append one event in the JSON format; no newline, no terminator.
 *
 * @param event  id, source and type must be set (a stored event has them).
 * @return IE_OK, IE_EINVAL or IE_ENOMEM; @p out is as before on failure. Threads: any.
 */
IE_API ie_status ie_cloudevents_encode(ie_buffer *out, const ie_event *event, ie_error *err);

/** Append a JSON array of events; an empty one is legal. As ie_cloudevents_encode(). */
IE_API ie_status ie_cloudevents_encode_batch(ie_buffer *out, const ie_event *const *events,
                                             size_t count, ie_error *err);

/**
 * Read one event. Untrusted input is fine.
 *
 * @param[out] out  transferred: release with ie_event_free(). topic is NULL where the event
 *                  has none. Untouched on failure.
 * @return IE_OK, IE_EINVAL (the message names the member and the byte offset), IE_ETOOBIG or
 *         IE_ENOMEM. Threads: any.
 */
IE_API ie_status ie_cloudevents_decode(ie_event **out, const char *json, size_t json_bytes,
                                       ie_error *err);

/**
 * Read a batch.
 *
 * @param[out] out    transferred: release with ie_cloudevents_batch_free().
 * @param[out] count  how many.
 */
IE_API ie_status ie_cloudevents_decode_batch(ie_event ***out, size_t *count, const char *json,
                                             size_t json_bytes, ie_error *err);

/** Release a batch and its events. NULL is accepted. Threads: any. */
IE_API void ie_cloudevents_batch_free(ie_event **events, size_t count);

#ifdef __cplusplus
}
#endif
#endif
