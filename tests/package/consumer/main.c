/* Uses a little of everything that needs no database: the header, the version, a publisher. */
#include <ie/ie.h>

#include <stdio.h>

static unsigned delivered;

static void
count(void *user, uint64_t ticket, ie_verdict verdict, const char *reason, uint32_t delay_ms)
{
    (void)user;
    (void)ticket;
    (void)reason;
    (void)delay_ms;
    delivered += verdict == IE_DELIVERED ? 1 : 0;
}

int
main(void)
{
    const ie_publisher_ops *ops = NULL;
    ie_publisher_env       *env = NULL;
    ie_event                event = IE_EVENT_INIT;
    ie_outgoing             outgoing = {&event, 1, 1, 0};
    ie_worker_options       options;
    void                   *self = NULL;

    IE_WORKER_OPTIONS_INIT(&options); /* the whole library links */
    event.topic = "orders.placed";
    event.id = "1";
    if (ie_publishers_find(&ops, options.publishers, "memory:x?sink=true", NULL) != IE_OK ||
        ie_publisher_env_new(&env, count, NULL, NULL, NULL) != IE_OK ||
        ops->open(&self, "memory:x?sink=true", env, NULL) != IE_OK)
        return 1;
    ops->publish(self, &outgoing, 1);
    ops->close(self);
    ie_publisher_env_free(env);
    (void)printf("delivered %u\n", delivered);
    return delivered == 1 ? 0 : 1;
}
