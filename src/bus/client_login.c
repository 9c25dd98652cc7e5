/* Who the client is, and whom it trusts: login, token, certificates. */
#include "client_parts.h"

#include <stdio.h>

#include "secret.h"

struct ie__client_login {
    char            *user;          /* NULL: none */
    char            *password_file; /* NULL: none */
    char            *token_file;    /* NULL: none */
    ie__tls_context *tls;           /* NULL: plain */
};

const char *const ie__client_url_options[] = {"password_file", "token_file", "ca", "cert",
                                              "key",           "tls_host",   NULL};

static bool
copy_text(char **out, const char *option, const char *in_url)
{
    const char *text = option != NULL ? option : in_url;

    *out = ie__strdup(text);
    return *out != NULL || text == NULL;
}

/* Found out now rather than at each connect; the secret is read again there, so that it can be
 * changed while the client runs, and is not kept meanwhile. */
static ie_status
check_file(const char *what, const char *path, ie_error *err)
{
    ie_buffer line = {NULL, 0, 0};
    ie_status status = path != NULL ? ie__secret_line(&line, what, path, err) : IE_OK;

    ie__secret_fini(&line);
    return status;
}

static ie_status
login_check(const ie__client_login *login, ie_error *err)
{
    ie_status status;

    if (login->token_file != NULL && (login->password_file != NULL || login->user != NULL))
        return ie_error_set(err, IE_EINVAL,
                            "token_file stands alone: a token says whose it is by itself");
    if ((login->user == NULL) != (login->password_file == NULL))
        return ie_error_set(err, IE_EINVAL, "%s",
                            login->user == NULL ? "password_file without a login"
                                                : "a login without a password_file");
    if (login->user != NULL && (login->user[0] == '\0' || strlen(login->user) > 255))
        return ie_error_set(err, IE_EINVAL, "login: 1 to 255 bytes");
    status = check_file("password_file", login->password_file, err);
    return status == IE_OK ? check_file("token_file", login->token_file, err) : status;
}

static const char *
either(const char *option, const ie__url *url, const char *name)
{
    return option != NULL ? option : ie__url_option_text(url, name);
}

static ie_status
tls_init(ie_bus_client *client, const ie__url *url, ie_error *err)
{
    ie_bus_client_options *o = &client->options;
    const char            *ca = either(o->tls_ca_file, url, "ca");
    const char            *cert = either(o->tls_cert_file, url, "cert");
    const char            *key = either(o->tls_key_file, url, "key");
    const char            *host = either(o->tls_host, url, "tls_host");

    o->tls_ca_file = o->tls_cert_file = o->tls_key_file = o->tls_host = NULL; /* the caller's */
    if (!client->address.is_tls) {
        if (ca == NULL && cert == NULL && key == NULL && host == NULL)
            return IE_OK;
        return ie_error_set(err, IE_EINVAL,
                            "settings for TLS, and an address without: use sockets://");
    }
    if ((cert == NULL) != (key == NULL))
        return ie_error_set(err, IE_EINVAL, "tls_cert_file and tls_key_file belong together");
    return ie__tls_client(&client->login->tls, ca, cert, key,
                          host != NULL ? host : client->address.host, err);
}

ie_status
ie__client_login_init(ie_bus_client *client, const ie__url *url, ie_error *err)
{
    ie_bus_client_options *o = &client->options;
    ie__client_login      *login = ie__calloc(1, sizeof *login);
    ie_status              status;

    client->login = login;
    if (login == NULL || !copy_text(&login->user, o->login, url->user) ||
        !copy_text(&login->password_file, o->password_file,
                   ie__url_option_text(url, "password_file")) ||
        !copy_text(&login->token_file, o->token_file, ie__url_option_text(url, "token_file")))
        return ie_error_set(err, IE_ENOMEM, "no memory for a client");
    o->login = o->password_file = o->token_file = NULL; /* the caller's */
    status = login_check(login, err);
    return status == IE_OK ? tls_init(client, url, err) : status;
}

ie_status
ie__client_secure(ie_bus_client *client, ie__stream *stream)
{
    return client->login->tls != NULL ? ie__stream_use_tls(stream, client->login->tls) : IE_OK;
}

void
ie__client_login_free(ie_bus_client *client)
{
    if (client->login == NULL)
        return;
    ie__free(client->login->user);
    ie__free(client->login->password_file);
    ie__free(client->login->token_file);
    ie__tls_context_free(client->login->tls);
    ie__free(client->login);
}

static void
put_secret(ie__builder *b, unsigned tag, const ie_buffer *line)
{
    unsigned char head[3];

    head[0] = (unsigned char)tag;
    ie__put16(head + 1, (unsigned)line->size);
    ie__build_bytes(b, head, sizeof head);
    ie__build_bytes(b, line->data, line->size);
}

ie_status
ie__client_login_put(const ie_bus_client *client, ie__builder *b, ie_error *err)
{
    const ie__client_login *login = client->login;
    ie_buffer               line = {NULL, 0, 0};
    ie_status               status = IE_OK;

    if (login->user != NULL)
        ie__build_text(b, IE__F_USER, login->user);
    if (login->password_file != NULL) {
        status = ie__secret_line(&line, "password_file", login->password_file, err);
        if (status == IE_OK)
            put_secret(b, IE__F_PASSWORD, &line);
    } else if (login->token_file != NULL) {
        status = ie__secret_line(&line, "token_file", login->token_file, err);
        if (status == IE_OK)
            put_secret(b, IE__F_TOKEN, &line);
    }
    ie__secret_fini(&line);
    return status;
}
