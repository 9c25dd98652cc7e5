/* Who may connect: the users_file, logins, tokens, and what becomes of those who guess. */
#include <check.h>
#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "bus_support.h"
#include "core.h"
#include "security_support.h"
#include "throttle.h"
#include "users.h"

#define PASSWORD "planted-secret-tram 77"

static ie_bus_server        *server;
static ie_bus_server_options options;

static void
set_up(void)
{
    (void)test_dir_make();
    server = NULL;
    IE_BUS_SERVER_OPTIONS_INIT(&options);
    options.logger = log_kept;
}

static void
tear_down(void)
{
    ie_bus_server_close(server);
    test_dir_remove();
}

static void
start_with_users(void)
{
    options.users_file = test_path("users");
    server = bus_start(&options);
}

static void
add_user(const char *user, const char *password)
{
    ie_error err = IE_ERROR_INIT;

    ck_assert_msg(ie_bus_users_set_password(test_path("users"), user, password, strlen(password),
                                            &err) == IE_OK,
                  "%s", err.message);
}

/* As add_user(), with a hash that costs a fiftieth: the line says so itself. */
static void
add_quick_user(const char *user, const char *password)
{
    static const unsigned char SALT[IE__SALT_BYTES] = {1, 2, 3};
    unsigned char              hash[IE__HASH_BYTES];
    FILE                      *file;

    ck_assert_int_eq(EVP_PBE_scrypt(password, strlen(password), SALT, sizeof SALT, 2048, 8, 1, 0,
                                    hash, sizeof hash),
                     1);
    (void)umask(077);
    file = fopen(test_path("users"), "a");
    ck_assert_ptr_nonnull(file);
    fprintf(file, "%s:scrypt:2048:8:1:", user);
    for (size_t i = 0; i < sizeof SALT; i++)
        fprintf(file, "%02x", SALT[i]);
    fprintf(file, ":");
    for (size_t i = 0; i < sizeof hash; i++)
        fprintf(file, "%02x", hash[i]);
    fprintf(file, "\n");
    ck_assert_int_eq(fclose(file), 0);
}

/* ---- the file ------------------------------------------------------------------------------- */

START_TEST(the_file_is_made_changed_and_emptied)
{
    char        token[IE_BUS_TOKEN_SIZE] = "";
    char        second[IE_BUS_TOKEN_SIZE] = "";
    ie__users  *users = NULL;
    ie__scrypt  stored;
    struct stat st;
    ie_error    err = IE_ERROR_INIT;
    const char *path = test_path("users");

    (void)umask(0);
    add_user("ann", "first");
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_int_eq(st.st_mode & 0777, 0600);
    add_user("bob", PASSWORD);
    add_user("ann", "other");
    ck_assert_int_eq(ie_bus_users_make_token(path, "ann", token, &err), IE_OK);
    ck_assert_int_eq(ie_bus_users_make_token(path, "ann", second, &err), IE_OK);
    ck_assert_str_ne(token, second);
    ck_assert_int_eq(stat(path, &st), 0);
    ck_assert_int_eq(st.st_mode & 0777, 0600);

    ck_assert_int_eq(ie__users_load(&users, path, &err), IE_OK);
    ck_assert(ie__users_password(users, "ann", &stored));
    ck_assert(ie__scrypt_matches(&stored, "other", 5));
    ck_assert(!ie__scrypt_matches(&stored, "first", 5));
    ck_assert(!ie__users_password(users, "eve", &stored));
    ck_assert_uint_eq(stored.n, IE__SCRYPT_N);                        /* the decoy costs the same */
    ck_assert_ptr_null(ie__users_token(users, token, strlen(token))); /* replaced */
    ck_assert_str_eq(ie__users_token(users, second, strlen(second)), "ann");
    ck_assert_ptr_null(ie__users_token(users, second, strlen(second) - 1));
    ie__users_free(users);

    ck_assert_int_eq(ie_bus_users_remove(path, "ann", &err), IE_OK);
    ck_assert_int_eq(ie_bus_users_remove(path, "ann", &err), IE_ENOTFOUND);
    ck_assert_ptr_nonnull(strstr(err.message, "has no user 'ann'"));
    ck_assert_int_eq(ie__users_load(&users, path, NULL), IE_OK);
    ck_assert(!ie__users_has(users, "ann", false) && !ie__users_has(users, "ann", true));
    ck_assert(ie__users_has(users, "bob", false));
    ie__users_free(users);
    ck_assert_int_eq(access(test_path("users.new"), F_OK), -1);
}
END_TEST

