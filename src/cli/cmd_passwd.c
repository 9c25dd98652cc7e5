/* ie bus passwd: passwords and tokens of a users_file. No secret is ever an argument. */
#include "cli.h"

#include <ie/bus_server.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#define PASSWORD_MAX 512

const cli_flag cli_passwd_flags[] = {
    {.name = "token", .help = "make a random token and print it, this once"},
    {.name = "delete", .help = "remove the user, password and token"},
    {.name = NULL},
};

/* Not optimised away. */
static void
wipe(void *bytes, size_t size)
{
    explicit_bzero(bytes, size);
}

/* A line of standard input, byte by byte: what follows is not ours, and no buffer keeps it. False:
 * said why. */
static bool
read_line(char out[PASSWORD_MAX + 1])
{
    size_t bytes = 0;

    for (;;) {
        char          c;
        const ssize_t got = read(STDIN_FILENO, &c, 1);

        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0 || c == '\n')
            break;
        if (bytes == PASSWORD_MAX) {
            wipe(out, bytes);
            cli_say("a password has at most %d bytes", PASSWORD_MAX);
            return false;
        }
        out[bytes++] = c;
    }
    if (bytes > 0 && out[bytes - 1] == '\r')
        bytes--;
    out[bytes] = '\0';
    if (bytes == 0)
        cli_say("no password was given");
    return bytes != 0;
}

/* Ask at the terminal without showing what is typed. */
static bool
ask(const char *question, char out[PASSWORD_MAX + 1])
{
    struct termios was;
    struct termios quiet;
    bool           is_read;

    if (tcgetattr(STDIN_FILENO, &was) != 0)
        return false;
    quiet = was;
    quiet.c_lflag &= ~(tcflag_t)ECHO;
    (void)tcsetattr(STDIN_FILENO, TCSAFLUSH, &quiet);
    (void)fprintf(stderr, "%s: ", question);
    is_read = read_line(out);
    (void)tcsetattr(STDIN_FILENO, TCSAFLUSH, &was);
    (void)fprintf(stderr, "\n");
    return is_read;
}

static bool
get_password(char out[PASSWORD_MAX + 1])
{
    char again[PASSWORD_MAX + 1];
    bool is_same;

    if (isatty(STDIN_FILENO) == 0)
        return read_line(out);
    if (!ask("password", out))
        return false;
    is_same = ask("once more", again) && strcmp(out, again) == 0;
    wipe(again, sizeof again);
    if (!is_same)
        cli_say("the two differ; nothing was changed");
    return is_same;
}

static cli_exit
make_token(const char *path, const char *user)
{
    char     token[IE_BUS_TOKEN_SIZE];
    ie_error error = IE_ERROR_INIT;

    if (ie_bus_users_make_token(path, user, token, &error) != IE_OK)
        return cli_fail(&error);
    (void)printf("%s\n", token);
    wipe(token, sizeof token);
    return CLI_OK;
}

static cli_exit
set_password(const char *path, const char *user)
{
    char      password[PASSWORD_MAX + 1];
    ie_error  error = IE_ERROR_INIT;
    sigset_t  mask;
    ie_status status;

    /* Stopped while asking, the terminal would stay silent. */
    (void)sigemptyset(&mask);
    (void)sigaddset(&mask, SIGINT);
    (void)sigaddset(&mask, SIGTSTP);
    if (isatty(STDIN_FILENO) != 0)
        (void)sigprocmask(SIG_BLOCK, &mask, NULL);
    if (!get_password(password)) {
        wipe(password, sizeof password);
        return CLI_FAILED;
    }
    status = ie_bus_users_set_password(path, user, password, strlen(password), &error);
    wipe(password, sizeof password);
    return status == IE_OK ? CLI_OK : cli_fail(&error);
}

cli_exit
cli_passwd(cli *self)
{
    const char *path = self->operands[0];
    const char *user = self->operands[1];
    ie_error    error = IE_ERROR_INIT;

    if (cli_has(self, "delete") && cli_has(self, "token"))
        return cli_usage(self, "'--token' and '--delete' exclude each other");
    if (cli_has(self, "token"))
        return make_token(path, user);
    if (!cli_has(self, "delete"))
        return set_password(path, user);
    return ie_bus_users_remove(path, user, &error) == IE_OK ? CLI_OK : cli_fail(&error);
}
