/* Configuration files of strangers: a fault or options within bounds, and what is printed reads the
 * same again. */
#include "config.h"

#include <string.h>

#include "core.h"
#include "fuzz.h"

static void
count_said(void *user, bool is_fault, const char *message)
{
    size_t *count = user;

    CLAIM(is_fault && strncmp(message, "f:", 2) == 0 && strchr(message, '\n') == NULL);
    (*count)++;
}

static void
claim_same(const ie_bus_config *a, const ie_bus_config *b)
{
    for (size_t i = 0; i < ie__setting_count; i++)
        for (size_t j = 0;; j++) {
            const char *one = ie__config_text(a, ie__settings[i].name, j);
            char        kept[IE__CONFIG_VALUE_BYTES_MAX + 1];
            const char *other;

            if (one != NULL)
                (void)snprintf(kept, sizeof kept, "%s", one);
            other = ie__config_text(b, ie__settings[i].name, j);
            CLAIM((one == NULL) == (other == NULL));
            if (one == NULL)
                break;
            CLAIM(strcmp(kept, other) == 0);
        }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t                 said = 0;
    const ie__config_hooks hooks = {.say = count_said, .user = &said};
    ie_bus_config         *config = NULL;
    ie_bus_config         *again = NULL;
    ie_bus_server_options  options;
    ie_buffer              text = {0};
    ie_error               err = IE_ERROR_INIT;

    CLAIM(ie__config_new(&config, &hooks, NULL) == IE_OK);
    CLAIM(ie__config_read_text(config, "f", (const char *)data, size, NULL) == IE_OK);
    if (ie__config_finish(config, &err) != IE_OK) {
        CLAIM(said > 0 && said <= IE__CONFIG_FAULTS_MAX && err.message[0] != '\0');
        ie_bus_config_free(config);
        return 0;
    }
    CLAIM(said == 0);
    CLAIM(ie__settings_import(&options, ie_bus_config_options(config), NULL) == IE_OK);
    CLAIM(ie__config_print(config, &text, NULL) == IE_OK);
    CLAIM(ie__config_new(&again, &hooks, NULL) == IE_OK);
    CLAIM(ie__config_read_text(again, "f", text.data, text.size, NULL) == IE_OK);
    CLAIM(ie__config_finish(again, NULL) == IE_OK);
    claim_same(config, again);
    ie_buffer_fini(&text);
    ie_bus_config_free(again);
    ie_bus_config_free(config);
    return 0;
}