START_TEST(a_file_that_others_can_read_is_refused)
{
    ie_error err = IE_ERROR_INIT;

    add_user("ann", "x");
    ck_assert_int_eq(chmod(test_path("users"), 0640), 0);
    options.users_file = test_path("users");
    ck_assert_int_eq(ie_bus_server_start(&server, &options, &err), IE_EDENIED);
    ck_assert_ptr_nonnull(
        strstr(err.message, "is open to others (mode 0640); close it with: chmod 600 "));
    ck_assert_int_eq(ie_bus_users_set_password(test_path("users"), "bob", "y", 1, NULL),
                     IE_EDENIED);
    ck_assert_int_eq(access(test_path("users.new"), F_OK), -1);
    ie_error_clear(&err);
    options.users_file = test_path("absent");
    ck_assert_int_eq(ie_bus_server_start(&server, &options, &err), IE_EIO);
    ck_assert_ptr_nonnull(strstr(err.message, "absent: No such file"));
    ie_error_clear(&err);
    options.users_file = test_path("");
    ck_assert_int_eq(ie_bus_server_start(&server, &options, &err), IE_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "is a directory, not a file"));
}
END_TEST

START_TEST(a_malformed_line_is_named_and_opens_nothing)
{
    static const struct {
        const char *line;
        const char *message;
    } CASES[] = {
        {"ann", "after the name comes scrypt or sha256"},
        {"ann:", "after the name comes scrypt or sha256"},
        {"ann:plain:secret", "after the name comes scrypt or sha256"},
        {":scrypt:1", "a user's name has 1 to 64 bytes"},
        {"*:scrypt:1", "a user's name is made of letters"},
        {"anonymous:scrypt:1", "this name has a meaning of its own"},
        {"ann:scrypt", "three numbers have to follow 'scrypt'"},
        {"ann:scrypt:16384:8", "three numbers have to follow 'scrypt'"},
        {"ann:scrypt:16384:x:1:00:00", "not a number"},
        {"ann:scrypt:16383:8:1:00:00", "these numbers are none for scrypt"},
        {"ann:scrypt:1048576:64:1:00:00", "these numbers are none for scrypt"},
        {"ann:scrypt:1024:8:1:00:00", "a salt of 32 hexadecimal digits belongs here"},
        {"ann:sha256:00", "a hash of 64 hexadecimal digits belongs here"},
        {"ann:sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdeg",
         ":74: a hash"},
        {"ann:sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef:x",
         "nothing more belongs on this line"},
    };

    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        ie__users *users = NULL;
        ie_error   err = IE_ERROR_INIT;
        char       text[200];

        (void)snprintf(text, sizeof text, "# users\n%s\n", CASES[i].line);
        ck_assert_int_eq(ie__users_parse(&users, text, strlen(text), "users", &err), IE_EINVAL);
        ck_assert_msg(strncmp(err.message, "users:2:", 8) == 0, "%s", err.message);
        ck_assert_msg(strstr(err.message, CASES[i].message) != NULL, "%s: %s", CASES[i].line,
                      err.message);
        ck_assert_ptr_null(strstr(err.message, "0123456789abcdef")); /* no hash in a message */
    }
}
END_TEST

/* ---- logging in ----------------------------------------------------------------------------- */

