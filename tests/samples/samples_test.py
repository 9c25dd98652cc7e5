#!/usr/bin/env python3
"""The samples do what they show, and the documents show what is there.

Each command is one test of ctest (label samples); says what is wrong and exits 1.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SAMPLES = ROOT / "samples"
ORDERS = SAMPLES / "shop" / "orders.jsonl"
README = ROOT / "README.md"
PATIENCE_S = 60
UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def fail(*lines):
    for line in lines:
        print(line, file=sys.stderr)
    sys.exit(1)


def check(is_so, *lines):
    if not is_so:
        fail(*lines)


def run(*command, status=0, stdin=subprocess.DEVNULL, **options):
    """Run a command that must end with this status; its standard output and error as text."""
    command = [str(word) for word in command]
    done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, check=False,
                          timeout=240, **options)
    if done.returncode != status:
        fail(f"status {done.returncode}, not {status}: {' '.join(command)}", done.stdout, done.stderr)
    return done.stdout, done.stderr


def wait_until(what, is_so):
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        check(time.monotonic() < deadline, f"waited {PATIENCE_S} s in vain until {what}")
        time.sleep(0.01)


def ask(database, query):
    """The rows of a query."""
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def hello(options, folder):
    """Publishes and receives; a second run on the same file too."""
    for _ in range(2):
        said, _ = run(options.bin / "hello", cwd=folder)
        check(said == 'orders.placed ada {"item":"tea"}\n', f"hello said: {said}")
    check(ask(folder / "hello.db", "SELECT count(*) FROM orders") == [(2,)], "two runs, two orders")
    (folder / "hello.db-wal").unlink(missing_ok=True)
    (folder / "hello.db").write_bytes(b"not a database" * 100)
    said, complaint = run(options.bin / "hello", cwd=folder, status=1)
    check(said == "" and "not a database" in complaint, f"on a broken file: {said}{complaint}")


def read_summary(text):
    return {name: int(number) for name, number in re.findall(r"(?m)^(\w+) +(\d+)", text)}


def shop_with_bad_input(options, folder):
    """Lines that are no orders are named and skipped; refused orders leave neither row nor event."""
    good = '{"order":"%s","customer":"%s","sku":"%s","quantity":%s}\n'
    (folder / "orders").write_text(
        good % ("A-1", "ada", "cup", 2)
        + "\n"
        + "{\n"
        + "[]\n"
        + '{"order":"A-2","customer":"ada","sku":"cup"}\n'
        + good % ("A-3", "ada", "cup", -1)
        + good % ("A-4", "ada", "cup", 0)
        + good % ("A-5", "ada", "cup", 1001)
        + good % ("A-6", "ada", "cup", "1.5")
        + good % ("A-7", "ada", "cup", "99999999999999999999")
        + good % ("", "ada", "cup", 1)
        + good % ("A-\\u0000", "ada", "cup", 1)
        + '{"order":"A-8","order":"A-9","customer":"ada","sku":"cup","quantity":1}\n'
        + "[" * 100000 + "\n"
        + good % ("A-10", "ada", "coffee", 1)        # no such product
        + good % ("A-1", "ada", "cup", 1)            # number used before
        + good % ("A-11", "bob", "pot-iron", 1000)   # over bob's credit
        + good % ("A-12", "carol", "tin", 1000)      # over carol's credit
        + good % ("A-13", "ada", "tea-assam", 1)
        + (good % ("A-14", "x" * 3000, "cup", 1)).rstrip())  # a key that no event may have
    said, complaint = run(options.bin / "shop", folder / "shop.db", folder / "orders", status=1)
    check("A-14" in complaint and "key" in complaint, f"the last order: {complaint}")
    summary = read_summary(said)
    check(summary == {"read": 20, "malformed": 13, "refused": 4, "committed": 2}, said)
    check(len(re.findall(r"(?m)^shop: line \d+: ", complaint)) == 13, complaint)
    check(ask(folder / "shop.db", "SELECT id FROM orders ORDER BY id") == [("A-1",), ("A-13",)],
          "the committed orders")
    events = ask(folder / "shop.db", "SELECT key, data FROM ie_event ORDER BY position")
    check([(key, json.loads(data)["order"]) for key, data in events]
          == [("ada", "A-1"), ("ada", "A-13")], f"their events: {events}")
    check(ask(folder / "shop.db", "SELECT count(*) FROM customers") == [(1,)],
          "a refused order leaves no customer behind")
    run(options.bin / "shop", folder / "shop.db", folder / "missing", status=1)
    run(options.bin / "shop", status=2)


def orders_are_as_generated(_options, folder):
    """orders.jsonl is what make-orders writes."""
    shutil.copy(SAMPLES / "shop" / "make-orders", folder)
    run(sys.executable, folder / "make-orders")
    check((folder / "orders.jsonl").read_bytes() == ORDERS.read_bytes(),
          "samples/shop/orders.jsonl differs from what make-orders writes")


def plain_sql(options, folder):
    """Events inserted by Python and by the sqlite3 shell arrive, in order; a failing transaction
    leaves none."""
    run(options.bin / "hello", cwd=folder)
    python, _ = run(sys.executable, SAMPLES / "sql" / "publish.py", "hello.db", cwd=folder)
    with open(SAMPLES / "sql" / "publish.sql", encoding="utf-8") as script:
        shell, _ = run("sqlite3", "hello.db", stdin=script, cwd=folder)
    check(UUID7.fullmatch(python.strip()), f"publish.py printed {python}")
    check(UUID7.fullmatch(shell.strip()), f"publish.sql printed {shell}")
    rows = ask(folder / "hello.db", "SELECT id, key FROM ie_event ORDER BY position DESC LIMIT 2")
    check(rows == [(shell.strip(), "alan"), (python.strip(), "grace")], f"the events: {rows}")
    said, _ = run(options.bin / "hello", cwd=folder)  # its worker brings the oldest first
    check(said == 'orders.placed grace {"item": "cup"}\n', f"the next event is: {said}")

    before = ask(folder / "hello.db", "SELECT count(*) FROM ie_event")
    (folder / "broken.sql").write_text(
        (SAMPLES / "sql" / "publish.sql").read_text().replace("INTO orders", "INTO nowhere"))
    with open(folder / "broken.sql", encoding="utf-8") as script:
        run("sqlite3", "hello.db", stdin=script, cwd=folder, status=1)
    (folder / "broken.py").write_text(
        (SAMPLES / "sql" / "publish.py").read_text().replace('("orders.placed"', '(None'))
    run(sys.executable, "broken.py", "hello.db", cwd=folder, status=1)
    check(ask(folder / "hello.db", "SELECT count(*) FROM ie_event") == before,
          "a failed transaction left an event")


class Bus:
    """`ie bus` on a free loopback port."""

    def __init__(self, options, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"socket://127.0.0.1:{port}"
        with open(folder / "bus.log", "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [options.bin / "ie", "bus", "--listen", self.url], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log)
        wait_until("the bus listens", lambda: self.process.poll() is not None or self.answers(port))
        check(self.process.poll() is None, (folder / "bus.log").read_text())

    @staticmethod
    def answers(port):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            status = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        if sys.exc_info()[0] is None:
            check(status == 0, f"ie bus ended with {status}")


def consumer(options, folder):
    """The consumer packs each order once, although the bus brings it twice."""
    run(options.bin / "hello", cwd=folder)
    run(sys.executable, SAMPLES / "sql" / "publish.py", "hello.db", cwd=folder)
    with Bus(options, folder) as bus:
        with subprocess.Popen([options.bin / "consumer", bus.url], stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True, cwd=folder) as process:
            try:
                for cursor in ("first", "second"):
                    relay = [str(options.bin / "ie"), "relay", str(folder / "hello.db"), "--to",
                             bus.url, "--cursor", cursor, "--once"]
                    # It is refused until the consumer has subscribed.
                    wait_until("the consumer is there", lambda command=relay: subprocess.run(
                        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S,
                        check=False).returncode == 0)
                said, _ = process.communicate("\n", timeout=PATIENCE_S)
            finally:
                process.kill()
        check(process.returncode == 0, f"the consumer ended with {process.returncode}: {said}")
    lines = said.splitlines()
    check(len(lines) == 5 and lines[0].startswith("waiting for orders"), said)
    check([line.split(" ", 1)[1] for line in lines[1:]] == ["packed"] * 2 + ["was known"] * 2, said)
    check(ask(folder / "parcels.db", "SELECT what FROM parcels") ==
          [('{"item":"tea"}',), ('{"item": "cup"}',)], "the parcels")


def without_a_bus(options, folder):
    """A consumer says what it cannot reach, and ends."""
    nowhere = f"unix:{folder}/nobody.sock"
    billing = [options.bin / "billing", folder / "billing.db", nowhere]
    with subprocess.Popen(billing, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True) as process:
        _, complaint = run(options.bin / "consumer", nowhere, cwd=folder, status=1)
        check(nowhere in complaint, f"consumer: {complaint}")
        _, complaint = process.communicate(timeout=PATIENCE_S)
    check(process.returncode == 1, f"billing ended with {process.returncode}")
    check(nowhere in complaint and "ie bus" in complaint, f"billing: {complaint}")


def eb1_pool(options, _folder):
    """Twelve jobs, three workers, four each; and a bus that is not there is named."""
    said, _ = run(options.bin / "eb1_pool")
    lines = said.splitlines()
    expected = [f"{n} squared is {n * n}, says worker {(n - 1) % 3 + 1}" for n in range(1, 13)]
    check(sorted(lines[:12]) == sorted(expected), f"the answers: {said}")
    check(lines[12:] == [f"worker {n} did 4" for n in (1, 2, 3)], f"the shares: {said}")
    run(options.bin / "eb1_pool", "nats://nowhere", status=1)


def mail(options, _folder):
    """The command is handled, the query answered, and who has left is not waited for."""
    said, _ = run(options.bin / "mail")
    lines = said.splitlines()
    check(lines[:-1] == ["sent: Invoice 17", "sent: Lunch?", "sent: Invoice 18", "about Invoice: 2",
                         "  Invoice 17: Please pay.", "  Invoice 18: Please pay this one, too.",
                         "about Holiday: 0"], f"mail said: {said}")
    check(lines[-1] in ("the mailbox is away: nobody answers this topic",
                        "the mailbox is away: it does not answer any more"), f"mail said: {said}")


def demo(options, folder):
    """The demonstration, twice; the table is the one in the README, and nothing stays behind."""
    shown = next(block for language, block in blocks() if language == "text")
    for _ in range(2):
        said, _ = run(SAMPLES / "demo",
                      env={**os.environ, "IE_BIN": str(options.bin), "TMPDIR": str(folder)})
        table = said[said.index("orders committed"):]
        check(mask(table) == mask(shown), f"the table is\n{table}and the README shows\n{shown}")
        check(list(folder.iterdir()) == [], f"left behind: {list(folder.iterdir())}")


def mask(table):
    """Without the one number that differs from run to run."""
    return re.sub(r"(duplicates absorbed) +\d+", r"\1 n", table)


def blocks():
    """The code blocks of the README: (language, text)."""
    return re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", README.read_text())


def readme(_options, _folder):
    """The code in the README is the samples' own; its links lead somewhere; it is short."""
    text = README.read_text()
    found = blocks()
    for path in (SAMPLES / "hello" / "hello.c", SAMPLES / "hello" / "consumer.c"):
        check(("c", path.read_text()) in found, f"the README does not show {path.name} as it is")
    for language, path in (("python", "publish.py"), ("sql", "publish.sql")):
        shown = [block for name, block in found if name == language]
        check(len(shown) == 1 and (SAMPLES / "sql" / path).read_text().endswith(shown[0]),
              f"the README does not show the end of {path} as it is")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in link:
            check((ROOT / link).exists(), f"the README links to {link}, which is not there")
    check(len(text.splitlines()) < 250, "the README has 250 lines or more")


