#!/usr/bin/env python3
"""What people get who install libie: headers, symbols, and programs built against it.

Each command is one test of ctest (label package); prints what is wrong and exits 1.
"""
import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
HERE = ROOT / "tests" / "package"
EXPORTS = HERE / "exports.txt"

# The library returns; it neither ends the process nor prints.
FORBIDDEN = {
    "abort", "exit", "_exit", "_Exit", "quick_exit", "printf", "vprintf", "puts", "putchar",
    "__printf_chk", "__vprintf_chk", "perror", "psignal", "err", "errx", "warn", "warnx",
    "stdout", "stderr",
}


def fail(*lines):
    for line in lines:
        print(line, file=sys.stderr)
    sys.exit(1)


def run(*command, **options):
    """Run a command that must succeed; its standard output as text."""
    command = [str(word) for word in command]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False, **options)
    if done.returncode != 0:
        fail("failed: " + " ".join(command), done.stdout)
    return done.stdout


def public_headers():
    return sorted((ROOT / "include" / "ie").glob("*.h"))


def cxx_compiler(cc):
    """A C++ compiler, the sibling of cc first."""
    sibling = cc.replace("clang", "clang++") if "clang" in cc else re.sub(r"g?cc\b", "g++", cc)
    for name in (sibling, "c++", "g++", "clang++"):
        path = shutil.which(name)
        if path is not None and name != cc:
            return path
    return fail("no C++ compiler; install it with: apt-get install g++")


def sized_structs_with_padding(header, warnings):
    """Of the structs that -Wpadded names, those that may grow: they start with their size."""
    lines = header.read_text().splitlines()
    found = []
    for match in re.finditer(rf"{header.name}:(\d+):\d+: warning: .*pad", warnings):
        number = int(match.group(1)) - 1
        start = number
        while start > 0 and not re.match(r"(typedef )?struct\b.*\{", lines[start]):
            start -= 1
        if re.match(r"\s+size_t\s+size;", lines[start + 1]):
            found.append(f"{header.name}:{number + 1}: padding in {lines[start].rstrip(' {')}")
    return found


def headers(options):
    """Each public header stands alone, as C11 and as C++17, and ie.h includes all."""
    wrong = []
    strict = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{ROOT / 'include'}", "-fsyntax-only"]
    everything = (ROOT / "include/ie/ie.h").read_text()
    cxx = cxx_compiler(options.cc)
    with tempfile.TemporaryDirectory() as folder:
        for header in public_headers():
            for compiler, name, std in ((options.cc, "c.c", "-std=c11"),
                                        (cxx, "cpp.cpp", "-std=c++17")):
                source = pathlib.Path(folder) / name
                source.write_text(f"#include <ie/{header.name}>\n#include <ie/{header.name}>\n")
                run(compiler, std, *strict, source)
            source = pathlib.Path(folder) / "c.c"
            source.write_text(f"#include <ie/{header.name}>\n")
            warnings = run(options.cc, "-std=c11", "-Wpadded", f"-I{ROOT / 'include'}",
                           "-fsyntax-only", source)
            wrong += sized_structs_with_padding(header, warnings)
            if header.name != "ie.h" and f"<ie/{header.name}>" not in everything:
                wrong.append(f"ie.h does not include {header.name}")
            if re.search(r"#include <(uv|jansson|sqlite3)\.h>", header.read_text()):
                wrong.append(f"{header.name} includes a dependency's header")
    if wrong:
        fail(*wrong)


def includes(_options):
    """No file reaches into another folder by path."""
    wrong = []
    for folder in ("include", "src", "outbox", "publishers", "tests", "samples"):
        for path in sorted((ROOT / folder).rglob("*.[ch]")):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if re.match(r'\s*#\s*include\s+"\.\./', line):
                    wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    if wrong:
        fail(*wrong)


def exports(options):
    """The shared library exports what exports.txt lists, nothing more, nothing less."""
    output = run("nm", "-D", "--defined-only", options.shared)
    found = sorted(line.split()[-1] for line in output.splitlines())
    if options.update:
        EXPORTS.write_text("".join(name + "\n" for name in found))
        return
    known = EXPORTS.read_text().split()
    declared = set()
    for header in public_headers():
        declared.update(re.findall(r"\bIE_API\b[^;(]*?\b(ie_\w+)\s*[(;]", header.read_text()))
    wrong = [f"declared with IE_API, but not exported: {name}"
             for name in sorted(declared - set(found))]
    wrong += [f"exported, but declared nowhere: {name}" for name in sorted(set(found) - declared)]
    wrong += [f"exported, but not in exports.txt: {name}" for name in found if name not in known]
    wrong += [f"in exports.txt, but not exported: {name}" for name in known if name not in found]
    if known != sorted(known):
        wrong.append("exports.txt is not sorted")
    if wrong:
        fail(*wrong, "when this is meant: tests/package/update-exports")