static ie_status
try_login(const char *login, const char *password_file, const char *token_file, ie_error *err)
{
    ie_bus_client_options client;
    ie_bus_client        *opened = NULL;
    ie_status             status;

    IE_BUS_CLIENT_OPTIONS_INIT(&client);
    client.url = ie_bus_server_address(server, 0);
    client.login = login;
    client.password_file = password_file;
    client.token_file = token_file;
    client.logger = log_kept;
    client.reconnect_delay_ms = client.reconnect_delay_ms_max = 60000;
    status = ie_bus_client_open(&opened, &client, err);
    if (status != IE_OK)
        return status;
    /* The first attempt's end is what is asked for. */
    for (int i = 0; i < 2000; i++) {
        ie_error_clear(err);
        status = ie_bus_client_wait_connected(opened, 20, err);
        if (status != IE_ETIMEDOUT)
            break;
    }
    ie_bus_client_close(opened);
    return status;
}

START_TEST(a_login_is_right_or_refused)
{
    ie_error err = IE_ERROR_INIT;

    add_quick_user("ann", PASSWORD);
    options.flags = IE_BUS_SERVER_NO_ANONYMOUS;
    start_with_users();
    write_file("right", PASSWORD "\n", 0600);
    write_file("wrong", "planted-secret-wrong\n", 0400);
    ck_assert_msg(try_login("ann", test_path("right"), NULL, &err) == IE_OK, "%s", err.message);
    ck_assert(log_has("connected as ann"));
    ck_assert_int_eq(try_login("ann", test_path("wrong"), NULL, &err), IE_EREFUSED);
    ck_assert_ptr_nonnull(strstr(err.message, "user name, password or token is wrong"));
    ck_assert_int_eq(try_login("eve", test_path("right"), NULL, &err), IE_EREFUSED);
    ck_assert_ptr_nonnull(strstr(err.message, "user name, password or token is wrong"));
    ck_assert_int_eq(try_login(NULL, NULL, NULL, &err), IE_EREFUSED);
    ck_assert_ptr_nonnull(strstr(err.message, "this bus wants to know who you are"));
    ck_assert(COUNTER_IS(server, logins_failed, 2));
    ck_assert(!log_has("planted-secret"));
}
END_TEST

START_TEST(a_token_says_by_itself_whose_it_is)
{
    char     token[IE_BUS_TOKEN_SIZE] = "";
    ie_error err = IE_ERROR_INIT;

    ck_assert_int_eq(ie_bus_users_make_token(test_path("users"), "shop", token, NULL), IE_OK);
    options.flags = IE_BUS_SERVER_NO_ANONYMOUS;
    start_with_users();
    write_file("token", token, 0600);
    ck_assert_msg(try_login(NULL, NULL, test_path("token"), &err) == IE_OK, "%s", err.message);
    ck_assert(log_has("connected as shop"));
    ck_assert(!log_has(token));
    token[0] = token[0] == 'a' ? 'b' : 'a';
    write_file("token", token, 0600);
    ck_assert_int_eq(try_login(NULL, NULL, test_path("token"), &err), IE_EREFUSED);
    ck_assert(!log_has(token));
}
END_TEST

START_TEST(anonymous_is_who_gives_no_name_on_loopback)
{
    ie_error err = IE_ERROR_INIT;

    add_quick_user("ann", PASSWORD);
    start_with_users();
    write_file("right", PASSWORD, 0600);
    ck_assert_int_eq(try_login(NULL, NULL, NULL, &err), IE_OK);
    ck_assert(log_has("connected as anonymous"));
    ck_assert_int_eq(try_login("ann", test_path("right"), NULL, &err), IE_OK);
}
END_TEST

START_TEST(a_login_where_nobody_is_known_is_refused)
{
    ie_error err = IE_ERROR_INIT;

    server = bus_start(&options);
    write_file("right", PASSWORD, 0600);
    ck_assert_int_eq(try_login("ann", test_path("right"), NULL, &err), IE_EREFUSED);
    ck_assert_ptr_nonnull(strstr(err.message, "this bus has no users_file"));
}
END_TEST

