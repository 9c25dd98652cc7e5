#!/usr/bin/env python3
"""ie bus from the first line of its configuration to its last signal.

usage: bus_life_test.py IE MAN_PAGE [unittest words]
"""
import json
import os
import pathlib
import pty
import re
import resource
import select
import signal
import socket
import stat
import sys
import time
import unittest

import cli_test
from cli_test import Case, DEADLINE_S

ANY = "socket://127.0.0.1:0"


def text_of(*lines):
    return "\n".join(lines) + "\n"


class Config(Case):
    """Settings: where they come from, what is refused, what is shown."""

    def conf(self, *lines, name="bus.conf"):
        path = self.folder / name
        path.write_text(text_of(*lines))
        return path

    def printed(self, *words, **options):
        """name -> [(value, source)] of what --print-config shows as set."""
        found = {}
        for line in self.ie("bus", *words, "--print-config", **options).splitlines():
            if line and not line.startswith("#"):
                name, value, source = re.fullmatch(r"(\w+) (.*)  # (.*)", line).groups()
                found.setdefault(name, []).append((value, source))
        return found

    def env(self, **variables):
        return {"env": {**os.environ, **variables}}

    def test_flags_before_variables_before_file_before_defaults(self):
        self.conf("drain 1s", "credit_max 11", "name file", "listen unix:/run/a", "listen unix:/run/b")
        shown = self.printed("--config", "bus.conf", "--drain", "3s", "--set", "group_events_max=7",
                             **self.env(IE_BUS_DRAIN="2s", IE_BUS_CREDIT_MAX="12", IE_BUS_LISTEN="unix:/x unix:/y",
                                        IE_BUS_HELLO_TIMEOUT="1500ms"))
        self.assertEqual(shown, {
            "drain": [("3s", "--drain")],
            "credit_max": [("12", "IE_BUS_CREDIT_MAX")],
            "name": [("file", "bus.conf:3:1")],
            "listen": [("unix:/x", "IE_BUS_LISTEN"), ("unix:/y", "IE_BUS_LISTEN")],
            "hello_timeout": [("1500ms", "IE_BUS_HELLO_TIMEOUT")],
            "group_events_max": [("7", "--set")],
        })

    def test_what_is_printed_is_a_configuration(self):
        self.conf("data \"my data\"", "durable orders.>", "retention 30d", "eb1 no")
        text = self.ie("bus", "--config", "bus.conf", "--print-config")
        (self.folder / "again.conf").write_text(text)
        again = self.ie("bus", "--config", "again.conf", "--print-config")
        strip = lambda printed: re.sub(r"  # \S+:\d+:\d+$", "", printed, flags=re.M)
        self.assertEqual(strip(again), strip(text))
        self.assertEqual(len(re.findall(r"^#?\w+ ", re.sub(r"^# .*\n", "", text, flags=re.M), flags=re.M)),
                         len(set(re.findall(r"^#?(\w+) ", re.sub(r"^# .*\n", "", text, flags=re.M), flags=re.M))))

    def test_every_default_can_be_written_out(self):
        lines = [line[1:] for line in self.ie("bus", "--print-config").splitlines()
                 if re.match(r"#\w", line) and not line.endswith(" ...")]
        self.assertGreater(len(lines), 35)
        self.conf(*lines)
        self.assertIn("is right", self.ie("bus", "--config", "bus.conf", "--check-config"))

    def test_the_file_may_come_from_a_variable(self):
        self.conf("drain 9s")
        self.assertEqual(self.printed(**self.env(IE_BUS_CONFIG="bus.conf"))["drain"], [("9s", "bus.conf:1:1")])
        self.assertEqual(self.printed(**self.env(IE_BUS_CONFIG="")), {})

    def test_check_config_says_it_in_one_line(self):
        self.conf("drain 5s", "credit_max 10")
        self.assertEqual(self.ie("bus", "--config", "bus.conf", "--check-config", "--drain", "6s",
                                 **self.env(IE_BUS_NAME="x")),
                         "bus.conf is right: 1 settings; 1 more from variables, 1 from flags\n")
        self.assertIn("no file", self.ie("bus", "--check-config"))

    def test_every_fault_is_named_with_its_place(self):
        self.conf("drian 5s", "", "listen socket://127.0.0.1:0", "  credit_max many # no number")
        for words in (["--check-config"], ["--print-config"], []):
            self.assertEqual(self.ie("bus", "--config", "bus.conf", *words, code=2), "")
            self.assertEqual(self.err, text_of(
                "ie: bus.conf:1:1: 'drian' is no setting; did you mean 'drain'?",
                "ie: bus.conf:4:14: credit_max: 'many' is not a whole number"))

    def test_faults_of_flags_and_variables(self):
        for words, said in ((["--set", "drian=5s"], "ie: --set: 'drian' is no setting; did you mean 'drain'?"),
                            (["--set", "drain"], "ie: --set: 'drain' is not NAME=VALUE"),
                            (["--drain", "5"], "ie: --drain: drain: '5' is no time with its unit"),
                            (["--client-cert", "maybe"], "is not one of none, optional, required"),
                            (["--durable", "a.>"], "ie: --durable: durable needs data as well"),
                            (["--tls-cert", "x"], "ie: --tls-cert: tls_cert needs tls_key as well"),
                            (["--log-format", "xml"], "is not one of text, json"),
                            (["--drain", "1s", "--set", "drain=2s"], "'drain' is set already, at --drain")):
            with self.subTest(words=words):
                self.ie("bus", *words, "--check-config", code=2)
                self.assertIn(said, self.err)
        self.ie("bus", "--check-config", code=2, **self.env(IE_BUS_DRAIN="soon"))
        self.assertIn("ie: IE_BUS_DRAIN: drain: 'soon' is no time", self.err)
        self.ie("bus", "--check-config", **self.env(IE_BUS_DRIAN="5s", IE_BUS_SERVICE_HOST="10.0.0.1"))
        self.assertEqual(self.err, "ie: warning: the variable IE_BUS_DRIAN is ignored; did you mean IE_BUS_DRAIN?\n")

    def test_a_check_asks_what_a_start_would_ask(self):
        for words, said, code in ((["--listen", "socket://0.0.0.0:9100"], "0.0.0.0", 1),
                                  (["--listen", "socket://example.org:9100"], "give an IP address", 2),
                                  (["--users", "nobody.txt"], "nobody.txt", 1),
                                  (["--acl", "no.acl"], "no.acl", 1)):
            with self.subTest(words=words):
                self.ie("bus", *words, "--check-config", code=code)
                self.assertIn(said, self.err)
                checked = self.err
                self.ie("bus", *words, code=code)
                self.assertIn(checked.splitlines()[0], self.err)

    def test_files_that_cannot_be_read(self):
        self.ie("bus", "--config", "none.conf", "--check-config", code=1)
        self.assertEqual(self.err, "ie: none.conf: No such file or directory\n")
        self.ie("bus", "--config", ".", "--check-config", code=1)
        self.assertEqual(self.err, "ie: .: is a folder; a file is needed\n")
        if os.geteuid() != 0:
            path = self.conf("drain 1s")
            path.chmod(0)
            self.ie("bus", "--config", "bus.conf", "--check-config", code=1)
            self.assertEqual(self.err, "ie: bus.conf: Permission denied\n")
        (self.folder / "binary").write_bytes(b"drain 5s\n\x00\x01")
        self.ie("bus", "--config", "binary", "--check-config", code=2)
        self.assertIn("ie: binary:2:1: a NUL byte", self.err)
        (self.folder / "half").write_text("drain 5s\ncredit_max")
        self.ie("bus", "--config", "half", "--check-config", code=2)
        self.assertEqual(self.err, "ie: half:2:11: credit_max: the value is missing\n")


