/* What was probably meant by a word that does not exist. */
#include <string.h>

#include "units.h"

#define WORD_MAX 40

/* Edits (insert, remove, replace, swap neighbours) that make one word of the other. */
static size_t
distance(const char *a, const char *b)
{
    const size_t a_bytes = strlen(a);
    const size_t b_bytes = strlen(b);
    size_t       rows[3][WORD_MAX + 1];

    if (a_bytes > WORD_MAX || b_bytes > WORD_MAX)
        return WORD_MAX;
    for (size_t j = 0; j <= b_bytes; j++)
        rows[0][j] = j;
    for (size_t i = 1; i <= a_bytes; i++) {
        size_t       *now = rows[i % 3];
        const size_t *last = rows[(i - 1) % 3];
        const size_t *before = rows[(i + 1) % 3];

        now[0] = i;
        for (size_t j = 1; j <= b_bytes; j++) {
            size_t best = last[j - 1] + (a[i - 1] != b[j - 1] ? 1 : 0);

            if (last[j] + 1 < best)
                best = last[j] + 1;
            if (now[j - 1] + 1 < best)
                best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
        }
    }
    return rows[a_bytes % 3][b_bytes];
}

const char *
ie__suggest(const char *word, const char *(*name_at)(const void *of, size_t index), const void *of,
            size_t count)
{
    const char *best = NULL;
    size_t      best_edits = strlen(word) / 3 + 2; /* fewer than this */

    for (size_t i = 0; i < count; i++) {
        const char  *name = name_at(of, i);
        const size_t edits = distance(word, name);

        if (edits < best_edits && edits < strlen(name)) {
            best = name;
            best_edits = edits;
        }
    }
    return best;
}