START_TEST(the_clients_own_files_are_looked_at_before)
{
    ie_error          err = IE_ERROR_INIT;
    const char *const path = test_path("open");

    server = bus_start(&options);
    write_file("open", PASSWORD, 0644);
    write_file("empty", "\n" PASSWORD, 0600);
    ck_assert_int_eq(try_login("ann", path, NULL, &err), IE_EDENIED);
    ck_assert_ptr_nonnull(strstr(err.message, "is open to others (mode 0644)"));
    ie_error_clear(&err);
    ck_assert_int_eq(try_login("ann", test_path("empty"), NULL, &err), IE_EINVAL);
    ck_assert_ptr_null(strstr(err.message, "planted"));
    ck_assert_int_eq(try_login("ann", test_path("absent"), NULL, NULL), IE_EIO);
    ck_assert_int_eq(try_login("ann", test_path(""), NULL, NULL), IE_EINVAL);
    ck_assert_int_eq(try_login("ann", NULL, NULL, NULL), IE_EINVAL);
    ck_assert_int_eq(try_login(NULL, test_path("empty"), NULL, NULL), IE_EINVAL);
    ck_assert_int_eq(try_login("ann", test_path("empty"), test_path("empty"), NULL), IE_EINVAL);
}
END_TEST

START_TEST(a_password_in_a_url_is_refused)
{
    ie_bus_client_options client;
    ie_bus_client        *opened = NULL;
    ie_error              err = IE_ERROR_INIT;

    IE_BUS_CLIENT_OPTIONS_INIT(&client);
    client.url = "socket://ann:planted-secret@127.0.0.1:1";
    ck_assert_int_eq(ie_bus_client_open(&opened, &client, &err), IE_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "password_file"));
    ck_assert_ptr_null(strstr(err.message, "planted"));
}
END_TEST

START_TEST(a_url_can_say_who_we_are)
{
    char           url[400];
    ie_bus_client *client;

    add_quick_user("ann", PASSWORD);
    options.flags = IE_BUS_SERVER_NO_ANONYMOUS;
    start_with_users();
    write_file("right", PASSWORD, 0600);
    (void)snprintf(url, sizeof url, "socket://ann@%s?password_file=%s",
                   ie_bus_server_address(server, 0) + strlen("socket://"), test_path("right"));
    client = client_open_url(url, 0);
    ck_assert_int_eq(ie_bus_client_wait_connected(client, WAIT_MS, NULL), IE_OK);
    ie_bus_client_close(client);
}
END_TEST

/* ---- raw hellos ----------------------------------------------------------------------------- */

static void
raw_hello(int fd, const char *user, const char *password, const char *token)
{
    unsigned char greeting[IE__GREETING_BYTES];
    ie_buffer     buffer = {NULL, 0, 0};
    ie__builder   b;

    ie__greeting_put(greeting, IE__SP_EB2_CLIENT);
    raw_send(fd, greeting, sizeof greeting);
    ie__build_begin(&b, &buffer, IE__HELLO, 0);
    if (user != NULL)
        ie__build_text(&b, IE__F_USER, user);
    if (password != NULL)
        ie__build_text(&b, IE__F_PASSWORD, password);
    if (token != NULL)
        ie__build_text(&b, IE__F_TOKEN, token);
    ck_assert_int_eq(ie__build_end(&b), IE_OK);
    raw_send(fd, buffer.data, buffer.size);
    ie_buffer_fini(&buffer);
    ck_assert(raw_receive(fd, greeting, sizeof greeting));
}

START_TEST(half_a_login_is_none)
{
    static const struct {
        const char *user;
        const char *password;
        const char *token;
    } CASES[] = {{"ann", NULL, NULL}, {NULL, "x", NULL}, {"ann", NULL, "x"}, {NULL, "x", "x"}};

    write_file("users", "", 0600);
    start_with_users();
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        const int fd = raw_connect(server);

        raw_hello(fd, CASES[i].user, CASES[i].password, CASES[i].token);
        raw_expect_reason(fd, IE__ERROR, 0, IE_BUS_CODE_CREDENTIALS);
        raw_expect_end(fd);
        (void)close(fd);
    }
}
END_TEST

