/*
 * Noticing commits of others without touching the database's files: inotify reads names, it opens
 * nothing, so SQLite's locks are safe. The -wal file comes and goes, hence the folder is watched
 * too.
 */
#include "log.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "core.h"

struct ie__watch {
    int   fd;
    int   folder;
    int   wal_watch; /* -1: none */
    int   db_watch;
    bool  is_paused;
    char *db;
    char *wal;
    char *name; /* of the -wal inside its folder */
    char *folder_path;
};

/* On the folder too it costs everyone who reads or writes a file in it. */
static void
watch_folder(ie__watch *watch)
{
    watch->folder = inotify_add_watch(watch->fd, watch->folder_path, IN_CREATE | IN_MOVED_TO);
}

static void
watch_files(ie__watch *watch)
{
    /* Both may be missing at the moment: the folder tells when the -wal appears. */
    watch->wal_watch = inotify_add_watch(watch->fd, watch->wal, IN_MODIFY);
    watch->db_watch = inotify_add_watch(watch->fd, watch->db, IN_MODIFY); /* rollback journals */
}

ie_status
ie__watch_open(ie__watch **out, const char *db_path, ie_error *err)
{
    const size_t size = strlen(db_path) + 8;
    ie__watch   *watch = ie__calloc(1, sizeof *watch);
    char        *slash;

    if (watch != NULL) {
        watch->fd = watch->wal_watch = watch->db_watch = -1;
        watch->db = ie__strdup(db_path);
        watch->wal = ie__alloc(size);
        watch->folder_path = ie__strdup(strchr(db_path, '/') != NULL ? db_path : ".");
    }
    if (watch == NULL || watch->db == NULL || watch->wal == NULL || watch->folder_path == NULL) {
        ie__watch_close(watch);
        return ie_error_set(err, IE_ENOMEM, "watch database: out of memory");
    }
    (void)snprintf(watch->wal, size, "%s-wal", db_path);
    watch->name = strrchr(watch->wal, '/') != NULL ? strrchr(watch->wal, '/') + 1 : watch->wal;
    slash = strrchr(watch->folder_path, '/');
    if (slash != NULL)
        slash[slash == watch->folder_path ? 1 : 0] = '\0';
    watch->fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (watch->fd >= 0) {
        watch_folder(watch);
        watch_files(watch);
    }
    *out = watch;
    return IE_OK; /* without inotify (its limits are per user) the caller's poll finds the events */
}

int
ie__watch_fd(const ie__watch *watch)
{
    return watch->fd;
}

void
ie__watch_drain(ie__watch *watch)
{
    _Alignas(struct inotify_event) char buffer[4096];
    bool                                is_new = false;
    ssize_t                             got;

    while ((got = read(watch->fd, buffer, sizeof buffer)) > 0) {
        for (ssize_t at = 0; at < got;) {
            const struct inotify_event *event = (const void *)(buffer + at);

            if (event->wd == watch->folder && event->len > 0 &&
                strcmp(event->name, watch->name) == 0)
                is_new = true;
            if ((event->mask & (IN_IGNORED | IN_Q_OVERFLOW)) != 0)
                is_new = true;
            at += (ssize_t)(sizeof *event + event->len);
        }
    }
    if (is_new && !watch->is_paused)
        watch_files(watch);
}

void
ie__watch_pause(ie__watch *watch)
{
    if (watch->fd < 0 || watch->is_paused)
        return;
    watch->is_paused = true;
    if (watch->wal_watch >= 0)
        (void)inotify_rm_watch(watch->fd, watch->wal_watch);
    if (watch->db_watch >= 0)
        (void)inotify_rm_watch(watch->fd, watch->db_watch);
    if (watch->folder >= 0)
        (void)inotify_rm_watch(watch->fd, watch->folder);
    watch->wal_watch = watch->db_watch = watch->folder = -1;
    ie__watch_drain(watch);
}

void
ie__watch_resume(ie__watch *watch)
{
    if (watch->fd < 0 || !watch->is_paused)
        return;
    watch->is_paused = false;
    ie__watch_drain(watch);
    watch_folder(watch);
    watch_files(watch);
}

void
ie__watch_close(ie__watch *watch)
{
    if (watch == NULL)
        return;
    if (watch->fd >= 0)
        (void)close(watch->fd);
    ie__free(watch->db);
    ie__free(watch->wal);
    ie__free(watch->folder_path);
    ie__free(watch);
}
