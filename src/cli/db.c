/* Opening somebody's database for a look, as a guest. */
#include "cli.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "log.h"

#define BUSY_MS_MAX 5000

cli_exit
cli_db_open(sqlite3 **db, const char *path)
{
    struct stat st;
    ie_error    error = IE_ERROR_INIT;

    if (stat(path, &st) != 0) {
        cli_say("cannot open database %s: %s", path,
                errno == ENOENT ? "there is no such file" : strerror(errno));
        if (errno == ENOENT)
            cli_hint("'ie migrate up %s' creates it with the tables", path);
        return errno == ENOENT ? CLI_NOT_FOUND : CLI_FAILED;
    }
    if (S_ISDIR(st.st_mode)) {
        cli_say("cannot open database %s: it is a directory", path);
        return CLI_FAILED;
    }
    if (ie__database_open(db, path, BUSY_MS_MAX, &error) == IE_OK)
        return CLI_OK;
    return cli_fail(&error);
}
