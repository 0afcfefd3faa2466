"""Makes the checkout's `.venv`: what pip cannot bring first, then pip, and a marker last.

Runs under any Python 3.11+ with nothing installed, so it imports only the standard library. Called by `scripts/setup`.
"""

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

GROUPS = {"dev": ("dev", "demo"), "demo": ("demo",), "bench": ("bench", "demo")}
"""Which groups an installation covers: `dev` and `bench` include `demo`."""

PIP_INSTALLS = {"dev": ("", "dev"), "demo": ("", "demo"), "bench": ("[bench]", "demo")}
"""What pip is asked for: the distribution with this extra, and this dependency group beside it."""

BENCH_PROGRAMS = {"nginx": "nginx-light", "curl": "curl", "rsync": "rsync", "ip": "iproute2", "tc": "iproute2"}
"""What scripts/bench measures against or makes its links with -> the Debian package that has it."""

SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
"""Where daemons are installed, which is not in everybody's PATH."""

POLICY = Path("/usr/sbin/policy-rc.d")
"""Debian asks this program whether a package may start its daemon; 101 forbids it."""

PIP_WITH_GROUPS = (25, 1)
"""The first pip that knows `--group` (PEP 735)."""

PROGRESS_INTERVAL_S = 5.0
LOG_TAIL_LINES = 15

COMPILE_PROBE = "#include <Python.h>\n#include <gmp.h>\nvoid probe(mpz_t n) { mpz_init(n); }\n"
"""What fastecdsa, which libp2p needs and which comes as source only, asks of a machine."""

DROP_OLD_STUBS = """
import pathlib, shutil, sysconfig
stubs = pathlib.Path(sysconfig.get_path("purelib")) / "trio-stubs"
if stubs.exists(): shutil.rmtree(stubs)
"""
"""libp2p brings trio-typing, whose stubs of a Trio of years ago would hide Trio's own types from mypy."""


class SetupError(Exception):
    """The environment cannot be made; the message is one line with the remedy."""


def say(text: str) -> None:
    """One progress line, on stderr, so that a script's output stays its own."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def fingerprint(root: Path) -> str:
    """Changes when the installation must be done again: other requirements, a moved checkout, this file."""
    parts = (root / "pyproject.toml").read_bytes(), str(root).encode(), Path(__file__).read_bytes()
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def marker_path(root: Path) -> Path:
    """The file that says which groups are completely installed; written last."""
    return root / ".venv" / "complete.json"


def is_complete(root: Path, group: str) -> bool:
    """Whether `.venv` holds this group for the present requirements, and its Python still runs."""
    try:
        marker = json.loads(marker_path(root).read_text())
    except (OSError, ValueError):
        return False
    current = isinstance(marker, dict) and marker.get(group) == fingerprint(root)
    return current and runs(root / ".venv" / "bin" / "python", "pass")


def runs(python: Path, code: str) -> bool:
    """Whether an interpreter exists and runs a line of code without an error."""
    try:
        return subprocess.run([python, "-I", "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


class Log:
    """The set-up's log: everything the programs we run say, with a sign of life for the person waiting."""

    def __init__(self, file: TextIO) -> None:
        self.path = Path(file.name)
        self._file = file

    def run(self, command: list[str | Path], *, environment: dict[str, str] | None = None) -> int:
        """Run a command with its output in the log; its exit code."""
        print("+", shlex.join(map(str, command)), file=self._file, flush=True)
        started = last = time.monotonic()
        settings = {**os.environ, **(environment or {})}
        with subprocess.Popen(
            command,
            env=settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                self._file.write(line)
                if line.strip() and time.monotonic() - last > PROGRESS_INTERVAL_S:
                    last = time.monotonic()
                    say(f"  {last - started:3.0f} s  {line.strip()[:90]}")
        self._file.flush()
        return process.returncode

    def show_tail(self) -> None:
        """The last lines, on stderr."""
        for line in self.path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]:
            print(f"    {line}", file=sys.stderr)


