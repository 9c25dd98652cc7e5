/*
 * The server's settings in one table: the fields of ie_bus_server_options with their names in a
 * configuration, defaults and bounds. The server's own checks, the configuration file, the flags
 * and variables of `ie bus`, what --print-config writes and CONFIG.md all come from it.
 */
#ifndef IE_SETTINGS_H
#define IE_SETTINGS_H

#include <ie/bus_server.h>

typedef enum ie__setting_kind {
    IE__SETTING_COUNT,    /* uint32_t */
    IE__SETTING_BYTES,    /* uint64_t, or uint32_t where is_narrow */
    IE__SETTING_MS,       /* uint32_t */
    IE__SETTING_SECONDS,  /* uint32_t */
    IE__SETTING_CHOICE,   /* an enum: one of the words */
    IE__SETTING_SWITCH,   /* "yes" or "no"; "no" sets the flag */
    IE__SETTING_TEXT,     /* const char * */
    IE__SETTING_PATH,     /* const char *; relative to the folder of the file that names it */
    IE__SETTING_URLS,     /* a list; the count is the next field */
    IE__SETTING_PATTERNS, /* a list */
} ie__setting_kind;

typedef struct ie__setting {
    const char        *section; /* the first of a section names it; else NULL */
    const char        *name;    /* in a file; in upper case after IE_BUS_ in the environment */
    const char        *field;   /* of the options, for messages to programs */
    const char        *help;    /* one line */
    const char        *shown;   /* default of what is no number; "" for none */
    const char *const *words;   /* of a choice, by value; NULL at the end */
    size_t             offset;
    uint64_t           fallback;
    uint64_t           min; /* of what may be written; in the options 0 stands for the default */
    uint64_t           max; /* of a list: entries */
    ie__setting_kind   kind;
    uint32_t           flag;      /* of a switch */
    bool               is_narrow; /* bytes in a uint32_t */
    bool               is_fixed;  /* a reload cannot change it */
} ie__setting;

extern const ie__setting ie__settings[];
extern const size_t      ie__setting_count;

/* Is the value a number or an enum's? Then it is read and written by these. */
bool     ie__setting_is_number(const ie__setting *setting);
uint64_t ie__setting_get(const ie__setting *setting, const ie_bus_server_options *options);
void ie__setting_put(const ie__setting *setting, ie_bus_server_options *options, uint64_t value);

/*
 * The options that a program gave, with every 0 replaced by its default. IE_EINVAL names the field
 * that is out of bounds. NULL: every default.
 */
ie_status ie__settings_import(ie_bus_server_options *out, const ie_bus_server_options *given,
                              ie_error *err);

#endif
