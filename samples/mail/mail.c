/*
 * A command and a query on the socket bus: "store this e-mail", and "which e-mails are about ...?".
 *
 * Two parties in one program: the mailbox, which handles the command and answers the query, and a
 * user, who sends the one and asks the other. They know topics only, not each other; put them on
 * two machines and nothing here changes but the address.
 */
#include <ie/ie.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#define WAIT_MS 5000

static int
failed(const ie_error *err)
{
    (void)fprintf(stderr, "mail: %s\n", err->message);
    return 1;
}

/* ---- the mailbox: its handlers run on its client's thread, one after the other -------------- */

typedef struct mailbox {
    ie_bus_client *bus;
    json_t        *mails; /* an array */
} mailbox;

/* The command. IE_OK acknowledges it: only then does the sender hear that all is well. */
static ie_status
on_new(void *user, const ie_event *command)
{
    mailbox *self = user;
    json_t  *mail = json_loadb(command->data, command->data_bytes, 0, NULL);

    if (!json_is_string(json_object_get(mail, "subject"))) {
        json_decref(mail);
        return IE_EREFUSED; /* will never be an e-mail */
    }
    return json_array_append_new(self->mails, mail) == 0 ? IE_OK : IE_EHANDLER;
}

/* The query: its data is a word of the subject, the answer an array of e-mails. */
static void
on_find(void *user, const ie_event *question, uint64_t token)
{
    mailbox *self = user;
    json_t  *word = json_loadb(question->data, question->data_bytes, JSON_DECODE_ANY, NULL);
    json_t  *found = json_array();
    json_t  *mail;
    size_t   i;
    ie_event answer = IE_EVENT_INIT;
    char    *text;

    if (!json_is_string(word)) {
        (void)ie_bus_client_decline(self->bus, token, "the question is a word of the subject",
                                    NULL);
    } else {
        json_array_foreach(self->mails, i, mail)
        {
            const char *subject = json_string_value(json_object_get(mail, "subject"));

            if (strstr(subject, json_string_value(word)) != NULL)
                (void)json_array_append(found, mail);
        }
        text = json_dumps(found, JSON_COMPACT);
        answer.data = text;
        answer.data_bytes = text != NULL ? strlen(text) : 0;
        (void)ie_bus_client_answer(self->bus, token, &answer, NULL);
        free(text);
    }
    json_decref(word);
    json_decref(found);
}

/* ---- the user ------------------------------------------------------------------------------- */

static ie_status
send_mail(ie_bus_client *bus, const char *subject, const char *body, ie_error *err)
{
    json_t   *mail = json_pack("{s:s, s:s}", "subject", subject, "body", body);
    char     *text = json_dumps(mail, JSON_COMPACT);
    ie_event  command = IE_EVENT_INIT;
    ie_status status;

    command.topic = "mail.new";
    command.data = text;
    command.data_bytes = text != NULL ? strlen(text) : 0;
    status =
        ie_bus_client_publish_wait(bus, &command, IE_BUS_PUBLISH_REQUIRE_SUBSCRIBER, WAIT_MS, err);
    if (status == IE_OK)
        (void)printf("sent: %s\n", subject);
    free(text);
    json_decref(mail);
    return status;
}

static ie_status
find_mails(ie_bus_client *bus, const char *word, ie_error *err)
{
    char      question[64];
    ie_buffer answer = {NULL, 0, 0};
    json_t   *found;
    json_t   *mail;
    size_t    i;
    ie_status status;
    const int bytes = snprintf(question, sizeof question, "\"%s\"", word);

    status =
        ie_bus_client_query_wait(bus, "mail.find", question, (size_t)bytes, WAIT_MS, &answer, err);
    if (status != IE_OK)
        return status;
    found = json_loadb(answer.data, answer.size, 0, NULL);
    (void)printf("about %s: %zu\n", word, json_array_size(found));
    json_array_foreach(found, i, mail)
    {
        (void)printf("  %s: %s\n", json_string_value(json_object_get(mail, "subject")),
                     json_string_value(json_object_get(mail, "body")));
    }
    json_decref(found);
    ie_buffer_fini(&answer);
    return IE_OK;
}

/* ---- together ------------------------------------------------------------------------------- */

static int
exchange(mailbox *box, ie_bus_client *user)
{
    ie_error err = IE_ERROR_INIT;
    uint32_t commands;
    uint32_t queries;

    if (ie_bus_client_subscribe(box->bus, "mail.new", "mailbox", 0, on_new, box, &commands, &err) !=
            IE_OK ||
        ie_bus_client_serve(box->bus, "mail.find", NULL, on_find, box, &queries, &err) != IE_OK ||
        ie_bus_client_wait_subscribed(box->bus, WAIT_MS, &err) != IE_OK ||
        ie_bus_client_wait_connected(user, WAIT_MS, &err) != IE_OK)
        return failed(&err);
    if (send_mail(user, "Invoice 17", "Please pay.", &err) != IE_OK ||
        send_mail(user, "Lunch?", "At noon.", &err) != IE_OK ||
        send_mail(user, "Invoice 18", "Please pay this one, too.", &err) != IE_OK ||
        find_mails(user, "Invoice", &err) != IE_OK || find_mails(user, "Holiday", &err) != IE_OK)
        return failed(&err);
    /* The mailbox leaves: the next question has its answer at once all the same. */
    if (ie_bus_client_unsubscribe(box->bus, commands, &err) != IE_OK ||
        ie_bus_client_unsubscribe(box->bus, queries, &err) != IE_OK)
        return failed(&err);
    if (find_mails(user, "Lunch", &err) == IE_OK)
        return 1;
    (void)printf("the mailbox is away: %s\n", err.message);
    return 0;
}

int
main(void)
{
    const char           *listen = "socket://127.0.0.1:0"; /* any free port */
    ie_bus_server_options options;
    ie_bus_client_options to;
    ie_bus_server        *bus = NULL;
    ie_bus_client        *user = NULL;
    mailbox               box = {NULL, json_array()};
    ie_error              err = IE_ERROR_INIT;
    int                   status = 1;

    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.listen = &listen;
    options.listen_count = 1;
    IE_BUS_CLIENT_OPTIONS_INIT(&to);
    if (ie_bus_server_start(&bus, &options, &err) == IE_OK) {
        to.url = ie_bus_server_address(bus, 0);
        if (ie_bus_client_open(&box.bus, &to, &err) == IE_OK &&
            ie_bus_client_open(&user, &to, &err) == IE_OK)
            status = exchange(&box, user);
    }
    if (err.status != IE_OK)
        (void)failed(&err);
    ie_bus_client_close(user); /* disconnects in order; NULL is fine */
    ie_bus_client_close(box.bus);
    ie_bus_server_close(bus);
    json_decref(box.mails);
    return status;
}