def missing_packages() -> dict[str, str]:
    """Debian package -> what of it this machine lacks, in words; empty when pip has all it cannot bring itself."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    missing: dict[str, str] = {}
    if subprocess.run([sys.executable, "-I", "-c", "import venv, ensurepip"], capture_output=True).returncode:
        missing[f"{version}-venv"] = "Python's venv module"
    if compiles(COMPILE_PROBE, "-lgmp"):
        return missing
    if not compiles("#include <stdio.h>\n"):
        missing["gcc"] = f"a C compiler ({compiler()[0]})"
        missing["libc6-dev"] = "the C library's headers"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        missing[f"{version}-dev"] = "Python's headers"
    if "gcc" in missing or not compiles("#include <gmp.h>\n", "-lgmp"):
        missing["libgmp-dev"] = "GMP with its headers"
    return missing


def compiler() -> list[str]:
    """The C compiler that pip's builds will call."""
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")


def compiles(source: str, *libraries: str) -> bool:
    """Whether a shared object can be made of a C source, which is what building an extension does."""
    with tempfile.TemporaryDirectory() as directory:
        probe = Path(directory) / "probe.c"
        probe.write_text(source)
        include = "-I" + sysconfig.get_paths()["include"]
        command: list[str | Path] = [
            *compiler(),
            "-shared",
            "-fPIC",
            include,
            probe,
            "-o",
            probe.with_suffix(".so"),
            *libraries,
        ]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def is_debian() -> bool:
    """Whether apt-get is the way to install things here."""
    return Path("/etc/debian_version").exists() and shutil.which("apt-get") is not None


def provide_packages(log: Log) -> None:
    """Install what pip cannot bring when we may; else say in one line what to install. Raises SetupError."""
    missing = missing_packages()
    if not missing:
        return
    names = sorted(missing)
    lacking = ", ".join(missing.values())
    install = "apt-get install -y --no-install-recommends " + " ".join(names)
    if not is_debian():
        raise SetupError(
            f"this machine lacks {lacking}: install a C compiler, GMP and Python's own headers and venv module"
            f" (on Debian or Ubuntu: {install}), then run this again"
        )
    if os.geteuid() != 0:
        raise SetupError(f"this machine lacks {lacking}: run `sudo {install}`, then run this again")
    say(f"this machine lacks {lacking}: installing {' '.join(names)} with apt-get")
    if not apt_installs(log, names):
        raise SetupError(f"apt-get could not install {' '.join(names)}: run `{install}` and see what it says")
    still = missing_packages()
    if still:
        raise SetupError(f"apt-get ran, but {', '.join(still.values())} cannot be used yet: look into {log.path}")


def apt_installs(log: Log, names: list[str]) -> bool:
    """Whether apt-get could install these packages."""
    apt_get = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    quietly = {"DEBIAN_FRONTEND": "noninteractive"}
    # A machine that was just made often has no package lists, or old ones: then the first try fails.
    command: list[str | Path] = [*apt_get, "install", "-y", "--no-install-recommends", *names]
    if log.run(command, environment=quietly) == 0:
        return True
    log.run([*apt_get, "update"], environment=quietly)
    return log.run(command, environment=quietly) == 0


def missing_programs() -> dict[str, str]:
    """Program -> Debian package of what the benchmark could use and is not here."""
    path = f"{os.environ.get('PATH', os.defpath)}:{SBIN}"
    return {name: package for name, package in BENCH_PROGRAMS.items() if shutil.which(name, path=path) is None}


def provide_programs(log: Log) -> None:
    """Install the benchmark's programs when we may; else say what to install. Rows that need them wait till then."""
    missing = missing_programs()
    if not missing:
        return
    packages = sorted(set(missing.values()))
    lacking, install = ", ".join(missing), f"apt-get install -y --no-install-recommends {' '.join(packages)}"
    if not is_debian() or os.geteuid() != 0:
        say(f"without {lacking} some rows cannot be measured: as root, `{install}` or its like")
        return
    say(f"installing {' '.join(packages)} with apt-get for the benchmark")
    with daemons_not_started():
        installed = apt_installs(log, packages)
    if not installed or missing_programs():
        say(f"some rows cannot be measured: run `{install}` and see what it says (log: {log.path})")


@contextmanager
def daemons_not_started() -> Iterator[None]:
    """Packages installed in the block may not start their daemons: a benchmark opens nobody's port 80."""
    try:
        descriptor = os.open(POLICY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
    except FileExistsError:
        # The machine has a policy of its own, which stands.
        yield
        return
    with open(descriptor, "w", encoding="ascii") as file:
        file.write("#!/bin/sh\nexit 101\n")
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)


