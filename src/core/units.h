/* Numbers as people write them, with a unit; and the word that was probably meant. */
#ifndef IE_UNITS_H
#define IE_UNITS_H

#include <ie/base.h>

/* "10s", "500ms", "2h" -> ms; "0" needs no unit. False: not one. */
bool ie__duration_parse(const char *text, int64_t *ms);
/* "8MiB", "4096" -> bytes. False: not one. */
bool ie__bytes_parse(const char *text, int64_t *bytes);

/* The other way round, in the largest unit that leaves no rest: "30s", "8MiB", "1500ms". */
#define IE__UNITS_SIZE 32
void ie__duration_format(char out[IE__UNITS_SIZE], uint64_t ms);
void ie__bytes_format(char out[IE__UNITS_SIZE], uint64_t bytes);

/* The nearest of the names that is near enough to be meant, or NULL. */
const char *ie__suggest(const char *word, const char *(*name_at)(const void *of, size_t index),
                        const void *of, size_t count);

#endif
