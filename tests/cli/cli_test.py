#!/usr/bin/env python3
"""The command from outside: every verb, right and wrong, as a person or a script meets it.

usage: cli_test.py IE MAN_PAGE [unittest words]
"""
import json
import os
import pathlib
import pty
import re
import select
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import unittest

IE = ""
MAN = ""
DEADLINE_S = 60  # sanitized builds on a busy machine are slow


class Running:
    """A command in the background; its output goes to files, so that nothing ever blocks on it."""

    def __init__(self, folder, *words, **options):
        self.out = tempfile.NamedTemporaryFile("w+", dir=folder, suffix=".out")
        self.err = tempfile.NamedTemporaryFile("w+", dir=folder, suffix=".err")
        options.setdefault("stdin", subprocess.DEVNULL)
        self.process = subprocess.Popen([IE, *map(str, words)],
                                        stdout=self.out, stderr=self.err, cwd=folder, **options)

    def stdout(self):
        return pathlib.Path(self.out.name).read_text()

    def stderr(self):
        return pathlib.Path(self.err.name).read_text()

    def wait_for(self, condition, what):
        end = time.monotonic() + DEADLINE_S
        while not condition():
            if self.process.poll() is not None and not condition():
                raise AssertionError(f"ended ({self.process.returncode}) before {what}: {self.stderr()}")
            if time.monotonic() > end:
                raise AssertionError(f"not in time: {what}: {self.stdout()} {self.stderr()}")
            select.select([], [], [], 0.01)

    def end(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.out.close()
        self.err.close()


class Case(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="ie-cli-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.db = self.folder / "app.db"

    def ie(self, *words, code=0, stdin=None, **options):
        """Run to its end; the exit status is part of what is tested."""
        done = subprocess.run([IE, *map(str, words)], input=stdin, capture_output=True, cwd=self.folder,
                              timeout=DEADLINE_S, check=False,
                              **({} if stdin is not None else {"stdin": subprocess.DEVNULL}), **options)
        self.err = done.stderr.decode()
        out = done.stdout.decode("utf-8", "surrogateescape")
        self.assertEqual(done.returncode, code, f"{words}: {out} {self.err}")
        return out

    def start(self, *words, **options):
        running = Running(self.folder, *words, **options)
        self.addCleanup(running.close)
        return running

    def migrated(self):
        self.ie("migrate", "up", self.db)
        return self.db

    def publish(self, *words, **options):
        return self.ie("publish", *words, "--db", self.db, **options).strip()

    def bus(self, *words):
        bus = self.start("bus", *(words or ("--listen", "socket://127.0.0.1:0")))
        bus.wait_for(lambda: "\n" in bus.stdout(), "the ready line")
        match = re.fullmatch(r"ie bus ready on (\S+)( \S+)*\n", bus.stdout())
        self.assertIsNotNone(match, bus.stdout())
        return bus, match[1]

    def subscriber(self, *words, **options):
        subscriber = self.start("subscribe", *words, **options)
        subscriber.wait_for(lambda: "subscribed to" in subscriber.stderr(), "the subscription")
        return subscriber


class Passwd(Case):
    """Users of a bus."""

    def test_passwords_come_from_standard_input_and_leave_no_trace(self):
        users = self.folder / "users"
        secret = "planted-secret-tram 77"
        self.ie("bus", "passwd", str(users), "ann", stdin=(secret + "\nnot this\n").encode())
        self.assertEqual(users.stat().st_mode & 0o777, 0o600)
        self.assertRegex(users.read_text(), r"^ann:scrypt:16384:8:5:[0-9a-f]{32}:[0-9a-f]{64}\n$")
        first = users.read_text()
        self.ie("bus", "passwd", str(users), "bob", stdin=b"x")
        self.ie("bus", "passwd", str(users), "ann", stdin=secret.encode())
        self.assertNotIn(first, users.read_text())  # another salt
        self.assertEqual(users.read_text().count("ann:"), 1)
        self.ie("bus", "passwd", str(users), "ann", stdin=b"", code=1)
        self.assertIn("no password was given", self.err)
        self.ie("bus", "passwd", str(users), "ann", stdin=b"x" * 513, code=1)
        self.assertIn("at most 512 bytes", self.err)
        self.ie("bus", "passwd", str(users), "ann", secret, code=2)  # never an argument

    def test_a_token_is_shown_once(self):
        users = self.folder / "users"
        token = self.ie("bus", "passwd", str(users), "shop", "--token")
        self.assertRegex(token, r"^[0-9a-f]{64}\n$")
        self.assertNotIn(token.strip(), users.read_text())
        self.assertNotEqual(token, self.ie("bus", "passwd", str(users), "shop", "--token"))
        self.assertEqual(users.read_text().count("shop:"), 1)

    def test_users_can_go(self):
        users = self.folder / "users"
        self.ie("bus", "passwd", str(users), "ann", stdin=b"x")
        self.ie("bus", "passwd", str(users), "ann", "--token")
        self.ie("bus", "passwd", str(users), "ann", "--delete")
        self.assertEqual(users.read_text(), "")
        self.ie("bus", "passwd", str(users), "ann", "--delete", code=3)
        self.assertIn("has no user 'ann'", self.err)
        self.ie("bus", "passwd", str(users), "a:b", stdin=b"x", code=2)
        self.ie("bus", "passwd", str(users), "ann", "--token", "--delete", code=2)
        users.chmod(0o644)
        self.ie("bus", "passwd", str(users), "ann", stdin=b"x", code=1)
        self.assertIn("chmod 600", self.err)


class Words(Case):
    """Help, suggestions, and what is refused."""

    def test_help_lists_every_command_and_each_has_examples(self):
        for words in (["help"], ["--help"], ["-h"]):
            self.assertIn("first steps", self.ie(*words))
        for command in commands(self):
            text = self.ie("help", *command.split())
            self.assertIn(f"usage: ie {command}", text)
            self.assertIn("examples:\n  ie ", text)
            self.assertEqual(text, self.ie(*command.split(), "--help"))
        self.assertIn("outbox discard", self.ie("outbox", "--help"))
        self.assertIn("migrate sql", self.ie("help", "migrate"))

    def test_wrong_words_are_named_with_what_was_meant(self):
        for words, said in (
                ([], "a command is needed"),
                (["publsh"], "did you mean 'publish'"),
                (["outbox"], "'outbox' needs a command"),
                (["outbox", "stauts"], "did you mean 'outbox status'"),
                (["zzzzzzz"], "unknown command 'zzzzzzz'; see"),
                (["help", "publsh"], "did you mean 'publish'"),
                (["publish", "a", "--topc", "x"], "unknown option '--topc'"),
                (["relay", "x", "--curser", "y"], "did you mean '--cursor'"),
                (["relay", "x", "--to"], "needs a value: URL"),
                (["relay", "x", "--once=1"], "takes no value"),
                (["relay", "x", "--to=a:b", "--to=c:d"], "given twice"),
                (["relay", "-x"], "unknown option '-x'"),
                (["relay"], "expected: ie relay DB"),
                (["version", "2"], "unexpected word '2'"),
                (["subscribe", "a", "--timeout", "30"], "is not a time such as"),
                (["subscribe", "a", "--count", "0"], "is not a number from 1"),
        ):
            with self.subTest(words=words):
                self.assertEqual(self.ie(*words, code=2), "")
                self.assertIn(said, self.err)
                self.assertEqual(self.err.count("\n"), 1, self.err)

    def test_every_command_refuses_an_unknown_option_by_name(self):
        for command in commands(self):
            if command != "help":
                self.ie(*command.split(), "--no-such-thing", code=2)
                self.assertIn("unknown option '--no-such-thing'", self.err)

    def test_version(self):
        self.assertRegex(self.ie("version"), r"^ie \d+\.\d+\.\d+ \(SQLite 3\.\d+")
        self.assertEqual(set(json.loads(self.ie("version", "--json"))), {"version", "sqlite"})

    def test_the_man_page_lists_exactly_the_options(self):
        page = {}
        command = None
        for line in pathlib.Path(MAN).read_text().splitlines():
            if line.startswith(".Ss "):
                command = line[4:]
                page[command] = {}
            elif line.startswith(".Sh "):
                command = None
            elif command is not None and line.startswith(".It "):
                match = re.fullmatch(r"\.It (?:Fl (\w) , )?Fl -([\w-]+)(?: Ar (.+))?", line)
                self.assertIsNotNone(match, line)
                page[command][match[2]] = (match[1], match[3])
        table = {}
        for command in commands(self):
            table[command] = {}
            text = self.ie("help", *command.split())
            for line in text.split("options:\n")[1].split("\n\n")[0].splitlines():
                match = re.match(r"\s+(?:-(\w), )?--([\w-]+)(?: ([A-Z=]+(?: \.\.\.)?))?\s", line)
                self.assertIsNotNone(match, line)
                if match[2] != "help":
                    table[command][match[2]] = (match[1], match[3])
        self.assertEqual(page, table)
        self.assertGreater(sum(map(len, table.values())), 40)


def commands(case):
    text = case.ie("help").split("commands:\n")[1].split("\n\n")[0]
    return [line[2:17].strip() for line in text.splitlines()]


class Migrate(Case):
    def test_up_makes_a_file_and_says_so_once(self):
        self.assertIn("was created (journal mode WAL)", self.ie("migrate", "up", "app.db"))
        self.assertIn("already", self.ie("migrate", "up", "app.db"))
        with sqlite3.connect(self.db) as db:
            self.assertEqual(db.execute("PRAGMA journal_mode").fetchone()[0], "wal")
            self.assertEqual(db.execute("SELECT count(*) FROM ie_event").fetchone()[0], 0)

    def test_up_leaves_the_journal_mode_of_a_file_that_exists(self):
        with sqlite3.connect(self.db) as db:
            db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        said = json.loads(self.ie("migrate", "up", "app.db", "--json"))
        self.assertEqual((said["created"], said["applied"] >= 1), (False, True))
        with sqlite3.connect(self.db) as db:
            self.assertEqual(db.execute("PRAGMA journal_mode").fetchone()[0], "delete")

    def test_status_before_and_after(self):
        with sqlite3.connect(self.db) as db:
            db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        self.assertIn("missing", self.ie("migrate", "status", "app.db"))
        self.assertIn("ie migrate up app.db", self.err)
        self.migrated()
        (first, *_) = json.loads(self.ie("migrate", "status", "app.db", "--json"))
        self.assertEqual((first["version"], first["name"], first["applied"]), (1, "init", True))
        self.assertRegex(first["appliedAt"], r"^20\d\d-.*Z$")
        self.assertEqual(self.err, "")

    def test_sql_in_each_format_makes_tables_that_are_accepted(self):
        for form, mark in (("plain", ""), ("goose", "-- +goose Up"), ("dbmate", "-- migrate:up"),
                           ("flyway", "-- V1__ie_init.sql")):
            with self.subTest(form=form):
                text = self.ie("migrate", "sql", "--format", form)
                self.assertTrue(text.startswith(mark), text[:60])
                up = re.split(r"-- \+goose Down|-- migrate:down", text)[0]
                path = self.folder / f"{form}.db"
                with sqlite3.connect(path) as db:
                    db.executescript(up)
                self.ie("outbox", "status", path)
                down = self.ie("migrate", "sql", "--down")
                with sqlite3.connect(path) as db:
                    db.executescript(down)
                    self.assertEqual(db.execute("SELECT count(*) FROM sqlite_master"
                                                " WHERE name LIKE 'ie\\_%' ESCAPE '\\'").fetchone()[0], 0)
        self.ie("migrate", "sql", "--format", "rails", code=2)
        self.assertIn("is not one of plain, goose, dbmate, flyway", self.err)
        self.ie("migrate", "sql", "--number", "999", code=2)

    def test_a_database_that_is_none_is_refused(self):
        self.db.write_text("this is not a database, it is a text that is long enough to be read as one" * 9)
        for words in (["migrate", "up", "app.db"], ["outbox", "status", "app.db"],
                      ["why", "x", "--db", "app.db"]):
            self.ie(*words, code=1)
            self.assertIn("not a database", self.err)
            self.assertEqual(self.err.count("app.db"), 1, self.err)
        self.ie("outbox", "ls", self.folder, code=1)
        self.assertIn("it is a directory", self.err)

    def test_a_missing_file_is_named_and_not_made(self):
        for words in (["outbox", "status", "no.db"], ["outbox", "ls", "no.db"], ["outbox", "show", "no.db", "x"],
                      ["outbox", "retry", "no.db", "x"], ["outbox", "discard", "no.db", "x"],
                      ["why", "x", "--db", "no.db"], ["migrate", "status", "no.db"],
                      ["publish", "a.b", "{}", "--db", "no.db"],
                      ["relay", "no.db", "--to", "file:///dev/null", "--once"]):
            with self.subTest(words=words):
                self.ie(*words, code=3)
                self.assertIn("cannot open database no.db: there is no such file", self.err)
                self.assertIn("hint: 'ie migrate up no.db'", self.err)
                self.assertFalse((self.folder / "no.db").exists())

    def test_missing_tables_are_named(self):
        with sqlite3.connect(self.db) as db:
            db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        for words in (["outbox", "status", "app.db"], ["publish", "a.b", "{}", "--db", "app.db"],
                      ["relay", "app.db", "--to", "file:///dev/null", "--once"]):
            self.ie(*words, code=1)
            self.assertIn("ie migrate up", self.err)


class Publish(Case):
    def row(self, columns):
        with sqlite3.connect(self.db) as db:
            return db.execute(f"SELECT {columns} FROM ie_event ORDER BY position DESC LIMIT 1").fetchone()

    def test_everything_that_was_given_is_stored(self):
        self.migrated()
        said = json.loads(self.publish("orders.placed", '{"order": 1.50}', "--key", "o-1", "--type", "t",
                                       "--source", "/shop", "--subject", "s", "--id", "my-id",
                                       "--header", "tenant=acme", "--header", "note=a=b",
                                       "--not-before", "2100-01-01T00:00:00Z",
                                       "--expires", "2101-01-01T00:00:00+05:00", "--dedupe-key", "d",
                                       "--json"))
        self.assertEqual(said, {"id": "my-id", "topic": "orders.placed", "position": 1})
        self.assertEqual(self.row("id, topic, key, type, source, not_before, expires_at, dedupe_key"),
                         ("my-id", "orders.placed", "o-1", "t", "/shop", 4102444800000, 4133962800000, "d"))
        self.assertEqual(bytes(self.row("CAST(data AS BLOB)")[0]), b'{"order": 1.50}')
        headers = json.loads(self.row("headers")[0])
        self.assertEqual((headers["tenant"], headers["note"], headers["subject"]), ("acme", "a=b", "s"))
        self.publish("orders.placed", "{}", "--dedupe-key", "d", code=1)

    def test_data_comes_from_the_word_or_from_standard_input(self):
        self.migrated()
        self.publish("a.b", stdin=b'{"from": "pipe"}')
        self.assertEqual(bytes(self.row("CAST(data AS BLOB)")[0]), b'{"from": "pipe"}')
        self.publish("a.b", "-", "--content-type", "application/octet-stream", stdin=b"\x00\xff\n")
        self.assertEqual(self.row("data")[0], b"\x00\xff\n")
        self.publish("a.b")
        self.assertIsNone(self.row("data")[0])
        self.publish("a.b", "-", stdin=b"[" + b" " * 1048575 + b"]", code=2)
        self.assertIn("data", self.err)

    def test_relative_times(self):
        self.migrated()
        before = time.time() * 1000
        self.publish("a.b", "1", "--not-before", "+10s", "--expires", "+2h")
        not_before, expires = self.row("not_before, expires_at")
        self.assertTrue(before + 9000 <= not_before <= time.time() * 1000 + 10001)
        self.assertTrue(7189000 < expires - not_before < 7191000)

    def test_what_breaks_the_rules_is_refused_and_leaves_nothing(self):
        self.migrated()
        for words, said in (
                (["a..b", "{}"], "topic"),
                (["a.*", "{}"], "topic"),
                (["a.b", "hello"], "--content-type text/plain"),
                (["a.b", "{}", "--header", "Not Good=1"], "header"),
                (["a.b", "{}", "--header", "nothing"], "is not NAME=VALUE"),
                (["a.b", "{}", "--not-before", "tomorrow"], "neither a time"),
                (["a.b", "{}", "--not-before", "10s"], "neither a time"),
                (["a.b", "{}", "--persistent"], "go with --to"),
        ):
            with self.subTest(words=words):
                self.publish(*words, code=2)
                self.assertIn(said, self.err)
        with sqlite3.connect(self.db) as db:
            self.assertEqual(db.execute("SELECT count(*) FROM ie_event").fetchone()[0], 0)
        self.ie("publish", "a.b", "{}", code=2)
        self.assertIn("one of --db DB (store it) and --to URL (send it)", self.err)
        self.ie("publish", "a.b", "{}", "--db", "a", "--to", "b", code=2)

    def test_a_busy_database_is_a_failure_in_words(self):
        self.migrated()
        other = sqlite3.connect(self.db, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        self.publish("a.b", "1", code=1)
        self.assertIn("locked", self.err)
        other.execute("ROLLBACK")
        self.publish("a.b", "1")

    def test_straight_into_a_file(self):
        path = self.folder / "out.jsonl"
        said = json.loads(self.ie("publish", "a.b", '{"n":1}', "--to", f"file://{path}", "--json"))
        event = json.loads(path.read_text())
        self.assertEqual((event["id"], event["topic"], event["data"]), (said["id"], "a.b", {"n": 1}))

    def test_destinations_that_do_not_work(self):
        self.ie("publish", "a.b", "1", "--to", "socket://127.0.0.1:1", code=5)
        self.assertIn("ie: cannot reach bus at socket://127.0.0.1:1: connection refused\nhint: ", self.err)
        self.ie("publish", "a.b", "1", "--to", "unix:" + str(self.folder / "none.sock"), code=5)
        self.ie("publish", "a.b", "1", "--to", "pigeon://x", code=2)
        self.assertIn("pigeon", self.err)
        self.ie("publish", "a.b", "1", "--to", "file:///x", "--require-subscriber", code=2)
        self.ie("publish", "a..b", "1", "--to", "socket://127.0.0.1:1", code=2)


class Relay(Case):
    def lines(self, name="out.jsonl"):
        return [json.loads(line) for line in (self.folder / name).read_text().splitlines()]

    def to(self, name="out.jsonl"):
        return f"file://{self.folder / name}"

    def test_publish_then_relay_once_is_the_whole_way(self):
        self.migrated()
        ids = [self.publish("orders.placed", f'{{"n":{n}}}', "--key", "k") for n in range(20)]
        self.ie("relay", "app.db", "--to", self.to(), "--once")
        self.assertIn("published 20, retried 0, dead 0", self.err)
        self.assertEqual([line["id"] for line in self.lines()], ids)
        self.assertEqual([line["data"]["n"] for line in self.lines()], list(range(20)))
        said = json.loads(self.ie("relay", "app.db", "--to", self.to(), "--once", "--json"))
        self.assertEqual(said, {"published": 0, "retried": 0, "dead": 0, "expired": 0, "pending": 0})

    def test_cursors_are_destinations_of_their_own_and_topics_choose(self):
        self.migrated()
        self.publish("orders.placed", "1")
        self.publish("stock.low", "2")
        self.ie("relay", "app.db", "--to", self.to("a"), "--once", "--cursor", "a", "--topics", "stock.*",
                "--order", "strict")
        self.ie("relay", "app.db", "--to", self.to("b"), "--once", "--cursor", "b", "--order", "none")
        self.ie("relay", "app.db", "--to", self.to("c"), "--once", "--cursor", "c", "--start", "now")
        self.assertEqual([line["topic"] for line in self.lines("a")], ["stock.low"])
        self.assertEqual(len(self.lines("b")), 2)
        self.assertEqual((self.folder / "c").read_text() if (self.folder / "c").exists() else "", "")

    def test_something_dead_is_exit_1_and_why_says_why(self):
        self.migrated()
        with sqlite3.connect(self.db) as db:
            (bad,) = db.execute("INSERT INTO ie_event (topic, data) VALUES ('a..b', '1') RETURNING id").fetchone()
        self.ie("relay", "app.db", "--to", self.to(), "--once", code=1)
        self.assertIn("dead 1", self.err)
        self.assertIn("hint: 'ie outbox ls app.db --state dead'", self.err)
        self.assertIn("topic is not valid", self.ie("why", bad, "--db", "app.db"))

    def test_an_unreachable_destination_is_exit_5_and_loses_nothing(self):
        self.migrated()
        event = self.publish("a.b", "1")
        self.ie("relay", "app.db", "--to", "socket://127.0.0.1:1", "--once", code=5)
        self.assertIn("connection refused", self.err)
        self.assertIn("nothing is lost", self.err)
        self.assertIn("ie relay app.db", self.ie("why", event, "--db", "app.db"))
        bus, url = self.bus()
        subscriber = self.subscriber(">", "--from", url, "--count", "1", "--json")
        self.ie("relay", "app.db", "--to", url, "--once")
        self.assertEqual(subscriber.process.wait(DEADLINE_S), 0)
        self.assertEqual(json.loads(subscriber.stdout())["id"], event)
        self.assertEqual(bus.end(), 0)

    def test_wrong_options(self):
        self.migrated()
        for words, said in (
                ([], "--to says where to publish"),
                (["--to", "pigeon://x"], "pigeon"),
                (["--to", "file:///x", "--order", "random"], "is not one of key, none, strict"),
                (["--to", "file:///x", "--start", "later"], "is not one of oldest, now"),
                (["--to", "file:///x", "--timeout", "3s"], "go with --once"),
                (["--to", "file:///x", "--set", "batchmax=3"], "did you mean 'batch_max'?"),
                (["--to", "file:///x", "--set", "batch_max=0"], "batch_max takes 1 to 10000 events"),
                (["--to", "file:///x", "--set", "batch_max=5s"], "batch_max takes"),
                (["--to", "file:///x", "--set", "lease_ms"], "lease_ms takes"),
                (["--to", "file:///x", "--once", "--cursor", "Bad Name"], "destination name"),
                (["--to", "file:///x", "--once", "--topics", "a..b"], "pattern"),
        ):
            with self.subTest(words=words):
                self.ie("relay", "app.db", *words, code=2)
                self.assertIn(said, self.err)

    def test_numbers_take_units(self):
        self.migrated()
        self.publish("a.b", "1")
        self.ie("relay", "app.db", "--to", self.to(), "--once", "--set", "lease_ms=5s", "--set",
                "published_retention_s=2h", "--set", "window_bytes_max=1MiB", "--set", "batch_max=7",
                "--timeout", "30s")
        self.assertEqual(len(self.lines()), 1)
        self.assertIn("batch_max\t100\t1\t10000\tevents", self.ie("relay", "app.db", "--set", "help"))

    def test_a_relay_that_stays_sends_what_comes_and_stops_in_order(self):
        self.migrated()
        relay = self.start("relay", "app.db", "--to", self.to())
        relay.wait_for(lambda: "relay of app.db is running" in relay.stderr(), "the relay")
        event = self.publish("a.b", "1")
        path = self.folder / "out.jsonl"
        relay.wait_for(lambda: path.exists() and event in path.read_text(), "the event")
        status = json.loads(self.ie("outbox", "status", "app.db", "--json"))["destinations"][0]
        self.assertTrue(status["alive"])
        self.assertEqual(status["worker"], "running")
        self.ie("relay", "app.db", "--to", self.to(), "--once", code=1)
        self.assertIn("served by another worker", self.err)
        self.assertEqual(relay.end(signal.SIGINT), 0)
        self.assertIn("published 1", relay.stderr())
        status = json.loads(self.ie("outbox", "status", "app.db", "--json"))["destinations"][0]
        self.assertEqual((status["alive"], status["worker"]), (False, "stopped"))

    def test_a_killed_relay_is_seen_as_gone(self):
        self.migrated()
        relay = self.start("relay", "app.db", "--to", self.to())
        relay.wait_for(lambda: "is running" in relay.stderr(), "the relay")
        event = self.publish("a.b", "1")
        path = self.folder / "out.jsonl"
        relay.wait_for(lambda: path.exists() and event in path.read_text(), "the event")
        relay.end(signal.SIGKILL)
        status = json.loads(self.ie("outbox", "status", "app.db", "--json"))["destinations"][0]
        self.assertEqual(status["worker"], "gone")
        (answer,) = json.loads(self.ie("why", self.publish("a.b", "2"), "--db", "app.db", "--json"))
        self.assertEqual(answer["code"], "worker-not-running")
        self.assertIn("does not exist any more", answer["evidence"])


class Outbox(Case):
    def setUp(self):
        super().setUp()
        self.migrated()
        self.good = self.publish("ok.a", '{"n":1}', "--key", "k", "--header", "tenant=acme")
        with sqlite3.connect(self.db) as db:
            (self.dead,) = db.execute("INSERT INTO ie_event (topic, data) VALUES ('bad topic', 'x') RETURNING id"
                                      ).fetchone()
        self.later = self.publish("ok.b", "2", "--not-before", "+1h")
        self.ie("relay", "app.db", "--to", f"file://{self.folder / 'out'}", "--once", code=1)

    def test_status_has_the_counts(self):
        said = json.loads(self.ie("outbox", "status", "app.db", "--json"))
        self.assertEqual(said["eventsKept"], 3)
        self.assertEqual(said["journalMode"], "wal")
        self.assertNotIn("durability", said)  # that is for the application to note, not for one publish of ours
        (destination,) = said["destinations"]
        self.assertEqual(destination["counts"], {"pending": 0, "in-progress": 0, "published": 1, "scheduled": 1,
                                                 "retrying": 0, "blocked": 0, "dead": 1, "expired": 0,
                                                 "discarded": 0})
        (row,) = self.ie("outbox", "status", "app.db").splitlines()
        self.assertEqual(row.split("\t")[:10], ["outbox", "stopped", "0", "0", "0", "1", "1", "0", "0", "1"])
        self.assertIn("no worker is running", self.err)
        with sqlite3.connect(self.db) as db:
            db.execute("INSERT INTO ie_meta (name, value) VALUES ('durability', 'wal+normal')")
        self.assertEqual(json.loads(self.ie("outbox", "status", "app.db", "--json"))["durability"], "wal+normal")

    def test_ls_filters_and_pages(self):
        rows = [line.split("\t") for line in self.ie("outbox", "ls", "app.db").splitlines()]
        self.assertEqual([row[0] for row in rows], ["3", "2", "1"])
        self.assertEqual([row[2] for row in rows], ["scheduled", "dead", "published"])
        self.assertEqual([len(row) for row in rows], [9, 9, 9])
        for words, ids in ((["--state", "dead"], [self.dead]), (["--state", "dead,scheduled"], [self.later, self.dead]),
                           (["--topic", "ok.>"], [self.later, self.good]), (["--key", "k"], [self.good]),
                           (["--limit", "1"], [self.later]), (["--before", "2"], [self.good]),
                           (["--cursor", "outbox", "--state", "expired"], [])):
            with self.subTest(words=words):
                self.assertEqual([row["id"] for row in json.loads(self.ie("outbox", "ls", "app.db", *words, "--json"))],
                                 ids)
        self.ie("outbox", "ls", "app.db", "--state", "ded", code=2)
        self.assertIn("'ded' is not one of pending, ", self.err)
        self.ie("outbox", "ls", "app.db", "--cursor", "none", code=3)
        self.assertIn("there are: outbox", self.err)

    def test_show_has_everything(self):
        text = self.ie("outbox", "show", "app.db", self.good)
        for word in (self.good, "ok.a", "acme", '{"n":1}', "published", "destination   outbox"):
            self.assertIn(word, text)
        said = json.loads(self.ie("outbox", "show", "app.db", self.good, "--json"))
        self.assertEqual((said["event"]["data"], said["event"]["tenant"]), ({"n": 1}, "acme"))
        self.assertEqual(said["destinations"][0]["state"], "published")
        self.assertEqual(self.ie("outbox", "show", "app.db", self.good, "--data"), '{"n":1}')
        said = json.loads(self.ie("outbox", "show", "app.db", self.dead, "--json"))
        self.assertIn("error", said["event"])
        self.ie("outbox", "show", "app.db", "nope", code=3)
        self.assertIn("no event has the id nope", self.err)

    def test_retry_previews_and_acts(self):
        self.ie("outbox", "retry", "app.db", code=2)
        self.assertIn("name an ID, or which events", self.err)
        self.assertIn(self.dead, self.ie("outbox", "retry", "app.db", "--state", "dead", code=2))
        self.assertIn("1 would be sent again; nothing was changed, '--all' does it", self.err)
        self.assertIn(self.dead, self.ie("outbox", "retry", "app.db", "--all", "--dry-run"))
        self.assertEqual(json.loads(self.ie("why", self.dead, "--db", "app.db", "--json"))[0]["code"], "dead")
        self.assertEqual(json.loads(self.ie("outbox", "retry", "app.db", "--state", "dead", "--all", "--json")),
                         {"changed": 1})
        self.ie("outbox", "retry", "app.db", self.good, code=1)
        self.assertIn("is published", self.err)
        self.ie("outbox", "retry", "app.db", "nope", code=3)
        self.ie("outbox", "retry", "app.db", self.dead, "--all", code=2)
        self.ie("outbox", "retry", "app.db", "--state", "published", code=1)
        self.ie("outbox", "retry", "app.db", "--state", "expired", "--all", code=3)

    def test_dry_run_of_an_id_is_about_that_id(self):
        self.assertNotIn(self.later, self.ie("outbox", "discard", "app.db", self.dead, "--dry-run"))
        self.ie("outbox", "discard", "app.db", self.good, "--dry-run", code=3)

    def test_discard_keeps_the_reason(self):
        self.assertEqual(self.ie("outbox", "discard", "app.db", self.later, "--reason", "not needed"), "1 discarded\n")
        text = self.ie("why", self.later, "--db", "app.db")
        self.assertIn("not needed", text)
        self.ie("outbox", "discard", "app.db", self.later, code=1)
        self.assertIn("is discarded", self.err)

    def test_why_in_words_and_json(self):
        text = self.ie("why", self.later, "--db", "app.db")
        self.assertRegex(text, r"^It is scheduled .* in \d+ min \(20.*Z\)\.\n  evidence: .*\n  next:     ie .*\n$")
        (answer,) = json.loads(self.ie("why", self.good, "--db", "app.db", "--json"))
        self.assertEqual(set(answer), {"code", "cursor", "sentence", "evidence", "next"})
        self.assertEqual(answer["code"], "published")
        (answer,) = json.loads(self.ie("why", "nope", "--db", "app.db", "--json", code=3))
        self.assertEqual(answer["code"], "unknown-id")
        self.assertEqual(self.err, "")
        self.ie("why", "nope", code=2)
        self.assertIn("--db names the database", self.err)
        self.ie("why", self.good, "--db", "app.db", "--cursor", "none", code=3)

    def test_text_of_strangers_cannot_drive_a_terminal(self):
        with sqlite3.connect(self.db) as db:
            db.execute("INSERT INTO ie_event (topic, key, data, content_type) VALUES ('ok.c', 'k', ?, 'text/plain')",
                       ("\x1b]0;owned\x07\n\u009b31m",))
            (event,) = db.execute("SELECT id FROM ie_event WHERE topic = 'ok.c'").fetchone()
        text = self.ie("outbox", "show", "app.db", event)
        self.assertNotIn("\x1b", text)
        self.assertNotIn("\u009b", text)
        self.assertIn("\\x1b]0;owned\\x07\\n", text)

    def test_a_terminal_gets_a_table_and_colour_only_without_no_color(self):
        for environment, bold in (({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False),
                                  ({"TERM": "dumb"}, False)):
            text = self.on_terminal(environment, "outbox", "ls", "app.db")
            self.assertIn("POSITION  TIME", text)
            self.assertEqual("\x1b[1m" in text, bold, environment)
        self.assertIn("3 events kept", self.on_terminal({"TERM": "dumb"}, "outbox", "status", "app.db"))

    def on_terminal(self, environment, *words):
        ours, theirs = pty.openpty()
        base = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
        with subprocess.Popen([IE, *words], stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.DEVNULL,
                              cwd=self.folder, env={**base, **environment}) as process:
            os.close(theirs)
            text = b""
            while True:
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # Linux says so when the other side is closed
                    break
                if not piece:
                    break
                text += piece
            self.assertEqual(process.wait(DEADLINE_S), 0)
        os.close(ours)
        return text.decode()

    def test_a_reader_that_leaves_is_no_failure_and_a_full_disk_is_one(self):
        with sqlite3.connect(self.db) as db:
            db.executemany("INSERT INTO ie_event (topic) VALUES (?)", [("ok.x",)] * 5000)
        done = subprocess.run(["bash", "-c", 'set -o pipefail; "$0" outbox ls app.db --limit 5000 | head -n 1', IE],
                              cwd=self.folder, capture_output=True, timeout=DEADLINE_S, check=False)
        self.assertEqual((done.returncode, done.stderr, done.stdout.count(b"\n")), (0, b"", 1))
        for limit in ("1", "5000"):
            with open("/dev/full", "w", encoding="ascii") as full:
                done = subprocess.run([IE, "outbox", "ls", "app.db", "--limit", limit], cwd=self.folder, stdout=full,
                                      stderr=subprocess.PIPE, timeout=DEADLINE_S, check=False)
            self.assertEqual(done.returncode, 1)
            self.assertIn(b"cannot write to standard output", done.stderr)


class Bench(Case):
    def test_every_mode_loses_nothing_and_says_what_it_took(self):
        said = json.loads(self.ie("bench", "bus", "--count", "300", "--subscribers", "3", "--publishers", "2",
                                  "--json"))
        modes = {result["mode"]: result for result in said["results"]}
        self.assertEqual(list(modes), ["publish", "fanout", "group", "query", "latency"])
        for name, result in modes.items():
            self.assertEqual(result["sent"], 600, name)
            self.assertEqual(result["arrived"], 1800 if name in ("publish", "fanout", "latency") else 600, name)
            self.assertEqual((result["lost"], result["refused"], result["disordered"]), (0, 0, 0), name)
            times = result["ns"]
            self.assertTrue(0 < times["p50"] <= times["p90"] <= times["p99"] <= times["p99_9"] <= times["max"], name)
            self.assertEqual(sum(bucket["count"] for bucket in result["histogram"]), result["arrived"], name)
            self.assertGreater(result["per_second"], 0, name)

    def test_a_bus_elsewhere_and_a_table(self):
        _, url = self.bus()
        row = self.ie("bench", "bus", "--to", url, "--mode", "publish", "--count", "100", "--size", "1KiB").split("\t")
        self.assertEqual(row[:4], ["publish", "1:1", "1024", "100"])
        self.assertEqual(row[-1], "0\n")
        said = self.ie("bench", "bus", "--to", url, "--mode", "query", "--count", "50", "--histogram")
        self.assertIn("query, question to answer:\n  up to", said)

    def test_a_steady_rate_takes_its_time_and_a_duration_ends_it(self):
        said = json.loads(self.ie("bench", "bus", "--mode", "latency", "--rate", "500", "--duration", "500ms", "--json"))
        result = said["results"][0]
        self.assertGreaterEqual(result["took_us"], 300000)
        self.assertLessEqual(result["sent"], 251)

    def test_what_is_wrong_is_said(self):
        for words, said, code in (
                (("--mode", "fanuot"), "did you mean 'fanout'", 2),
                (("--mode", "durable"), "needs --data DIR", 2),
                (("--size", "23"), "from 24 bytes to 1MiB", 2),
                (("--publishers", "65"), "is not a number from 1 to 64", 2),
                (("--to", "socket://127.0.0.1:1", "--data", "d"), "--to names another", 2)):
            self.ie("bench", "bus", *words, code=code)
            self.assertIn(said, self.err)


class Bus(Case):
    def test_the_main_job_from_a_transaction_to_a_subscriber(self):
        self.migrated()
        _, url = self.bus()
        subscriber = self.subscriber("orders.>", "--from", url, "--json", "--count", "50", "--group", "billing")
        with sqlite3.connect(self.db) as db:
            ids = [row[0] for n in range(50)
                   for row in db.execute("INSERT INTO ie_event (topic, key, data) VALUES ('orders.placed', ?, ?)"
                                         " RETURNING id", (f"k{n % 5}", json.dumps({"n": n})))]
        relay = self.start("relay", "app.db", "--to", url)
        self.assertEqual(subscriber.process.wait(DEADLINE_S), 0)
        got = [json.loads(line) for line in subscriber.stdout().splitlines()]
        self.assertEqual(sorted(event["id"] for event in got), sorted(ids))
        for key in range(5):
            self.assertEqual([event["data"]["n"] for event in got if event["partitionkey"] == f"k{key}"],
                             list(range(key, 50, 5)))
        self.assertEqual(relay.end(), 0)
        self.assertEqual(json.loads(self.ie("outbox", "status", "app.db", "--json"))
                         ["destinations"][0]["counts"]["published"], 50)

    def test_publish_says_how_many_received_it(self):
        _, url = self.bus()
        said = json.loads(self.ie("publish", "a.b", "1", "--to", url, "--json"))
        self.assertEqual(said["receivers"], 0)
        self.assertIn("nobody subscribes to a.b", self.err)
        self.ie("publish", "a.b", "1", "--to", url, "--require-subscriber", code=1)
        self.assertIn("no subscribers", self.err)
        subscriber = self.subscriber("a.*", "--from", url, "--count", "1")
        said = json.loads(self.ie("publish", "a.b", '{"x": 1}', "--to", url, "--json", "--key", "k",
                                  "--require-subscriber"))
        self.assertEqual(said["receivers"], 1)
        self.assertEqual(subscriber.process.wait(DEADLINE_S), 0)
        line = subscriber.stdout().rstrip("\n").split("\t")
        self.assertEqual(line[1:], ["a.b", "k", said["id"], '{"x": 1}'])

    def test_unix_sockets_and_several_addresses(self):
        path = self.folder / "ie.sock"
        bus, _ = self.bus("--listen", "socket://127.0.0.1:0", "--listen", f"unix:{path}")
        subscriber = self.subscriber(">", "--from", f"unix:{path}", "--count", "1", "--json")
        self.ie("publish", "a.b", "1", "--to", f"unix:{path}")
        self.assertEqual(subscriber.process.wait(DEADLINE_S), 0)
        self.assertEqual(bus.end(signal.SIGINT), 0)
        self.assertFalse(path.exists())

    def test_an_address_in_use_and_wrong_ones(self):
        _, url = self.bus()
        self.ie("bus", "--listen", url, code=1)
        self.assertIn("hint: another bus may be running", self.err)
        self.ie("bus", "--listen", "socket://0.0.0.0:0", code=1)
        self.assertIn("loopback", self.err)
        self.ie("bus", "--listen", "nonsense", code=2)

    def test_a_subscriber_comes_back_after_the_bus_does(self):
        bus, url = self.bus()
        subscriber = self.subscriber(">", "--from", url, "--count", "2", "--json")
        self.ie("publish", "a.b", "1", "--to", url)
        subscriber.wait_for(lambda: "\n" in subscriber.stdout(), "the first event, flushed")
        self.assertEqual(bus.end(), 0)
        subscriber.wait_for(lambda: "lost the bus at" in subscriber.stderr(), "the loss")
        self.bus("--listen", url)
        subscriber.wait_for(lambda: "again" in subscriber.stderr().split("lost the bus")[1].split("\n", 1)[1],
                            "the return")
        end = time.monotonic() + DEADLINE_S
        while subscriber.process.poll() is None and time.monotonic() < end:
            self.ie("publish", "a.b", "2", "--to", url)
        self.assertEqual(subscriber.process.wait(DEADLINE_S), 0)
        self.assertEqual([json.loads(line)["data"] for line in subscriber.stdout().splitlines()], [1, 2])

    def test_a_bus_that_is_away(self):
        self.ie("subscribe", "a.b", "--from", "socket://127.0.0.1:1", code=5)
        self.assertIn("ie: cannot reach bus at socket://127.0.0.1:1: connection refused\nhint: ", self.err)
        waiting = self.start("subscribe", "a.b", "--from", f"unix:{self.folder / 's'}", "--wait", "--count", "1")
        waiting.wait_for(lambda: "waiting for it" in waiting.stderr(), "patience")
        self.bus("--listen", f"unix:{self.folder / 's'}")
        waiting.wait_for(lambda: "subscribed to" in waiting.stderr(), "the subscription")
        self.ie("publish", "a.b", "1", "--to", f"unix:{self.folder / 's'}")
        self.assertEqual(waiting.process.wait(DEADLINE_S), 0)

    def test_subscribe_ends_by_time_and_by_signal(self):
        _, url = self.bus()
        self.ie("subscribe", "a.b", "--from", url, "--timeout", "200ms")
        self.ie("subscribe", "a.b", "--from", url, "--timeout", "200ms", "--count", "1", code=1)
        self.assertIn("0 of 1 events came in time", self.err)
        for number in (signal.SIGINT, signal.SIGTERM):
            self.assertEqual(self.subscriber("a.b", "--from", url).end(number), 0)
        self.ie("subscribe", "a..b", "--from", url, code=2)
        self.ie("subscribe", "a.b", "--from", "pigeon://x", code=2)

    def says(self, running, line):
        running.process.stdin.write(line.encode())
        running.process.stdin.flush()

    def test_answers_by_hand(self):
        _, url = self.bus()
        subscriber = self.subscriber("a.*", "--from", url, "--group", "g", "--ack", "manual",
                                     stdin=subprocess.PIPE)
        for number, (line, status, reason) in enumerate([
                ("ack\n", 0, ""), ("ack 2\n", 0, ""), ("nack out of stock\n", 1, "out of stock"),
                ("nack 4 5s later\n", 1, "later"), ("reject no such order\n", 1, "no such order"),
                ("what?\nack 1\nreject 6\n", 1, "refused")], 1):
            publisher = self.start("publish", "a.b", str(number), "--to", url)
            subscriber.wait_for(lambda: f"\n{number}\t" in "\n" + subscriber.stdout(), f"event {number}")
            self.assertIsNone(publisher.process.poll())
            self.says(subscriber, line)
            self.assertEqual(publisher.process.wait(DEADLINE_S), status, line + publisher.stderr())
            self.assertIn(reason, publisher.stderr())
        self.assertIn("'what?' is not understood", subscriber.stderr())
        self.assertIn("no event 1 waits", subscriber.stderr())
        subscriber.process.stdin.close()
        self.assertEqual(subscriber.process.wait(DEADLINE_S), 0)

    def test_answers_that_were_written_before(self):
        _, url = self.bus()
        answers = self.folder / "answers"
        answers.write_text("ack\n\nnack 2 1s busy\nack 3")
        with answers.open() as stdin:
            subscriber = self.subscriber("a.*", "--from", url, "--group", "g", "--ack", "manual", "--json",
                                         "--count", "3", stdin=stdin)
        self.ie("publish", "a.b", "1", "--to", url)
        self.ie("publish", "a.b", "2", "--to", url, code=1)
        self.assertIn("busy", self.err)
        self.ie("publish", "a.b", "3", "--to", url)
        self.assertEqual(subscriber.process.wait(DEADLINE_S), 0)
        got = [json.loads(line) for line in subscriber.stdout().splitlines()]
        self.assertEqual([(event["number"], event["event"]["data"]) for event in got], [(1, 1), (2, 2), (3, 3)])

    def test_yes_acknowledges_everything(self):
        _, url = self.bus()
        with subprocess.Popen(["yes", "ack"], stdout=subprocess.PIPE) as yes:
            subscriber = self.subscriber("a.*", "--from", url, "--group", "g", "--ack", "manual", "--credit", "10",
                                         "--count", "20", stdin=yes.stdout)
            yes.stdout.close()
            for number in range(20):
                self.ie("publish", "a.b", str(number), "--to", url)
            self.assertEqual(subscriber.process.wait(DEADLINE_S), 0)
        self.assertEqual(len(subscriber.stdout().splitlines()), 20)

    def numbers(self, *words):
        subscriber = self.start("subscribe", "a.>", "--json", *words)
        self.assertEqual(subscriber.process.wait(DEADLINE_S), 0, subscriber.stderr())
        got = [json.loads(line) for line in subscriber.stdout().splitlines()]
        return [event.get("event", event)["data"] for event in got]

    def test_stored_events_wait_for_their_group(self):
        address = f"unix:{self.folder / 'bus.sock'}"
        words = ("--listen", address, "--data", str(self.folder / "data"))
        bus, url = self.bus(*words)
        for number in range(1, 6):
            said = json.loads(self.ie("publish", "a.b", str(number), "--to", url, "--persistent", "--json"))
            self.assertEqual((said["stored"], self.err), (True, ""))
        self.assertEqual(self.numbers("--from", url, "--group", "g", "--from-start", "--count", "3"), [1, 2, 3])
        bus.process.kill()  # what it has stored it keeps, and where its groups stand too
        bus.process.wait(DEADLINE_S)
        self.bus(*words)
        self.assertEqual(self.numbers("--from", url, "--group", "h", "--since", "1h", "--count", "5"), [1, 2, 3, 4, 5])
        self.assertEqual(self.numbers("--from", url, "--group", "i", "--position", "4", "--count", "2"), [4, 5])
        self.ie("publish", "a.b", "6", "--to", url, "--persistent")
        self.assertEqual(self.numbers("--from", url, "--group", "h", "--from-start", "--count", "1"), [6])
        rest = self.subscriber("a.>", "--json", "--from", url, "--group", "g", "--from-start")
        rest.wait_for(lambda: '"data":6' in rest.stdout().replace(" ", ""), "the last event")
        got = [json.loads(line)["data"] for line in rest.stdout().splitlines()]
        self.assertEqual(got[-3:], [4, 5, 6])  # after a kill, those answered last may come twice
        self.assertEqual(rest.end(), 0)

    def test_a_rejected_stored_event_never_comes_again(self):
        _, url = self.bus("--listen", "socket://127.0.0.1:0", "--data", str(self.folder / "data"))
        for number in range(1, 4):
            self.ie("publish", "a.b", str(number), "--to", url, "--persistent")
        answers = self.folder / "answers"
        answers.write_text("ack\nreject no such order\nnack 10ms busy\nack\n")
        with answers.open() as stdin:
            subscriber = self.start("subscribe", "a.>", "--from", url, "--group", "g", "--from-start", "--json",
                                    "--ack", "manual", "--count", "4", stdin=stdin)
            self.assertEqual(subscriber.process.wait(DEADLINE_S), 0, subscriber.stderr())
        got = [json.loads(line) for line in subscriber.stdout().splitlines()]
        self.assertEqual([(event["number"], event["attempt"], event["position"], event["event"]["data"])
                          for event in got], [(1, 1, 1, 1), (2, 1, 2, 2), (3, 1, 3, 3), (4, 2, 3, 3)])

    def test_a_bus_without_storage_says_so(self):
        _, url = self.bus()
        subscriber = self.subscriber("a.b", "--from", url, "--count", "1")
        said = json.loads(self.ie("publish", "a.b", "1", "--to", url, "--persistent", "--json"))
        self.assertFalse(said["stored"])
        self.assertIn("the bus stores nothing on a.b", self.err)
        self.assertEqual(subscriber.process.wait(DEADLINE_S), 0)

    def test_subscriptions_that_make_no_sense(self):
        for words, said in ((("--from-start",), "--from-start goes with --group"),
                            (("--selection", "hash"), "--selection goes with --group"),
                            (("--ephemeral",), "--ephemeral goes with --group"),
                            (("--group", "g", "--selection", "best"), "none of round-robin"),
                            (("--group", "g", "--since", "yesterday"), "neither a time"),
                            (("--group", "g", "--since", "1h", "--position", "3"), "exclude each other"),
                            (("--group", "g", "--ephemeral", "--from-start"), "no place in the log"),
                            (("--group", "g", "--position", "0"), "--position"),
                            (("--ack", "maybe"), "neither auto nor manual"),
                            (("--credit", "0"), "--credit")):
            self.ie("subscribe", "a.b", *words, code=2)
            self.assertIn(said, self.err)


class Query(Case):
    def replier(self, *words, **options):
        replier = self.start("reply", *words, **options)
        replier.wait_for(lambda: "answering" in replier.stderr(), "the subscription")
        return replier

    def test_a_question_gets_its_answer(self):
        _, url = self.bus()
        replier = self.replier("stock.*", "--from", url, "--exec", 'echo "$IE_TOPIC: $(cat)"')
        self.assertEqual(self.ie("query", "stock.apple", '"how many?"', "--to", url), 'stock.apple: "how many?"\n')
        self.assertEqual(self.ie("query", "stock.pear", "--to", url, stdin=b"{}"), "stock.pear: {}\n")
        self.assertEqual(self.ie("query", "stock.fig", "-", "--to", url, "--content-type", "text/plain",
                                 stdin=b"plain"), "stock.fig: plain\n")
        self.assertEqual(replier.end(), 0)

    def test_nobody_there_is_known_at_once(self):
        _, url = self.bus()
        begun = time.monotonic()
        self.assertEqual(self.ie("query", "nobody.home", "1", "--to", url, "--timeout", "300s", code=5), "")
        self.assertLess(time.monotonic() - begun, DEADLINE_S)
        self.assertIn("nobody answers", self.err)
        self.assertIn("hint:", self.err)
        self.ie("query", "a", "1", "--to", "socket://127.0.0.1:1", code=5)
        self.assertIn("cannot reach bus at socket://127.0.0.1:1", self.err)
        self.ie("reply", "a", "--exec", "cat", "--from", "socket://127.0.0.1:1", code=5)

    def test_all_answer(self):
        _, url = self.bus()
        for name in "abc":
            self.replier("who", "--from", url, "--exec", f"echo {name}")
        self.assertEqual(sorted(self.ie("query", "who", "--to", url, "--all").split()), ["a", "b", "c"])
        self.assertEqual(len(self.ie("query", "who", "--to", url).split()), 1)

    def test_a_failing_command_declines_with_its_last_words(self):
        _, url = self.bus()
        replier = self.replier("t.>", "--from", url, "--timeout", "30s",
                               "--exec", 'case $IE_TOPIC in *.words) echo one >&2; echo "no apples" >&2; exit 3;;'
                               " *.silent) exit 4;; *.killed) kill -9 $$;; esac; head -c 2000000 /dev/zero")
        for topic, reason in (("t.words", "no apples"), ("t.silent", "exit status 4"),
                              ("t.killed", "signal 9"), ("t.big", "larger than 1048576")):
            self.ie("query", topic, "--to", url, "--timeout", "60s", code=1)
            self.assertIn(reason, self.err)
            self.assertIn(f"{topic}: declined: ", replier.stderr())

    def test_what_takes_too_long_is_ended(self):
        _, url = self.bus()
        self.replier("t", "--from", url, "--timeout", "200ms", "--exec", "cat >/dev/null; sleep 600")
        self.ie("query", "t", "--to", url, "--timeout", "60s", code=1)
        self.assertIn("took too long", self.err)
        self.ie("query", "t", "--to", url, "--timeout", "50ms", code=1)
        self.assertIn("no answer", self.err)

    def test_jobs_run_side_by_side_and_count_ends_it(self):
        _, url = self.bus()
        # each waits for the other: with one job neither would end
        replier = self.replier("t", "--from", url, "--jobs", "2", "--count", "2", "--exec",
                               'mkdir "$(cat)" && while [ ! -d a ] || [ ! -d b ]; do sleep 0.01; done; echo done')
        asking = [self.start("query", "t", name, "--to", url, "--timeout", "60s", "--content-type", "text/plain")
                  for name in "ab"]
        self.assertEqual([one.process.wait(DEADLINE_S) for one in asking], [0, 0])
        self.assertEqual(replier.process.wait(DEADLINE_S), 0)

    def test_binary_passes_as_it_is(self):
        _, url = self.bus()
        self.replier("t", "--from", url, "--exec", "cat")
        data = bytes(range(256)) + b"\n"
        done = subprocess.run([IE, "query", "t", "-", "--to", url, "--content-type", "application/octet-stream"],
                              input=data, capture_output=True, timeout=DEADLINE_S, check=True)
        self.assertEqual(done.stdout, data)

    def test_wrong_words(self):
        self.ie("reply", "a", code=2)
        self.assertIn("--exec is required", self.err)
        _, url = self.bus()
        self.ie("query", "a..b", "1", "--to", url, code=2)
        self.ie("query", "a", "{", "--to", url, code=2)
        self.ie("query", "a", "1", "--to", url, "--timeout", "0s", code=2)
        self.ie("reply", "a.>.b", "--exec", "cat", "--from", url, code=2)

    def test_an_operator_sees_and_steers_the_bus(self):
        _, url = self.bus()
        subscriber = self.subscriber("orders.>", "--from", url, "--group", "billing", "--json")
        self.replier("stock.*", "--from", url, "--exec", "cat")
        status = json.loads(self.ie("bus", "status", "--to", url, "--json"))
        self.assertEqual(status["addresses"], [url])
        self.assertEqual(status["stats"]["groups"], 1)
        self.assertIn(f"address\t{url}\n", self.ie("bus", "status", "--to", url))
        self.assertEqual(sorted(self.ie("bus", "topics", "--to", url).splitlines()),
                         ["orders.>\t0\t1\t0", "stock.*\t0\t0\t1"])
        group = json.loads(self.ie("bus", "groups", "--to", url, "--json"))
        self.assertEqual((group["group"], group["pattern"], group["members"]), ("billing", "orders.>", 1))
        self.ie("bus", "pause", "billing", "--to", url)
        self.assertIn("is paused", self.err)
        publish = self.start("publish", "orders.placed", "1", "--to", url)
        self.wait_for_queued(url, 1)
        self.assertEqual(subscriber.stdout(), "")
        self.ie("bus", "resume", "billing", "--pattern", "orders.>", "--to", url)
        self.assertEqual(publish.process.wait(DEADLINE_S), 0)
        subscriber.wait_for(lambda: subscriber.stdout().endswith("\n"), "the event")
        mine = [line.split("\t") for line in self.ie("bus", "connections", "--to", url).splitlines()]
        member = next(row[0] for row in mine if row[1] == f"ie/{subscriber.process.pid}")
        self.ie("bus", "kick", member, "--to", url)
        subscriber.wait_for(lambda: "an administrator ended" in subscriber.stderr(), "the loss")

    def test_a_durable_group_from_outside(self):
        _, url = self.bus("--listen", "socket://127.0.0.1:0", "--data", str(self.folder / "data"))
        subscriber = self.subscriber("t.>", "--from", url, "--group", "g", "--json", "--count", "3")
        for n in range(3):
            self.ie("publish", "t.x", n, "--to", url, "--persistent")
        self.assertEqual(subscriber.process.wait(DEADLINE_S), 0)
        self.wait_for_group(url, "lag", 0)
        self.ie("bus", "replay", "g", "--to", url, "--position", "2")
        self.assertIn("goes on behind position 1", self.err)
        self.wait_for_group(url, "lag", 2)
        again = self.subscriber("t.>", "--from", url, "--group", "g", "--json", "--count", "2")
        self.assertEqual(again.process.wait(DEADLINE_S), 0)
        self.assertEqual([json.loads(line)["data"] for line in again.stdout().splitlines()], [1, 2])
        rejecting = self.start("subscribe", "t.>", "--from", url, "--group", "g", "--ack", "manual",
                               stdin=subprocess.PIPE)
        self.wait_for_group(url, "members", 1)
        self.ie("publish", "t.bad", "7", "--to", url, "--persistent")
        rejecting.wait_for(lambda: "\n" in rejecting.stdout(), "the event")
        rejecting.process.stdin.write(f"reject {rejecting.stdout().split()[0]}\n".encode())
        rejecting.process.stdin.flush()
        self.wait_for_group(url, "dead", 1)
        dead = json.loads(self.ie("bus", "dead", "g", "--to", url, "--json"))
        self.assertEqual((dead["position"], dead["topic"]), (4, "t.bad"))
        self.assertIn("t.bad", self.ie("bus", "dead", "g", "--to", url))
        self.ie("bus", "dead", "g", "--to", url, "--retry", code=2)
        self.ie("bus", "dead", "g", "--to", url, "--all", code=2)
        self.ie("bus", "dead", "g", "--to", url, "--discard", "--position", "4")
        self.wait_for_group(url, "dead", 0)
        self.ie("bus", "delete", "g", "--to", url, code=1)
        self.assertIn("members", self.err)
        rejecting.end()
        self.wait_for_group(url, "members", 0)
        self.ie("bus", "delete", "g", "--to", url)
        self.assertEqual(self.ie("bus", "groups", "--to", url), "")
        self.ie("bus", "replay", "g", "--to", url, code=2)
        self.ie("bus", "replay", "g", "--to", url, "--from-start", code=3)

    def wait_for_group(self, url, member, number):
        end = time.monotonic() + DEADLINE_S
        while json.loads(self.ie("bus", "groups", "--to", url, "--json"))[member] != number:
            self.assertLess(time.monotonic(), end)

    def wait_for_queued(self, url, number):
        end = time.monotonic() + DEADLINE_S
        while json.loads(self.ie("bus", "groups", "--to", url, "--json"))["queued"] != number:
            self.assertLess(time.monotonic(), end)

    def test_what_the_bus_does_not_know(self):
        _, url = self.bus()
        self.ie("bus", "pause", "nobody", "--to", url, code=3)
        self.assertIn("no group 'nobody'", self.err)
        self.ie("bus", "kick", "99", "--to", url, code=3)
        self.ie("bus", "kick", "x", "--to", url, code=2)
        self.ie("bus", "status", "--to", "socket://127.0.0.1:1", code=5)
        self.assertIn("hint: 'ie bus' starts one", self.err)


if __name__ == "__main__":
    IE = str(pathlib.Path(sys.argv[1]).resolve())
    MAN = sys.argv[2]
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
