-- The log: one row per event, inserted once, never updated. Columns from id on may be written by
-- anyone; position is SQLite's to give. Its bound keeps a position written by hand from being the last
-- one that there is, after which SQLite would give random ones.
CREATE TABLE ie_event (
    position     INTEGER PRIMARY KEY CHECK (position BETWEEN 1 AND 4611686018427387903),
    id           TEXT NOT NULL DEFAULT (lower(
                     substr(printf('%012x', CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)), 1, 8)
                     || '-' || substr(printf('%012x', CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)), 9, 4)
                     || '-7' || substr(hex(randomblob(2)), 1, 3)
                     || '-' || substr('89ab', 1 + (random() & 3), 1) || substr(hex(randomblob(2)), 1, 3)
                     || '-' || hex(randomblob(6)))),
    topic        TEXT NOT NULL,
    key          TEXT,
    type         TEXT,
    source       TEXT,
    time         INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)),
    not_before   INTEGER,
    expires_at   INTEGER,
    content_type TEXT,
    headers      TEXT,
    dedupe_key   TEXT,
    checked      INTEGER,
    data         ANY
) STRICT;

CREATE UNIQUE INDEX ie_event_dedupe ON ie_event (dedupe_key) WHERE dedupe_key IS NOT NULL;

CREATE TRIGGER ie_event_keep_newest BEFORE DELETE ON ie_event
WHEN OLD.position = (SELECT max(position) FROM ie_event)
BEGIN
    SELECT RAISE(ABORT, 'ie_event: the newest event stays, so that no position is given twice');
END;

CREATE TRIGGER ie_event_is_final BEFORE UPDATE ON ie_event
BEGIN
    SELECT RAISE(ABORT, 'ie_event: an event is never changed; publish another one');
END;

-- Who reads the log, and how far. claimed_to reserves positions for the owner of the lease; when an owner
-- dies, what it had reserved is suspect and is sent in ever smaller pieces, down to single events.
CREATE TABLE ie_cursor (
    name           TEXT NOT NULL PRIMARY KEY,
    position       INTEGER NOT NULL DEFAULT 0,
    claimed_to     INTEGER NOT NULL DEFAULT 0,
    suspect_to     INTEGER NOT NULL DEFAULT 0,
    suspect_window INTEGER NOT NULL DEFAULT 0,
    crashes        INTEGER NOT NULL DEFAULT 0,
    claims         INTEGER NOT NULL DEFAULT 0,
    epoch          INTEGER NOT NULL DEFAULT 0,
    owner          TEXT,
    boot_id        TEXT NOT NULL DEFAULT '',
    lease_until    INTEGER NOT NULL DEFAULT 0,
    seen_at        INTEGER NOT NULL DEFAULT 0,
    destination    TEXT NOT NULL DEFAULT '',
    topics         TEXT NOT NULL DEFAULT '',
    event_order    TEXT NOT NULL DEFAULT 'key',
    breaker        TEXT,
    breaker_since  INTEGER NOT NULL DEFAULT 0,
    breaker_until  INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- An event's trouble with one cursor; a row exists only while there is something to say.
CREATE TABLE ie_delivery (
    cursor     TEXT NOT NULL,
    position   INTEGER NOT NULL,
    state      TEXT NOT NULL CHECK (state IN ('scheduled', 'retrying', 'blocked', 'dead', 'expired', 'discarded')),
    key        TEXT,
    attempts   INTEGER NOT NULL DEFAULT 0,
    claims     INTEGER NOT NULL DEFAULT 0,
    due_at     INTEGER,
    expires_at INTEGER,
    since      INTEGER NOT NULL,
    reason     TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (cursor, position)
) STRICT, WITHOUT ROWID;

CREATE INDEX ie_delivery_due ON ie_delivery (cursor, state, due_at) WHERE due_at IS NOT NULL;
CREATE INDEX ie_delivery_held ON ie_delivery (cursor, key, position) WHERE state IN ('retrying', 'blocked');
CREATE INDEX ie_delivery_expires ON ie_delivery (cursor, expires_at)
    WHERE expires_at IS NOT NULL AND state IN ('retrying', 'blocked', 'scheduled');
CREATE INDEX ie_delivery_ended ON ie_delivery (state, since);
CREATE INDEX ie_delivery_position ON ie_delivery (position);

-- The consumer's side: ids that a group has handled.
CREATE TABLE ie_inbox (
    group_name TEXT NOT NULL,
    source     TEXT NOT NULL,
    id         TEXT NOT NULL,
    digest     INTEGER NOT NULL,
    handled_at INTEGER NOT NULL,
    PRIMARY KEY (group_name, id, source)
) STRICT, WITHOUT ROWID;

CREATE INDEX ie_inbox_age ON ie_inbox (group_name, handled_at);

-- Facts about this database: the default source, the durability that the application runs with.
CREATE TABLE ie_meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO ie_meta (name, value) VALUES ('source', '/ie');
