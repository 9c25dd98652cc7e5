/* The SQL files of migrations/ as they were compiled in; see migrations/embed.cmake. */
#ifndef IE_MIGRATIONS_H
#define IE_MIGRATIONS_H

#include <stddef.h>

typedef struct ie__migration_text {
    int         version;
    const char *name;
    const char *up;
    const char *down;
} ie__migration_text;

extern const ie__migration_text ie__migration_texts[];
extern const size_t             ie__migration_text_count;

#endif