START_TEST(nothing_is_taken_before_the_login_is_through)
{
    unsigned char greeting[IE__GREETING_BYTES];
    ie_buffer     both = {NULL, 0, 0};
    ie__builder   b;
    int           fd;

    add_quick_user("ann", PASSWORD);
    start_with_users();
    fd = raw_connect(server);
    ie__greeting_put(greeting, IE__SP_EB2_CLIENT);
    raw_send(fd, greeting, sizeof greeting);
    ie__build_begin(&b, &both, IE__HELLO, 0);
    ie__build_text(&b, IE__F_USER, "ann");
    ie__build_text(&b, IE__F_PASSWORD, PASSWORD);
    ck_assert_int_eq(ie__build_end(&b), IE_OK);
    ie__build_begin(&b, &both, IE__PING, 1);
    ck_assert_int_eq(ie__build_end(&b), IE_OK);
    raw_send(fd, both.data, both.size); /* in one piece: no login is as quick as that */
    ie_buffer_fini(&both);
    ck_assert(raw_receive(fd, greeting, sizeof greeting));
    raw_expect_reason(fd, IE__ERROR, 0, IE_BUS_CODE_BAD_FRAME);
    raw_expect_end(fd);
    (void)close(fd);
}
END_TEST

START_TEST(who_hangs_up_while_being_checked_leaves_nothing)
{
    add_quick_user("ann", PASSWORD);
    start_with_users();
    for (int i = 0; i < 20; i++) {
        const int fd = raw_connect(server);

        raw_hello(fd, "ann", PASSWORD, NULL);
        (void)close(fd);
    }
    ck_assert_int_eq(ie_bus_server_stop(server, 0), IE_OK); /* with checks under way */
}
END_TEST

START_TEST(the_welcome_tells_who_one_is)
{
    int           fd;
    unsigned char message[IE__HELLO_MESSAGE_MAX];
    ie__frame     frame;

    add_quick_user("ann", PASSWORD);
    start_with_users();
    fd = raw_connect(server);
    raw_hello(fd, "ann", PASSWORD, NULL);
    frame = raw_expect(fd, IE__WELCOME);
    memcpy(message, frame.body, frame.body_bytes);
    ck_assert_ptr_nonnull(memmem(message, frame.body_bytes, "\x10\0\3ann", 6));
    (void)close(fd);
}
END_TEST

/* ---- guessing ------------------------------------------------------------------------------- */

START_TEST(the_delay_doubles_and_ends)
{
    ie__throttle           *throttle = ie__throttle_new();
    const ie__throttle_keys KEYS = {11, 22, 33};
    const ie__throttle_keys GOOD = {11, 44, 55};
    const ie__throttle_keys SAME_USER = {66, 22, 77};
    const ie__throttle_keys OTHER = {88, 99, 111};
    int64_t                 now = 1000;

    ck_assert_ptr_nonnull(throttle);
    ie__throttle_note(throttle, &GOOD, true, now, 100);
    for (int i = 0; i < IE__THROTTLE_FREE; i++) {
        ck_assert_int_eq(ie__throttle_due(throttle, &KEYS, now, 100), now);
        ie__throttle_note(throttle, &KEYS, false, now, 100);
    }
    for (int i = 0; i < 6; i++) {
        const int64_t due = ie__throttle_due(throttle, &KEYS, now, 100);

        ck_assert_int_eq(due - now, i < 3 ? 100 << i : 800);
        ck_assert_int_eq(ie__throttle_due(throttle, &GOOD, now, 100), now); /* was right before */
        ck_assert_int_eq(ie__throttle_due(throttle, &OTHER, now, 100), now);
        now = due;
        ie__throttle_note(throttle, &KEYS, false, now, 100);
    }
    /* the user's key counts from elsewhere too; and coming in crowds does not help */
    ck_assert_int_eq(ie__throttle_due(throttle, &SAME_USER, now, 100), now + 800);
    ck_assert_int_eq(ie__throttle_due(throttle, &SAME_USER, now, 100), -1);
    ie__throttle_note(throttle, &GOOD, false, now, 100); /* no longer good */
    ck_assert_int_ne(ie__throttle_due(throttle, &GOOD, now, 100), now);
    now += IE__THROTTLE_FORGETS + 1;
    ck_assert_int_eq(ie__throttle_due(throttle, &KEYS, now, 100), now);
    ie__throttle_free(throttle);
}
END_TEST

