/*
 * ie reply: answer questions by running a command. Questions wait in a queue for one of the jobs,
 * threads that run the command, one question each.
 */
#include "cli.h"

#include <ie/bus.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core.h"
#include "json.h"

#define JOBS_MAX     64
#define STDERR_BYTES 4096 /* of the command's complaints, the end is kept */

const cli_flag cli_reply_flags[] = {
    {.name = "from", .value = "URL", .help = "the bus (socket://127.0.0.1:9100)"},
    {.name = "exec",
     .value = "CMD",
     .help = "for the shell: the question on its standard input, the answer on its standard output"
             " (required)"},
    {.name = "group", .value = "GROUP", .help = "share the questions with others of this group"},
    {.name = "jobs", .value = "N", .help = "run so many at a time (1)"},
    {.name = "timeout", .value = "TIME", .help = "kill a command that takes longer (30s)"},
    {.name = "content-type",
     .value = "TYPE",
     .help = "of the answers (JSON where it is JSON, else text, else bytes)"},
    {.name = "count", .value = "N", .help = "stop after N questions"},
    {.name = "quiet", .help = "say nothing about single questions", .letter = 'q'},
    {.name = NULL},
};

typedef struct question {
    struct question *next;
    uint64_t         token;
    size_t           bytes;
    char             topic[IE_TOPIC_BYTES_MAX + 1];
    char             data[];
} question;

typedef struct replying {
    const cli      *self;
    ie_bus_client  *client;
    int64_t         timeout_ms;
    int64_t         wanted; /* 0: no end */
    int64_t         done;
    pthread_mutex_t lock;
    pthread_cond_t  ready;
    question       *first;
    question       *last;
    bool            is_over;
} replying;

/* ---- one run of the command ---- */

typedef struct run {
    pid_t     pid;
    int       in;  /* to the command; -1: closed */
    int       out; /* from it */
    int       err;
    ie_buffer answer;
    char      complaint[STDERR_BYTES];
    size_t    complaint_bytes;
    bool      is_killed;
    bool      is_too_big;
} run;

static void
close_fd(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
    *fd = -1;
}

/* The command in its own shell, with default signals: ours are blocked. */
static int
run_spawn(run *self, const char *command, const char *topic)
{
    char                      *argv[] = {(char *)"/bin/sh", (char *)"-c", (char *)command, NULL};
    char                       variable[IE_TOPIC_BYTES_MAX + 16];
    char                     **environment;
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t          attributes;
    sigset_t                   none;
    sigset_t                   defaults;
    int                        pipes[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}};
    size_t                     count = 0;
    int                        error = 0;

    while (environ[count] != NULL)
        count++;
    environment = ie__realloc_array(NULL, count + 2, sizeof *environment);
    if (environment == NULL)
        return ENOMEM;
    (void)snprintf(variable, sizeof variable, "IE_TOPIC=%s", topic);
    memcpy(environment + 1, environ, (count + 1) * sizeof *environment);
    environment[0] = variable;
    for (size_t i = 0; i < 3 && error == 0; i++)
        error = pipe2(pipes[i], O_CLOEXEC) == 0 ? 0 : errno;
    (void)sigemptyset(&none);
    (void)sigfillset(&defaults);
    (void)posix_spawnattr_init(&attributes);
    (void)posix_spawnattr_setsigmask(&attributes, &none);
    (void)posix_spawnattr_setsigdefault(&attributes, &defaults);
    (void)posix_spawnattr_setpgroup(&attributes, 0); /* what it starts is ended with it */
    (void)posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
                                                    POSIX_SPAWN_SETPGROUP);
    (void)posix_spawn_file_actions_init(&actions);
    (void)posix_spawn_file_actions_adddup2(&actions, pipes[0][0], STDIN_FILENO);
    (void)posix_spawn_file_actions_adddup2(&actions, pipes[1][1], STDOUT_FILENO);
    (void)posix_spawn_file_actions_adddup2(&actions, pipes[2][1], STDERR_FILENO);
    if (error == 0)
        error = posix_spawn(&self->pid, argv[0], &actions, &attributes, argv, environment);
    (void)posix_spawn_file_actions_destroy(&actions);
    (void)posix_spawnattr_destroy(&attributes);
    ie__free(environment);
    close_fd(&pipes[0][0]);
    close_fd(&pipes[1][1]);
    close_fd(&pipes[2][1]);
    self->in = pipes[0][1];
    self->out = pipes[1][0];
    self->err = pipes[2][0];
    if (error != 0) {
        close_fd(&self->in);
        close_fd(&self->out);
        close_fd(&self->err);
    } else {
        (void)fcntl(self->in, F_SETFL, O_NONBLOCK);
    }
    return error;
}

static void
run_kill(run *self)
{
    self->is_killed = true;
    (void)kill(-self->pid, SIGKILL);
}