def readme_when_pasted(options, folder):
    """The README's first program, typed in against an installed library, with its commands."""
    prefix = folder / "prefix"
    run("cmake", "--install", options.build, "--prefix", prefix)
    found = blocks()
    work = folder / "work"
    work.mkdir()
    programs = [block for language, block in found if language == "c"]
    (work / "hello.c").write_text(programs[0])
    (work / "consumer.c").write_text(programs[1])
    lib = str(next(prefix.rglob("libie.so")).parent)
    (work / "bin").mkdir()
    (work / "bin" / "cc").symlink_to(shutil.which(options.cc) or options.cc)
    environment = {**os.environ, "LD_LIBRARY_PATH": lib, "PKG_CONFIG_PATH": f"{lib}/pkgconfig",
                   "PATH": f"{work / 'bin'}:{os.environ['PATH']}"}
    pasted = next(block for language, block in found if language == "sh" and "hello.c" in block)
    said, _ = run("sh", "-e", "-c", pasted, cwd=work, env=environment)
    expected = re.search(r"# (.*)", pasted).group(1)
    check(said == expected + "\n", f"pasted: {pasted}said: {said}")
    run("sh", "-e", "-c", pasted.replace("hello", "consumer").split("\n")[0], cwd=work,
        env=environment)
    project = folder / "project"
    project.mkdir()
    shutil.copy(work / "hello.c", project)
    lines = next(block for language, block in found if language == "cmake")
    (project / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(app LANGUAGES C)\nadd_executable(app hello.c)\n"
        + lines)
    run("cmake", "-S", project, "-B", project / "build", f"-DCMAKE_PREFIX_PATH={prefix}",
        f"-DCMAKE_C_COMPILER={options.cc}")
    run("cmake", "--build", project / "build")
    said, _ = run(project / "build" / "app", cwd=project)
    check(said == expected + "\n", f"the program built with CMake said: {said}")