START_TEST(a_flood_of_names_does_not_push_out_an_address)
{
    ie__throttle     *throttle = ie__throttle_new();
    ie__throttle_keys keys = {12345, 0, 0};

    ck_assert_ptr_nonnull(throttle);
    for (int i = 0; i < 200000; i++) {
        keys.user = ie__hash(&i, sizeof i) | 2;
        keys.pair = keys.user * 3;
        ie__throttle_note(throttle, &keys, false, 1000, 100);
    }
    keys.user = 0;
    ck_assert_int_ne(ie__throttle_due(throttle, &keys, 1000, 100), 1000);
    ie__throttle_free(throttle);
}
END_TEST

static int64_t
login_ms(const char *user, const char *password, uint32_t code)
{
    const int64_t start = ie__mono_ns();
    const int     fd = raw_connect(server);

    raw_hello(fd, user, password, NULL);
    if (code == IE_BUS_CODE_NONE)
        (void)raw_expect(fd, IE__WELCOME);
    else
        raw_expect_reason(fd, IE__ERROR, 0, code);
    (void)close(fd);
    return (ie__mono_ns() - start) / 1000000;
}

START_TEST(who_guesses_is_slowed_and_who_is_known_is_not)
{
    int64_t       slow = 0;
    int           fd;
    const int64_t start = ie__mono_ns();

    add_quick_user("ann", PASSWORD);
    options.login_delay_ms = 400;
    start_with_users();
    (void)login_ms("ann", PASSWORD, IE_BUS_CODE_NONE);
    fd = raw_connect(server);
    raw_hello(fd, "ann", PASSWORD, NULL);
    (void)raw_expect(fd, IE__WELCOME); /* a session that stays */
    for (int i = 0; i < IE__THROTTLE_FREE; i++)
        (void)login_ms("bob", "guess", IE_BUS_CODE_CREDENTIALS);
    for (int i = 0; i < 3; i++)
        slow += login_ms("bob", "guess", IE_BUS_CODE_CREDENTIALS);
    ck_assert_int_ge(slow, 400 + 800 + 1600 - 100); /* the clock of the loop is coarse */
    (void)login_ms("ann", PASSWORD, IE_BUS_CODE_NONE);
    raw_frame(fd, IE__PING, 1, NULL, 0);
    (void)raw_expect(fd, IE__PONG);
    ck_assert(COUNTER_IS(server, logins_failed, IE__THROTTLE_FREE + 3));
    ck_assert_int_lt((ie__mono_ns() - start) / 1000000, 90000);
    (void)close(fd);
}
END_TEST