/* False: it is closed. */
static bool
run_read_answer(run *self)
{
    char    piece[16384];
    ssize_t got = read(self->out, piece, sizeof piece);

    if (got < 0 && errno == EINTR)
        return true;
    if (got <= 0)
        return false;
    self->is_too_big = self->is_too_big || self->answer.size + (size_t)got > IE_DATA_BYTES_MAX;
    if (!self->is_too_big && ie__buffer_add(&self->answer, piece, (size_t)got) != IE_OK)
        self->is_too_big = true;
    return true;
}

static bool
run_read_complaint(run *self)
{
    char    piece[STDERR_BYTES / 2];
    ssize_t got = read(self->err, piece, sizeof piece);

    if (got < 0 && errno == EINTR)
        return true;
    if (got <= 0)
        return false;
    if (self->complaint_bytes + (size_t)got > sizeof self->complaint) {
        const size_t drop = self->complaint_bytes + (size_t)got - sizeof self->complaint;

        memmove(self->complaint, self->complaint + drop, self->complaint_bytes - drop);
        self->complaint_bytes -= drop;
    }
    memcpy(self->complaint + self->complaint_bytes, piece, (size_t)got);
    self->complaint_bytes += (size_t)got;
    return true;
}

/* The question in, the answer and complaints out, until it has closed both, or its time is over. */
static void
run_talk(run *self, const question *asked, int64_t timeout_ms)
{
    const int64_t deadline_ms = cli_now_ms() + timeout_ms;
    size_t        written = 0;

    while (self->out >= 0 || self->err >= 0) {
        struct pollfd fds[3] = {{.fd = self->in, .events = POLLOUT},
                                {.fd = self->out, .events = POLLIN},
                                {.fd = self->err, .events = POLLIN}};
        const int64_t left_ms = deadline_ms - cli_now_ms();

        if (written == asked->bytes) {
            close_fd(&self->in);
            fds[0].fd = -1;
        }
        if (left_ms <= 0 && !self->is_killed)
            run_kill(self);
        if (poll(fds, 3, self->is_killed ? 1000 : (int)(left_ms < 60000 ? left_ms : 60000)) == 0 &&
            self->is_killed)
            return; /* somebody it started has left its group and holds the pipe */
        if (fds[0].revents != 0) {
            const ssize_t put = write(self->in, asked->data + written, asked->bytes - written);

            if (put > 0)
                written += (size_t)put;
            else if (errno != EAGAIN && errno != EINTR)
                written = asked->bytes; /* it does not want to read it all */
        }
        if (fds[1].revents != 0 && !run_read_answer(self))
            close_fd(&self->out);
        if (fds[2].revents != 0 && !run_read_complaint(self))
            close_fd(&self->err);
    }
}

/* The last line of what it wrote to standard error, or what can be said without one. */
static void
run_complaint(run *self, int status, char *out, size_t size)
{
    size_t end = self->complaint_bytes;
    size_t begin;

    while (end > 0 && (self->complaint[end - 1] == '\n' || self->complaint[end - 1] == '\r'))
        end--;
    begin = end;
    while (begin > 0 && self->complaint[begin - 1] != '\n')
        begin--;
    if (self->is_too_big)
        (void)snprintf(out, size, "its answer is larger than %d bytes", IE_DATA_BYTES_MAX);
    else if (self->is_killed)
        (void)snprintf(out, size, "it took too long and was ended");
    else if (end > begin)
        (void)snprintf(out, size, "%.*s", (int)(end - begin), self->complaint + begin);
    else if (WIFSIGNALED(status))
        (void)snprintf(out, size, "ended by signal %d", WTERMSIG(status));
    else
        (void)snprintf(out, size, "exit status %d", WEXITSTATUS(status));
}

/* ---- answering ---- */

static const char *
type_of(const cli *self, const ie_buffer *answer)
{
    if (cli_text(self, "content-type") != NULL)
        return cli_text(self, "content-type");
    if (answer->size == 0 || ie__json_check(answer->data, answer->size, NULL) == IE_OK)
        return NULL;
    return ie__utf8_is_valid(answer->data, answer->size) ? "text/plain"
                                                         : "application/octet-stream";
}

static void
decline(replying *r, const question *asked, const char *reason)
{
    (void)ie_bus_client_decline(r->client, asked->token, reason, NULL);
    if (!cli_has(r->self, "quiet"))
        cli_say("%s: declined: %s", asked->topic, reason);
}

static void
answer(replying *r, const question *asked)
{
    run      one = {.in = -1, .out = -1, .err = -1};
    ie_event said = IE_EVENT_INIT;
    ie_error error = IE_ERROR_INIT;
    char     reason[300];
    int      status = 0;
    int      fault = run_spawn(&one, cli_text(r->self, "exec"), asked->topic);

    if (fault != 0) {
        (void)snprintf(reason, sizeof reason, "cannot start a command: %s", strerror(fault));
        decline(r, asked, reason);
        return;
    }
    run_talk(&one, asked, r->timeout_ms);
    close_fd(&one.in);
    close_fd(&one.out);
    close_fd(&one.err);
    while (waitpid(one.pid, &status, 0) < 0 && errno == EINTR)
        continue;
    if (status != 0 || one.is_too_big) {
        run_complaint(&one, status, reason, sizeof reason);
        reason[ie__utf8_valid_prefix(reason, strlen(reason))] = '\0';
        decline(r, asked, reason);
    } else {
        said.data = one.answer.size != 0 ? one.answer.data : NULL;
        said.data_bytes = one.answer.size;
        said.content_type = type_of(r->self, &one.answer);
        if (ie_bus_client_answer(r->client, asked->token, &said, &error) != IE_OK &&
            error.status != IE_ENOTFOUND) /* the asker has gone: no news */
            decline(r, asked, error.message);
    }
    ie_buffer_fini(&one.answer);
}