def make_venv(root: Path, log: Log) -> Path:
    """The Python of a working `.venv` with a pip that knows dependency groups. Raises SetupError."""
    python = root / ".venv" / "bin" / "python"
    if not runs(python, "import pip, sys; sys.exit(sys.version_info < (3, 11))"):
        say(f"making {root / '.venv'} with Python {sys.version.split()[0]}")
        # The interpreter below an active virtual environment, which may be the broken one made anew here.
        base = getattr(sys, "_base_executable", None) or sys.executable
        if log.run([base, "-I", "-m", "venv", root / ".venv"]) != 0:
            raise SetupError(f"`{base} -m venv` failed: install Python's venv module with ensurepip")
    version = subprocess.run([python, "-I", "-m", "pip", "--version"], capture_output=True, text=True, check=False)
    numbers = re.match(r"pip (\d+)\.(\d+)", version.stdout)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < PIP_WITH_GROUPS:
        say("bringing pip up to date")
        wanted = ".".join(map(str, PIP_WITH_GROUPS))
        if log.run([python, "-I", "-m", "pip", "install", "--upgrade", f"pip>={wanted}"]) != 0:
            raise SetupError("pip could not be updated: check the network and pip's settings, then run this again")
    return python


def discard_unless_working(root: Path) -> bool:
    """Remove a `.venv` that was left half-made, or whose scripts point elsewhere because the checkout moved.

    Whether there is one now that holds what was installed before.
    """
    venv = root / ".venv"
    try:
        in_place = str(venv) in (venv / "bin" / "pip").read_text(errors="replace")
    except OSError:
        in_place = False
    working = in_place and runs(venv / "bin" / "python", "import pip")
    if venv.exists() and not working:
        say(f"{venv} is incomplete or was made elsewhere: making it anew")
        shutil.rmtree(venv)
    venv.mkdir(exist_ok=True)
    return working


def install(root: Path, group: str) -> None:
    """Bring `.venv` to completeness. Raises SetupError, after showing the end of the log."""
    kept = [other for other in GROUPS if is_complete(root, other)]
    marker_path(root).unlink(missing_ok=True)
    if not discard_unless_working(root):
        kept = []
    with (root / ".venv" / "setup.log").open("w", encoding="utf-8") as file:
        log = Log(file)
        try:
            provide_packages(log)
            python = make_venv(root, log)
            say(f"installing herd and what it needs ({group}); the first time takes a minute or two")
            started = time.monotonic()
            extra, pip_group = PIP_INSTALLS[group]
            command: list[str | Path] = [python, "-I", "-m", "pip", "install", "--editable", f"{root}{extra}"]
            if log.run([*command, "--group", f"{root / 'pyproject.toml'}:{pip_group}"]) != 0:
                raise SetupError("pip failed: check the network and pip's settings, then run this again")
            if log.run([python, "-I", "-c", DROP_OLD_STUBS]) != 0:
                raise SetupError("the environment cannot be changed: remove .venv, then run this again")
        except SetupError as error:
            file.flush()
            log.show_tail()
            raise SetupError(f"{error} (whole log: {log.path})") from None
    # pip takes nothing away, so what was complete for these requirements still is.
    marker = {covered: fingerprint(root) for covered in (*kept, *GROUPS[group])}
    temporary = marker_path(root).with_suffix(".new")
    temporary.write_text(json.dumps(marker))
    temporary.replace(marker_path(root))
    say(f"done in {time.monotonic() - started:.0f} s")


def main() -> int:
    """`environment.py ROOT GROUP`; exit code 0 when the environment is complete."""
    root, group = Path(sys.argv[1]), sys.argv[2]
    if group not in GROUPS:
        say(f"unknown group {group!r}: one of {', '.join(GROUPS)}")
        return 2
    if is_complete(root, group) and not (group == "bench" and missing_programs()):
        return 0
    directory = os.open(root, os.O_RDONLY)
    try:
        # Two at once would undo each other's work; the checkout itself is the lock, so no lock file is left behind.
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another set-up of this checkout is running: waiting for it")
            fcntl.flock(directory, fcntl.LOCK_EX)
        if not is_complete(root, group):
            install(root, group)
        if group == "bench":
            with (root / ".venv" / "setup-programs.log").open("w", encoding="utf-8") as file:
                provide_programs(Log(file))
    except SetupError as error:
        say(str(error))
        return 1
    except OSError as error:
        say(f"{error}: the checkout must be writable and its disk must have room")
        return 1
    finally:
        os.close(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
