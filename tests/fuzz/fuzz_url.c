/* URLs of strangers: no part outside of the storage, no control characters, no password shown. */
#include "url.h"

#include <string.h>

#include "fuzz.h"

static void
claim_clean(const char *text)
{
    for (; *text != '\0'; text++)
        CLAIM((unsigned char)*text >= 0x20 && *text != 0x7F);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const NONE[] = {NULL};
    static ie__url           url;
    ie_error                 err = IE_ERROR_INIT;
    char                    *text = malloc(size + 1);
    char                    *shown = malloc(4 * size + 8);

    CLAIM(text != NULL && shown != NULL);
    if (size > 0)
        memcpy(text, data, size);
    text[size] = '\0';
    ie__url_redact(shown, 4 * size + 8, text);
    claim_clean(shown);
    if (ie__url_parse(&url, text, &err) == IE_OK) {
        int64_t number = 0;

        CLAIM(url.scheme[0] != '\0' && url.port >= 0 && url.port <= 65535);
        claim_clean(url.scheme);
        claim_clean(url.host);
        claim_clean(url.path);
        if (url.user != NULL)
            claim_clean(url.user);
        if (url.password != NULL) {
            const char *raw = strstr(text, "://") + 3;
            const char *sign = strstr(shown, ":***@");

            claim_clean(url.password);
            CLAIM(url.user != NULL && raw != NULL && sign != NULL);
        }
        for (size_t i = 0; i < url.option_count; i++) {
            claim_clean(url.options[i].name);
            claim_clean(url.options[i].value);
            CLAIM(ie__url_option_text(&url, url.options[i].name) == url.options[i].value);
            if (ie__url_option_number(&number, &url, url.options[i].name, 0, -5, 5, NULL) == IE_OK)
                CLAIM(number >= -5 && number <= 5);
        }
        CLAIM((ie__url_known_options(&url, NONE, NULL) == IE_OK) == (url.option_count == 0));
    } else {
        claim_clean(err.message);
        CLAIM(err.message[0] != '\0');
    }
    free(shown);
    free(text);
    return 0;
}
