/* Standard input as the data of an event or a question. */
#include "cli.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core.h"

bool
cli_input_is_given(void)
{
    struct stat st;

    return fstat(STDIN_FILENO, &st) == 0 && (S_ISFIFO(st.st_mode) || S_ISREG(st.st_mode));
}

cli_exit
cli_input_read(char **data, size_t *bytes)
{
    char   *read_data = ie__alloc(IE_DATA_BYTES_MAX + 1);
    size_t  used = 0;
    ssize_t got = 0;

    *data = read_data;
    *bytes = 0;
    if (read_data == NULL) {
        cli_say("out of memory");
        return CLI_FAILED;
    }
    while (used <= IE_DATA_BYTES_MAX &&
           ((got = read(STDIN_FILENO, read_data + used, IE_DATA_BYTES_MAX + 1 - used)) > 0 ||
            (got < 0 && errno == EINTR)))
        used += got > 0 ? (size_t)got : 0;
    if (got < 0) {
        cli_say("cannot read standard input: %s", strerror(errno));
        return CLI_FAILED;
    }
    *bytes = used; /* one too many is refused with the limit in the message */
    return CLI_OK;
}
