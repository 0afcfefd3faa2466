"""The set-up knows when it is done, says in one line what is missing, and never trusts a half-made environment."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import environment
from scripts.environment import (
    Log,
    SetupError,
    daemons_not_started,
    discard_unless_working,
    fingerprint,
    install,
    is_complete,
    provide_packages,
    provide_programs,
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    return tmp_path


def mark(checkout: Path, *groups: str) -> None:
    marker = {group: fingerprint(checkout) for group in groups}
    (checkout / ".venv" / "complete.json").write_text(json.dumps(marker))


def test_only_a_marker_for_these_requirements_counts(checkout: Path) -> None:
    assert not is_complete(checkout, "demo")
    mark(checkout, "demo")
    assert is_complete(checkout, "demo")
    assert not is_complete(checkout, "dev")
    (checkout / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert not is_complete(checkout, "demo")
    (checkout / ".venv" / "complete.json").write_text("[half")
    assert not is_complete(checkout, "demo")


def test_an_environment_whose_python_is_gone_is_not_complete(checkout: Path) -> None:
    mark(checkout, "demo")
    (checkout / ".venv" / "bin" / "python").unlink()
    assert not is_complete(checkout, "demo")


def test_a_half_made_or_moved_environment_is_removed(checkout: Path) -> None:
    (checkout / ".venv" / "leftover").touch()
    (checkout / ".venv" / "bin" / "pip").write_text("#!/elsewhere/.venv/bin/python\n")
    discard_unless_working(checkout)
    assert list((checkout / ".venv").iterdir()) == []


def test_a_second_group_leaves_the_first_complete(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(log: Log, command: list[str | Path], **_: object) -> int:
        ran.append([str(part) for part in command])
        return 0

    monkeypatch.setattr(environment, "provide_packages", lambda log: None)
    monkeypatch.setattr(environment, "make_venv", lambda root, log: Path(sys.executable))
    monkeypatch.setattr(Log, "run", run)
    (checkout / ".venv" / "bin" / "pip").write_text(f"#!{checkout}/.venv/bin/python\n")
    mark(checkout, "dev", "demo")
    install(checkout, "bench")
    assert f"{checkout}[bench]" in ran[0]
    assert ran[0][-2:] == ["--group", f"{checkout}/pyproject.toml:demo"]
    assert all(is_complete(checkout, group) for group in ("dev", "demo", "bench"))
    # What was made anew holds only what was installed since.
    (checkout / ".venv" / "bin" / "pip").write_text("#!/elsewhere/.venv/bin/python\n")
    install(checkout, "demo")
    (checkout / ".venv" / "bin").mkdir()
    (checkout / ".venv" / "bin" / "python").symlink_to(sys.executable)
    assert is_complete(checkout, "demo")
    assert not is_complete(checkout, "dev")


def test_without_root_the_benchmarks_programs_are_named_once_and_nothing_fails(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr(
        environment, "missing_programs", lambda: {"ip": "iproute2", "tc": "iproute2", "nginx": "nginx-light"}
    )
    with (checkout / "log").open("w") as log:
        provide_programs(Log(log))
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "ip, tc, nginx" in told
    assert told.count("iproute2") == 1


def test_a_package_may_not_start_its_daemon_while_it_is_installed(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = checkout / "policy-rc.d"
    monkeypatch.setattr(environment, "POLICY", policy)
    with daemons_not_started():
        assert subprocess.run([policy, "nginx", "start"], check=False).returncode == 101
    assert not policy.exists()
    policy.write_text("the machine's own")
    with daemons_not_started():
        assert policy.read_text() == "the machine's own"
    assert policy.read_text() == "the machine's own"


@pytest.mark.parametrize(("debian", "remedy"), [(True, "sudo apt-get install"), (False, "on Debian or Ubuntu")])
def test_without_root_one_line_names_what_to_install(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, debian: bool, remedy: str
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(environment, "is_debian", lambda: debian)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with (checkout / "log").open("w") as log, pytest.raises(SetupError) as told:
        provide_packages(Log(log))
    line = str(told.value)
    assert "\n" not in line
    assert remedy in line
    for package in ("gcc", "libgmp-dev"):
        assert package in line


def test_a_command_that_fails_leaves_its_words_in_the_log(checkout: Path) -> None:
    with (checkout / "log").open("w") as file:
        assert Log(file).run([sys.executable, "-c", "print('the reason'); raise SystemExit(3)"]) == 3
    assert "the reason" in (checkout / "log").read_text()


def test_too_old_a_python_is_told_with_its_version(tmp_path: Path) -> None:
    """`scripts/setup` sees only a python3 that is too old."""
    for name in ("python3", "python3.11"):
        old = tmp_path / name
        old.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo Python 3.9.2; exit 0; }\nexit 1\n')
        old.chmod(0o755)
    for tool in ("bash", "dirname", "head"):
        found = subprocess.run(["/bin/sh", "-c", f"command -v {tool}"], capture_output=True, text=True, check=True)
        (tmp_path / tool).symlink_to(found.stdout.strip())
    script = Path(__file__).resolve().parents[2] / "scripts" / "setup"
    told = subprocess.run(
        [tmp_path / "bash", script], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert told.returncode == 1
    assert "Python 3.11 or newer" in told.stderr
    assert "Python 3.9.2" in told.stderr
    assert told.stderr.count("\n") == 1
