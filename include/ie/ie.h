/**
 * @file
 * libie: integration events for C. This header includes all the others.
 */
#ifndef IE_IE_H
#define IE_IE_H

#include <ie/base.h>
#include <ie/bus.h>
#include <ie/bus_client.h>
#include <ie/bus_server.h>
#include <ie/eb1.h>
#include <ie/cloudevents.h>
#include <ie/event.h>
#include <ie/inbox.h>
#include <ie/inspect.h>
#include <ie/memory.h>
#include <ie/migrate.h>
#include <ie/outbox.h>
#include <ie/publisher.h>
#include <ie/publisher_env.h>
#include <ie/worker.h>

#endif
