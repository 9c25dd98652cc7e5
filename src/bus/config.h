/*
 * A configuration of the server that is put together from several sources: file, environment,
 * flags. What a later source says about a setting replaces what an earlier one said. Nothing is
 * taken from a configuration with faults.
 */
#ifndef IE_CONFIG_H
#define IE_CONFIG_H

#include <ie/bus_server.h>

#include "settings.h"

#define IE__CONFIG_FILE_BYTES_MAX  (1u << 20)
#define IE__CONFIG_VALUE_BYTES_MAX 2048
#define IE__CONFIG_FAULTS_MAX      20 /* of one configuration; the rest is counted */
#define IE__CONFIG_ENV_PREFIX      "IE_BUS_"

typedef enum ie__config_source {
    IE__CONFIG_DEFAULT,
    IE__CONFIG_FILE,
    IE__CONFIG_ENVIRONMENT,
    IE__CONFIG_FLAG
} ie__config_source;

typedef struct ie__config_hooks {
    /* One fault, or something odd that is no fault; one line. */
    void (*say)(void *user, bool is_fault, const char *message);
    void *user;
} ie__config_hooks;

/* Empty: every default. hooks may be NULL. */
ie_status ie__config_new(ie_bus_config **out, const ie__config_hooks *hooks, ie_error *err);

/* The steps, in this order. Faults are told to the hooks and counted; the status is another only
 * when there is no going on: IE_EIO (the file cannot be read) or IE_ENOMEM. */
ie_status ie__config_read_file(ie_bus_config *config, const char *path, ie_error *err);
ie_status ie__config_read_text(ie_bus_config *config, const char *path, const char *text,
                               size_t bytes, ie_error *err);
ie_status ie__config_environment(ie_bus_config *config, char *const *environment, ie_error *err);
/* place: what the fault is said to be in, "--drain". */
ie_status ie__config_flag(ie_bus_config *config, const char *name, const char *value,
                          const char *place, ie_error *err);
/* IE_EINVAL with the first fault when there is one; the options can be had after IE_OK. */
ie_status ie__config_finish(ie_bus_config *config, ie_error *err);

size_t ie__config_faults(const ie_bus_config *config);
/* How many settings have a value from this source. */
size_t ie__config_count(const ie_bus_config *config, ie__config_source source);
/* The setting's value as text, entry by entry; NULL after the last. "" for a default of nothing. */
const char *ie__config_text(const ie_bus_config *config, const char *name, size_t index);
/* A file with every setting, its help, its value, and where that comes from. */
ie_status ie__config_print(const ie_bus_config *config, ie_buffer *out, ie_error *err);
/* The first setting that a reload cannot change and that differs; NULL: none. */
const char *ie__config_fixed_change(const ie_bus_config *before, const ie_bus_config *after);

/* ---- between config.c and config_file.c ---- */

void ie__config_fault(ie_bus_config *config, const char *place, const char *fmt, ...)
    IE_PRINTF(3, 4);
const ie__setting *ie__config_find(const char *name);
/* "'drian' is no setting; did you mean 'drain'?" */
void ie__config_fault_unknown(ie_bus_config *config, const char *place, const char *name);
/* Where an earlier value of the same source stands; NULL: there is none. */
const char *ie__config_place(const ie_bus_config *config, const ie__setting *setting,
                             ie__config_source source);
/* Check and keep one value; name_place is where the setting is named, value_place its value. */
ie_status ie__config_take(ie_bus_config *config, const ie__setting *setting,
                          ie__config_source source, const char *value, const char *name_place,
                          const char *value_place, ie_error *err);

#endif