def symbols(options):
    """Static users meet only names that start with ie_, and no call that ends or prints."""
    wrong = []
    member = "?"
    for line in run("nm", "-g", options.static).splitlines():
        if line.endswith(":"):
            member = line[:-1]
        match = re.match(r"[0-9a-f]*\s+([A-TV-Z])\s+(\S+)$", line)
        if match and not match.group(2).startswith("ie_"):
            wrong.append(f"{member}: global symbol without ie_ in front: {match.group(2)}")
        match = re.match(r"\s+U\s+(\S+)$", line)
        if match and match.group(1).split("@")[0] in FORBIDDEN:
            wrong.append(f"{member}: a library must not use {match.group(1)}")
    if wrong:
        fail(*wrong)


def build_with_cmake(source, build, prefix, compiler, *settings):
    run("cmake", "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}",
        f"-DCMAKE_C_COMPILER={compiler}", *settings)
    run("cmake", "--build", build)


def check_consumer(program, **environment):
    said = run(program, env={**os.environ, **environment})
    if said != "delivered 1\n":
        fail(f"{program} said: {said}")


def pc_environment(prefix):
    folders = [str(path.parent) for path in prefix.rglob("libie.pc")]
    return {**os.environ, "PKG_CONFIG_PATH": ":".join(folders)}


def library_folder(prefix):
    return str(next(prefix.rglob("libie.so")).parent)


def build_with_pkg_config(prefix, program, compiler, static):
    environment = pc_environment(prefix)
    flags = run("pkg-config", *(["--static"] if static else []), "--cflags", "--libs", "libie",
                env=environment).split()
    if static:  # our archive, everything else as the system has it
        flags = ["-l:libie.a" if flag == "-lie" else flag for flag in flags]
    run(compiler, "-std=c11", HERE / "consumer" / "main.c", *flags, "-o", program)


def consumers(options):
    """A small program against the installed tree: CMake and pkg-config, shared and static, and
    all of it again after the tree has moved."""
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        prefix = work / "first"
        run("cmake", "--install", options.build, "--prefix", prefix)
        for name in ("as installed", "moved"):
            build = work / name.replace(" ", "-")
            build_with_cmake(HERE / "consumer", build, prefix, options.cc)
            check_consumer(build / "consumer_shared")
            check_consumer(build / "consumer_static")
            build_with_pkg_config(prefix, build / "pc_shared", options.cc, False)
            check_consumer(build / "pc_shared", LD_LIBRARY_PATH=library_folder(prefix))
            build_with_pkg_config(prefix, build / "pc_static", options.cc, True)
            check_consumer(build / "pc_static")
            if "libie" in run("ldd", build / "pc_static"):
                fail("the static program loads libie.so")
            for path in list(prefix.rglob("*.cmake")) + list(prefix.rglob("*.pc")):
                for needle in (str(work / "first"), str(ROOT), str(options.build)):
                    if needle in path.read_text():
                        fail(f"{path} holds the absolute path {needle}")
            moved = work / "second" / "place"
            if name == "as installed":
                moved.parent.mkdir()
                prefix.rename(moved)
                prefix = moved
        command = prefix / "bin" / "ie"
        if command.exists():
            run(command, "--help")


def third_party(options):
    """The sample publisher is built from the installed package alone, passes the suite that
    comes with it, and serves a worker."""
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        run("cmake", "--install", options.build, "--prefix", work / "prefix")
        source = work / "source"  # away from our tree, so that nothing of it is found by chance
        shutil.copytree(ROOT / "samples" / "third_party_publisher", source)
        build_with_cmake(source, work / "build", work / "prefix", options.cc)
        print(run(work / "build" / "conformance_test"))
        said = run(work / "build" / "third_party_publisher", work / "orders.db",
                   f"lines:{work / 'out'}")
        if said != "published 2, pending 0\n":
            fail(f"third_party_publisher said: {said}")
        lines = (work / "out").read_text().splitlines()
        if len(lines) != 2 or not all(line.startswith("orders.placed ") for line in lines):
            fail(f"the lines are: {lines}")


def main():
    commands = (headers, includes, exports, symbols, consumers, third_party)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=[command.__name__ for command in commands])
    parser.add_argument("--build", type=pathlib.Path, help="the build folder")
    parser.add_argument("--shared", help="libie.so")
    parser.add_argument("--static", help="libie.a")
    parser.add_argument("--cc", default="cc", help="the C compiler")
    parser.add_argument("--update", action="store_true", help="exports: write the list anew")
    options = parser.parse_args()
    next(command for command in commands if command.__name__ == options.command)(options)


if __name__ == "__main__":
    main()