static int
compare_ms(const void *a, const void *b)
{
    const int64_t x = *(const int64_t *)a;
    const int64_t y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

START_TEST(an_unknown_user_costs_what_a_known_one_does)
{
    enum { SAMPLES = 31 };
    ie__users *users = NULL;
    int64_t    known[SAMPLES];
    int64_t    unknown[SAMPLES];

    add_quick_user("ann", PASSWORD);
    ck_assert_int_eq(ie__users_load(&users, test_path("users"), NULL), IE_OK);
    for (size_t i = 0; i < SAMPLES; i++) {
        for (int is_known = 0; is_known < 2; is_known++) {
            ie__scrypt      stored;
            struct timespec from;
            struct timespec to;

            (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
            (void)ie__users_password(users, is_known ? "ann" : "eve", &stored);
            ck_assert(!ie__scrypt_matches(&stored, "guess", 5));
            (void)clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
            (is_known ? known : unknown)[i] =
                (to.tv_sec - from.tv_sec) * INT64_C(1000000000) + to.tv_nsec - from.tv_nsec;
        }
    }
    qsort(known, SAMPLES, sizeof *known, compare_ms);
    qsort(unknown, SAMPLES, sizeof *unknown, compare_ms);
    printf("known %lld us, unknown %lld us\n", (long long)known[SAMPLES / 2] / 1000,
           (long long)unknown[SAMPLES / 2] / 1000);
    ck_assert_int_lt(llabs(known[SAMPLES / 2] - unknown[SAMPLES / 2]), known[SAMPLES / 2] / 4);
    ie__users_free(users);
}
END_TEST

/* ---- changes -------------------------------------------------------------------------------- */

START_TEST(a_removed_user_is_sent_away)
{
    int ann;
    int bob;

    add_quick_user("ann", PASSWORD);
    add_quick_user("bob", PASSWORD);
    start_with_users();
    ann = raw_connect(server);
    raw_hello(ann, "ann", PASSWORD, NULL);
    (void)raw_expect(ann, IE__WELCOME);
    bob = raw_connect(server);
    raw_hello(bob, "bob", PASSWORD, NULL);
    (void)raw_expect(bob, IE__WELCOME);
    ck_assert_int_eq(ie_bus_users_remove(test_path("users"), "ann", NULL), IE_OK);
    ck_assert_int_eq(ie_bus_server_reload(server, &options, NULL), IE_OK);
    raw_expect_reason(ann, IE__ERROR, 0, IE_BUS_CODE_DENIED);
    raw_expect_end(ann);
    raw_frame(bob, IE__PING, 1, NULL, 0);
    (void)raw_expect(bob, IE__PONG);
    (void)close(ann);
    (void)close(bob);
}
END_TEST

START_TEST(a_bus_that_nobody_could_use_does_not_start)
{
    ie_error          err = IE_ERROR_INIT;
    const char *const REMOTE[] = {"socket://0.0.0.0:0"};

    options.flags = IE_BUS_SERVER_NO_ANONYMOUS;
    ck_assert_int_eq(ie_bus_server_start(&server, &options, &err), IE_EINVAL);
    ck_assert_ptr_nonnull(strstr(err.message, "nobody could connect"));
    ie_error_clear(&err);
    options.flags = 0;
    options.listen = REMOTE;
    options.listen_count = 1;
    ck_assert_int_eq(ie_bus_server_start(&server, &options, &err), IE_EDENIED);
    add_quick_user("ann", PASSWORD);
    options.users_file = test_path("users");
    ck_assert_int_eq(ie_bus_server_start(&server, &options, NULL), IE_EDENIED);
}
END_TEST

int
main(void)
{
    Suite   *suite = suite_create("auth");
    TCase   *tcase = tcase_create("auth");
    SRunner *runner = srunner_create(suite);
    int      failed;

    tcase_set_timeout(tcase, 100);
    tcase_add_checked_fixture(tcase, set_up, tear_down);
    tcase_add_test(tcase, the_file_is_made_changed_and_emptied);
    tcase_add_test(tcase, a_file_that_others_can_read_is_refused);
    tcase_add_test(tcase, a_malformed_line_is_named_and_opens_nothing);
    tcase_add_test(tcase, a_login_is_right_or_refused);
    tcase_add_test(tcase, a_token_says_by_itself_whose_it_is);
    tcase_add_test(tcase, anonymous_is_who_gives_no_name_on_loopback);
    tcase_add_test(tcase, a_login_where_nobody_is_known_is_refused);
    tcase_add_test(tcase, the_clients_own_files_are_looked_at_before);
    tcase_add_test(tcase, a_password_in_a_url_is_refused);
    tcase_add_test(tcase, a_url_can_say_who_we_are);
    tcase_add_test(tcase, half_a_login_is_none);
    tcase_add_test(tcase, nothing_is_taken_before_the_login_is_through);
    tcase_add_test(tcase, who_hangs_up_while_being_checked_leaves_nothing);
    tcase_add_test(tcase, the_welcome_tells_who_one_is);
    tcase_add_test(tcase, the_delay_doubles_and_ends);
    tcase_add_test(tcase, a_flood_of_names_does_not_push_out_an_address);
    tcase_add_test(tcase, who_guesses_is_slowed_and_who_is_known_is_not);
    tcase_add_test(tcase, an_unknown_user_costs_what_a_known_one_does);
    tcase_add_test(tcase, a_removed_user_is_sent_away);
    tcase_add_test(tcase, a_bus_that_nobody_could_use_does_not_start);
    suite_add_tcase(suite, tcase);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? 0 : 1;
}