class Life(Case):
    """From the ready line to the last signal."""

    def conf(self, *lines):
        path = self.folder / "bus.conf"
        path.write_text(text_of(*lines))
        return path

    def logged(self, bus, text):
        bus.wait_for(lambda: text in bus.stderr(), text)

    def refused(self, url, data):
        """1 by the bus, or 2 by the client where it knew the bus's limit already."""
        done = cli_test.subprocess.run([cli_test.IE, "publish", "a.b", data, "--to", url, "--content-type", "text/plain"],
                                       capture_output=True, timeout=DEADLINE_S, check=False)
        self.assertIn(done.returncode, (1, 2))
        self.assertRegex(done.stderr.decode(), "larger|too big|at most 1024")

    # ---- reload

    def test_a_right_file_takes_effect_for_who_is_connected_and_a_wrong_one_does_not(self):
        path = self.conf(f"listen {ANY}", "data_bytes_max 1KiB", "drain 10s")
        bus, url = self.bus("--config", path)
        subscriber = self.subscriber(">", "--from", url, "--json")
        big = "x" * 2000
        self.refused(url, big)
        bad = (
            ("drian 5s", "'drian' is no setting; did you mean 'drain'?"),
            ("data_bytes_max 8MiB", "data_bytes_max: 8MiB is out of bounds"),
            ("listen unix:/nowhere/x", "listen cannot change while the bus runs"),
            ("name other", "name cannot change while the bus runs"),
            ("data_bytes_max", "the value is missing"),
            ("tls_cert x", "tls_cert needs tls_key"),
        )
        for count, (line, said) in enumerate(bad, 1):
            self.conf(f"listen {ANY}", "drain 20s", line)
            bus.process.send_signal(signal.SIGHUP)
            self.logged(bus, said)
            bus.wait_for(lambda: bus.stderr().count("was not reloaded, the bus goes on as before") == count,
                         "the outcome")
            self.refused(url, big)
        path.unlink()
        bus.process.send_signal(signal.SIGHUP)
        self.logged(bus, "bus.conf: No such file or directory")
        path.mkdir()
        bus.process.send_signal(signal.SIGHUP)
        self.logged(bus, "is a folder")
        path.rmdir()
        self.conf(f"listen {ANY}", "data_bytes_max 4KiB", "drain 11s")
        bus.process.send_signal(signal.SIGHUP)
        self.logged(bus, "data_bytes_max is now 4KiB (was 1KiB)")
        self.logged(bus, "drain is now 11s (was 10s)")
        self.logged(bus, "the configuration was reloaded")
        self.ie("publish", "a.b", big, "--to", url, "--content-type", "text/plain")
        subscriber.wait_for(lambda: subscriber.stdout().count("\n") == 1, "the event, on the same connection")
        self.assertNotIn("lost the bus", subscriber.stderr())
        self.assertEqual(subscriber.end(), 0)
        self.assertEqual(bus.end(), 0)

    def test_flags_outlive_a_reload(self):
        self.conf("drain 10s")
        bus, _ = self.bus("--config", "bus.conf", "--listen", ANY, "--drain", "7s")
        self.conf("drain 12s", "credit_max 5")
        bus.process.send_signal(signal.SIGHUP)
        self.logged(bus, "credit_max is now 5 (was 10000)")
        self.logged(bus, "the configuration was reloaded")
        self.assertNotIn("drain is now", bus.stderr())
        self.assertEqual(bus.end(), 0)

    # ---- stopping

    def silent(self, url):
        """A peer that never says hello."""
        host, port = url.removeprefix("socket://").rsplit(":", 1)
        peer = socket.create_connection((host, int(port)), timeout=DEADLINE_S)
        self.addCleanup(peer.close)
        return peer

    def frozen(self, url):
        """A client that is there and neither answers nor leaves: it holds a drain up to the end of its time."""
        client = self.subscriber(">", "--from", url)
        client.process.send_signal(signal.SIGSTOP)

    def test_a_second_signal_stops_at_once(self):
        for first, second in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)):
            bus, url = self.bus("--listen", ANY, "--drain", "1h")
            self.frozen(url)
            bus.process.send_signal(first)
            self.logged(bus, "draining 1 connections")
            self.assertIsNone(bus.process.poll())
            self.assertEqual(bus.end(second), 1)
            self.assertIn("stopped at once by a second signal", bus.stderr())

    def test_the_drain_ends_with_its_time_and_says_who_was_cut(self):
        bus, url = self.bus("--listen", ANY, "--drain", "100ms")
        self.frozen(url)
        self.assertEqual(bus.end(), 0)
        self.assertIn("some clients did not leave in time and were cut off", bus.stderr())
        self.assertIn("ie: stopped; 0 events were published", bus.stderr())

    # ---- systemd

    def notified(self, address):
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.bind(address)
        receiver.settimeout(DEADLINE_S)
        self.addCleanup(receiver.close)
        return receiver

    def await_state(self, receiver, state):
        while True:
            lines = receiver.recv(4096).decode().split("\n")
            if state in lines:
                return lines

    def test_systemd_is_told(self):
        path = str(self.folder / "notify")
        for address in (path, f"\0ie-test-{os.getpid()}-{time.monotonic_ns()}"):
            receiver = self.notified(address)
            config = self.conf(f"listen {ANY}")
            bus = self.start("bus", "--config", config,
                             env={**os.environ, "NOTIFY_SOCKET": address.replace("\0", "@"), "WATCHDOG_USEC": "100000"})
            ready = self.await_state(receiver, "READY=1")
            self.assertIn(f"MAINPID={bus.process.pid}", ready)
            self.assertTrue(any(line.startswith("STATUS=Listening on socket://127.0.0.1:") for line in ready))
            self.await_state(receiver, "WATCHDOG=1")
            self.await_state(receiver, "WATCHDOG=1")
            bus.process.send_signal(signal.SIGHUP)
            reloading = self.await_state(receiver, "RELOADING=1")
            self.assertTrue(any(re.fullmatch(r"MONOTONIC_USEC=\d+", line) for line in reloading))
            self.assertIn("STATUS=The configuration was reloaded", self.await_state(receiver, "READY=1"))
            self.conf("nonsense 1")
            bus.process.send_signal(signal.SIGHUP)
            self.await_state(receiver, "RELOADING=1")
            failed = self.await_state(receiver, "READY=1")
            self.assertTrue(any(line.startswith("STATUS=The configuration was not reloaded: ") for line in failed))
            bus.process.send_signal(signal.SIGTERM)
            self.assertIn("EXTEND_TIMEOUT_USEC=35000000", self.await_state(receiver, "STOPPING=1"))
            self.assertEqual(bus.process.wait(DEADLINE_S), 0)

    def test_no_service_manager_and_a_wrong_one_do_not_matter(self):
        for address in ("", "relative", "/nowhere/notify", "/" + "x" * 200):
            bus = self.start("bus", "--listen", ANY, env={**os.environ, "NOTIFY_SOCKET": address})
            bus.wait_for(lambda: "\n" in bus.stdout(), "the ready line")
            self.assertEqual(bus.end(), 0)

    # ---- what a person sees

    def on_terminal(self, *words):
        master, slave = pty.openpty()
        process = cli_test.subprocess.Popen([cli_test.IE, "bus", *words], stdin=slave, stdout=slave, stderr=slave,
                                            cwd=self.folder, start_new_session=True)
        os.close(slave)
        self.addCleanup(process.wait, DEADLINE_S)
        self.addCleanup(process.kill)
        return master, process

    def read_until(self, master, text):
        seen = b""
        end = time.monotonic() + DEADLINE_S
        while text.encode() not in seen:
            ready, _, _ = select.select([master], [], [], max(0, end - time.monotonic()))
            self.assertTrue(ready, seen)
            seen += os.read(master, 4096)
        return seen.decode().replace("\r\n", "\n")

    def test_a_newcomer_is_told_what_to_do_next(self):
        master, process = self.on_terminal("--listen", ANY)
        seen = self.read_until(master, "Ctrl-C stops the bus")
        url = re.search(r"ie bus ready on (\S+)", seen)[1]
        self.assertIn("nothing is stored: events go to who is connected; '--data DIR' keeps them", seen)
        self.assertIn(f"ie subscribe 'orders.>' --from {url}", seen)
        self.assertIn(f"ie publish orders.placed '{{\"order\":1}}' --to {url}", seen)
        process.send_signal(signal.SIGINT)
        self.assertIn("stopped; 0 events were published", self.read_until(master, "delivered"))
        self.assertEqual(process.wait(DEADLINE_S), 0)
        os.close(master)

    def test_a_terminal_that_closes_ends_the_bus(self):
        master, process = self.on_terminal("--listen", ANY)
        self.read_until(master, "Ctrl-C stops the bus")
        os.close(master)
        process.send_signal(signal.SIGHUP)
        self.assertEqual(process.wait(DEADLINE_S), 0)

    def test_log_lines_for_machines(self):
        bus, url = self.bus("--listen", ANY, "--log-format", "json")
        self.assertEqual(bus.end(), 0)
        lines = [json.loads(line) for line in bus.stderr().splitlines() if line.startswith("{")]
        self.assertEqual(lines[0]["message"], f"listening on {url}")
        self.assertEqual(set(lines[0]), {"time", "level", "module", "message"})
        self.assertEqual(lines[0]["level"], "info")

    # ---- limits of the process

    def test_nobody_reads_its_memory_and_its_files_are_its_own(self):
        path = self.folder / "ie.sock"
        old = os.umask(0)
        try:
            bus, _ = self.bus("--listen", f"unix:{path}")
        finally:
            os.umask(old)
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        status = pathlib.Path(f"/proc/{bus.process.pid}/status").read_text()
        self.assertIn("Umask:\t0077", status)
        self.assertEqual(bus.end(), 0)

    def test_out_of_files_it_waits_and_recovers(self):
        def few():
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

        bus = self.start("bus", "--listen", ANY, "--set", "hello_timeout=1h", preexec_fn=few)
        bus.wait_for(lambda: "\n" in bus.stdout(), "the ready line")
        self.assertIn("only 64 files may be open, fewer than connections_max (4096) needs", bus.stderr())
        url = bus.stdout().split()[-1]
        subscriber = self.subscriber(">", "--from", url, "--count", "2")
        self.ie("publish", "a.b", "1", "--to", url)
        peers = [self.silent(url) for _ in range(100)]
        before = self.cpu_ticks(bus)
        time_until = time.monotonic() + 1
        while time.monotonic() < time_until:
            select.select([], [], [], 0.05)
        self.assertLess(self.cpu_ticks(bus) - before, 0.5 * os.sysconf("SC_CLK_TCK"), "it spins")
        self.assertIsNone(bus.process.poll())
        for peer in peers:
            peer.close()
        end = time.monotonic() + DEADLINE_S
        while cli_test.subprocess.run([cli_test.IE, "publish", "a.b", "2", "--to", url], capture_output=True,
                                      check=False).returncode != 0:
            self.assertLess(time.monotonic(), end)
        self.assertEqual(subscriber.process.wait(DEADLINE_S), 0)
        self.assertEqual(bus.end(), 0)

    @staticmethod
    def cpu_ticks(bus):
        fields = pathlib.Path(f"/proc/{bus.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    cli_test.IE = str(pathlib.Path(sys.argv[1]).resolve())
    cli_test.MAN = sys.argv[2]
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
