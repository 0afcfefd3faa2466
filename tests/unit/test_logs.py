"""node/logs: lines for people, lines for programs, and nothing left behind."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from node.errors import UsageError
from node.logs import LogConfig, logging_to

log = logging.getLogger("herd.test")


def test_text_lines_cannot_be_forged_by_what_a_peer_says(capsys: pytest.CaptureFixture[str]) -> None:
    with logging_to(LogConfig()):
        log.warning("peer said %s", "hello\n2026-01-01T00:00:00.000Z info herd: all is well \x1b[2J")
        log.debug("not at this level")
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert told.endswith(
        "warning herd.test: peer said hello\\n2026-01-01T00:00:00.000Z info herd: all is well \\x1b[2J\n"
    )


def test_json_lines_carry_the_traceback_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "herd.log"
    with logging_to(LogConfig(format="json", file=str(file), level="debug")):
        try:
            raise ValueError("broken")
        except ValueError:
            log.exception("it failed: %d", 7)
    [line] = file.read_text().splitlines()
    told = json.loads(line)
    assert (told["level"], told["logger"], told["message"]) == ("error", "herd.test", "it failed: 7")
    assert "ValueError: broken" in told["error"]
    assert told["time"].endswith("Z")


def test_libraries_are_quiet_below_warning_and_everything_is_put_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    # As py-libp2p leaves its logger when it is imported.
    monkeypatch.setattr(logging.getLogger("libp2p"), "propagate", False)
    before = (root.level, root.handlers[:], logging.getLogger("libp2p").level)
    with logging_to(LogConfig(level="debug")):
        logging.getLogger("libp2p.host").info("a packet")
        logging.getLogger("libp2p.host").warning("a fault")
        log.debug("our own")
    told = capsys.readouterr().err
    assert "a packet" not in told
    assert "a fault" in told
    assert "our own" in told
    assert (root.level, root.handlers[:], logging.getLogger("libp2p").level) == before
    assert not logging.getLogger("libp2p").propagate


def test_a_log_file_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as refused, logging_to(LogConfig(file=str(tmp_path / "no" / "herd.log"))):
        pass
    assert str(refused.value) == f"{tmp_path}/no/herd.log: cannot write the log (log.file): No such file or directory"


def test_the_transport_hands_the_librarys_warnings_to_the_log() -> None:
    # In a process of its own: the order of imports is what matters.
    told = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            "import logging; from node.logs import LogConfig, logging_to\n"
            "with logging_to(LogConfig()):\n"
            "    import node.transport.host\n"
            "    logging.getLogger('libp2p.host').warning('a fault')",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert "warning libp2p.host: a fault" in told
