/* ie query: ask a topic of a bus. */
#include "cli.h"

#include <ie/bus.h>

#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "core.h"

const cli_flag cli_query_flags[] = {
    {.name = "to", .value = "URL", .help = "the bus (socket://127.0.0.1:9100)"},
    {.name = "timeout", .value = "TIME", .help = "wait at most so long for the answer (5s)"},
    {.name = "all", .help = "ask all that answer the topic, and print each answer"},
    {.name = "content-type", .value = "TYPE", .help = "of the data (application/json)"},
    {.name = NULL},
};

typedef struct asking {
    pthread_mutex_t lock;
    bool            is_over;
    ie_status       status;
    uint32_t        code;
    uint32_t        answers;
    char            reason[256];
} asking;

/* One answer, one line, unless it brings line feeds of its own. */
static void
print_answer(const ie_event *answer)
{
    const char *data = answer->data;

    (void)fwrite(data != NULL ? data : "", 1, answer->data_bytes, stdout);
    if (answer->data_bytes == 0 || data[answer->data_bytes - 1] != '\n')
        (void)fputc('\n', stdout);
    (void)fflush(stdout);
}

static void
replied(void *user, const ie_bus_reply *reply)
{
    asking *a = user;

    (void)pthread_mutex_lock(&a->lock);
    if (reply->event != NULL) {
        print_answer(reply->event);
    } else {
        a->is_over = true;
        a->status = reply->status;
        a->code = reply->code;
        a->answers = reply->answers;
        (void)snprintf(a->reason, sizeof a->reason, "%s", reply->reason);
        cli_wait_wake();
    }
    (void)pthread_mutex_unlock(&a->lock);
}

static cli_exit
tell_end(const cli *self, const asking *a)
{
    ie_error error = IE_ERROR_INIT;

    if (a->status == IE_OK && a->code != IE_BUS_CODE_NONE)
        cli_say("%" PRIu32 " answered; %s", a->answers, a->reason);
    if (a->status == IE_OK)
        return CLI_OK;
    if (a->status == IE_ENOTFOUND) {
        cli_say("%s: %s", self->operands[0], a->reason);
        cli_hint("'ie bus topics' lists what is answered; 'ie reply' answers");
        return CLI_UNREACHABLE;
    }
    (void)ie_error_set(&error, a->status, "%s: %s", self->operands[0], a->reason);
    return cli_fail(&error);
}

static cli_exit
query_run(cli *self, const ie_event *question, int64_t timeout_ms)
{
    asking         a = {.is_over = false};
    ie_bus_client *client = NULL;
    ie_error       error = IE_ERROR_INIT;
    cli_exit       code;
    bool           is_over = false;

    cli_wait_begin();
    code = cli_reach_bus(self, "to", NULL, &client);
    if (code != CLI_OK)
        return code;
    (void)pthread_mutex_init(&a.lock, NULL);
    if (ie_bus_client_query(client, question, (uint32_t)timeout_ms, cli_has(self, "all") ? 0 : 1,
                            replied, &a, NULL, &error) != IE_OK)
        code = error.status == IE_EINVAL ? cli_usage(self, "%s", error.message) : cli_fail(&error);
    while (code == CLI_OK && !is_over) {
        if (cli_wait(-1) == CLI_SIGNALLED)
            code = CLI_FAILED;
        (void)pthread_mutex_lock(&a.lock);
        is_over = a.is_over;
        (void)pthread_mutex_unlock(&a.lock);
    }
    ie_bus_client_close(client); /* no callback after this */
    if (code == CLI_OK)
        code = tell_end(self, &a);
    (void)pthread_mutex_destroy(&a.lock);
    return code;
}

cli_exit
cli_query(cli *self)
{
    const char *data = self->operand_count > 1 ? self->operands[1] : NULL;
    char       *input = NULL;
    ie_event    question = IE_EVENT_INIT;
    int64_t     timeout_ms = 0;
    cli_exit    code = CLI_OK;

    if (!cli_duration(self, "timeout", 5000, &timeout_ms))
        return CLI_USAGE;
    if (timeout_ms < 1 || timeout_ms > UINT32_MAX)
        return cli_usage(self, "--timeout: from 1ms to 49d");
    question.topic = self->operands[0];
    question.content_type = cli_text(self, "content-type");
    question.data = data;
    question.data_bytes = data != NULL ? strlen(data) : 0;
    if (data == NULL ? cli_input_is_given() : strcmp(data, "-") == 0) {
        code = cli_input_read(&input, &question.data_bytes);
        question.data = question.data_bytes != 0 ? input : NULL;
    }
    if (question.data_bytes == 0)
        question.data = NULL;
    if (code == CLI_OK)
        code = query_run(self, &question, timeout_ms);
    ie__free(input);
    return code;
}