def schema_document(_options, _folder):
    """migrations/README.md names the columns that the migrations make, all and in order."""
    database = sqlite3.connect(":memory:")
    for path in sorted((ROOT / "migrations").glob("[0-9]*.up.sql")):
        database.executescript(path.read_text())
    documented = {}
    table = None
    for line in (ROOT / "migrations" / "README.md").read_text().splitlines():
        heading = re.match(r"`(ie_\w+)`: ", line)
        column = re.match(r"\| `(\w+)` \|", line)
        if heading:
            table = heading.group(1)
            documented[table] = []
        elif line.startswith("#"):
            table = None
        elif column and table:
            documented[table].append(column.group(1))
    made = {name: [row[1] for row in database.execute(f"PRAGMA table_info({name})")]
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    check(made == documented, f"the migrations make {made}", f"the document has {documented}")


def main():
    commands = (hello, shop_with_bad_input, orders_are_as_generated, plain_sql,
                without_a_bus, eb1_pool, mail, consumer, demo, readme, readme_when_pasted, schema_document)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=[command.__name__ for command in commands])
    parser.add_argument("--build", type=lambda text: pathlib.Path(text).resolve(),
                        help="the build folder")
    parser.add_argument("--bin", type=lambda text: pathlib.Path(text).resolve(),
                        help="where the programs are")
    parser.add_argument("--cc", default="cc", help="the C compiler")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ie-samples-") as folder:
        chosen = next(command for command in commands if command.__name__ == options.command)
        chosen(options, pathlib.Path(folder))


if __name__ == "__main__":
    main()
