"""The other end of `agents`: a process that answers requests, one line of JSON each, until its stdin ends.

Only the standard library is imported, because nine of these start at once.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any


def answer_requests(commands: Mapping[str, Callable[..., Any]]) -> None:
    """Call the command that each line names with the arguments it gives; a failure is an answer too."""
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"done": commands[request.pop("do")](**request)}
        except Exception as error:  # boundary: the benchmark is told, and decides whether to go on
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def begin_at(instant: float | None) -> float:
    """Wait for an instant of the machine's monotonic clock, which all processes share; when it began.

    Without an instant, now. ValueError when the instant is over: then the start was not common.
    """
    if instant is None:
        return time.monotonic()
    left_s = instant - time.monotonic()
    if left_s < 0:
        raise ValueError(f"the common start was {-left_s:.2f} s ago")
    time.sleep(left_s)
    return instant