static void *
job_main(void *arg)
{
    replying *r = arg;

    (void)pthread_mutex_lock(&r->lock);
    for (;;) {
        question *asked;

        while (r->first == NULL && !r->is_over)
            (void)pthread_cond_wait(&r->ready, &r->lock);
        asked = r->first;
        if (asked == NULL)
            break; /* over, and nothing is left */
        r->first = asked->next;
        if (r->first == NULL)
            r->last = NULL;
        (void)pthread_mutex_unlock(&r->lock);
        answer(r, asked);
        ie__free(asked);
        (void)pthread_mutex_lock(&r->lock);
        if (++r->done == r->wanted)
            cli_wait_wake();
    }
    (void)pthread_mutex_unlock(&r->lock);
    return NULL;
}

static void
on_question(void *user, const ie_event *asked, uint64_t token)
{
    replying *r = user;
    question *made = ie__calloc(1, sizeof *made + asked->data_bytes);

    if (made == NULL) {
        (void)ie_bus_client_decline(r->client, token, "out of memory", NULL);
        return;
    }
    made->token = token;
    made->bytes = asked->data_bytes;
    (void)snprintf(made->topic, sizeof made->topic, "%s", asked->topic);
    if (asked->data_bytes != 0)
        memcpy(made->data, asked->data, asked->data_bytes);
    (void)pthread_mutex_lock(&r->lock);
    if (r->last != NULL)
        r->last->next = made;
    else
        r->first = made;
    r->last = made;
    (void)pthread_cond_signal(&r->ready);
    (void)pthread_mutex_unlock(&r->lock);
}

/* ---- the command ---- */

/* Until there were enough, or somebody ends it. */
static void
reply_wait(replying *r)
{
    bool is_over = false;

    while (!is_over && cli_wait(-1) != CLI_SIGNALLED) {
        (void)pthread_mutex_lock(&r->lock);
        is_over = r->wanted != 0 && r->done >= r->wanted;
        (void)pthread_mutex_unlock(&r->lock);
    }
}

static cli_exit
reply_run(replying *r, int64_t jobs)
{
    const cli *self = r->self;
    pthread_t  threads[JOBS_MAX];
    size_t     started = 0;
    ie_error   error = IE_ERROR_INIT;
    uint32_t   id = 0;
    cli_exit   code = CLI_OK;

    while (started < (size_t)jobs && pthread_create(&threads[started], NULL, job_main, r) == 0)
        started++;
    if (started == 0) {
        cli_say("cannot start a thread");
        code = CLI_FAILED;
    }
    if (code == CLI_OK &&
        (ie_bus_client_serve(r->client, self->operands[0], cli_text(self, "group"), on_question, r,
                             &id, &error) != IE_OK ||
         ie_bus_client_wait_subscribed(r->client, 5000, &error) != IE_OK))
        code = error.status == IE_EINVAL ? cli_usage(self, "%s", error.message) : cli_fail(&error);
    if (code == CLI_OK) {
        cli_say("answering %s", self->operands[0]);
        reply_wait(r);
        (void)ie_bus_client_unsubscribe(r->client, id, NULL); /* nothing new; what is there ends */
    }
    (void)pthread_mutex_lock(&r->lock);
    r->is_over = true;
    (void)pthread_cond_broadcast(&r->ready);
    (void)pthread_mutex_unlock(&r->lock);
    for (size_t i = 0; i < started; i++)
        (void)pthread_join(threads[i], NULL);
    return code;
}

cli_exit
cli_reply(cli *self)
{
    replying r = {.self = self};
    int64_t  jobs = 0;
    cli_exit code;

    if (cli_text(self, "exec") == NULL)
        return cli_usage(self, "--exec is required: what answers the questions?");
    if (!cli_number(self, "jobs", 1, 1, JOBS_MAX, &jobs) ||
        !cli_number(self, "count", 0, 1, INT64_MAX, &r.wanted) ||
        !cli_duration(self, "timeout", 30000, &r.timeout_ms))
        return CLI_USAGE;
    cli_wait_begin();
    code = cli_reach_bus(self, "from", NULL, &r.client);
    if (code != CLI_OK)
        return code;
    (void)pthread_mutex_init(&r.lock, NULL);
    (void)pthread_cond_init(&r.ready, NULL);
    code = reply_run(&r, jobs);
    ie_bus_client_close(r.client);
    (void)pthread_cond_destroy(&r.ready);
    (void)pthread_mutex_destroy(&r.lock);
    return code;
}
