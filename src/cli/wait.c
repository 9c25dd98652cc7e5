/* Waiting in the foreground for a signal, a wake-up from another thread, or the time. */
#include "cli.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

static int  signal_fd = -1;
static int  wake_fd = -1;
static bool is_hung_up;

static void
begin(bool with_hangup)
{
    sigset_t set;

    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGINT);
    (void)sigaddset(&set, SIGTERM);
    if (with_hangup)
        (void)sigaddset(&set, SIGHUP);
    (void)sigprocmask(SIG_BLOCK, &set, NULL);
    signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

void
cli_wait_begin(void)
{
    begin(false);
}

void
cli_wait_begin_hangup(void)
{
    begin(true);
}

bool
cli_wait_hung_up(void)
{
    const bool was = is_hung_up;

    is_hung_up = false;
    return was;
}

void
cli_wait_wake(void)
{
    const uint64_t one = 1;

    (void)!write(wake_fd, &one, sizeof one); /* full means that a wake-up is pending already */
}

static int64_t
mono_ms(void)
{
    struct timespec now;

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

cli_wait_end
cli_wait(int64_t timeout_ms)
{
    return cli_wait_input(timeout_ms, -1);
}

cli_wait_end
cli_wait_input(int64_t timeout_ms, int fd)
{
    const int64_t deadline_ms = mono_ms() + timeout_ms;
    struct pollfd fds[3] = {{.fd = signal_fd, .events = POLLIN},
                            {.fd = wake_fd, .events = POLLIN},
                            {.fd = fd, .events = POLLIN}};

    for (;;) {
        struct signalfd_siginfo info;
        uint64_t                count;
        const int64_t           left_ms = timeout_ms < 0 ? -1 : deadline_ms - mono_ms();

        if (timeout_ms >= 0 && left_ms <= 0)
            return CLI_TIMED_OUT;
        if (poll(fds, 3, left_ms > INT32_MAX ? INT32_MAX : (int)left_ms) < 0 && errno != EINTR)
            return CLI_SIGNALLED;
        if (read(signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
            if (info.ssi_signo != SIGHUP)
                return CLI_SIGNALLED;
            is_hung_up = true;
            return CLI_WOKEN;
        }
        if (read(wake_fd, &count, sizeof count) == (ssize_t)sizeof count)
            return CLI_WOKEN;
        if (fds[2].revents != 0) /* its end, too, is for the reader to see */
            return CLI_INPUT;
    }
}
