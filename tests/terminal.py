"""A person at a terminal, for tests: types an answer to each question, and closes the terminal when it is right to."""

from __future__ import annotations

import os
import pty
import re
import select
import time
from collections.abc import Callable, Mapping, Sequence

ENDED = re.compile(rb"ended (\d+)\r\n$")
QUESTION = (b":", b"?", b"])")
LEADER = 'env --default-signal=INT "$@"; echo "ended $?"; read end'
"""The shell that a terminal belongs to: while it is there, what the command leaves in the background has time to become
independent. When it goes, the terminal hangs up."""


def at_a_terminal(
    command: Sequence[str],
    *answers: str,
    environment: Mapping[str, str] | None = None,
    stays: Callable[[], bool] = lambda: True,
    seconds: float = 120.0,
) -> tuple[int, str]:
    """Run a command on a terminal of its own; its exit code, and what was shown.

    The terminal hangs up at its end; after a success, once what it leaves behind `stays`.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        words = ["sh", "-c", LEADER, "sh", *command]
        os.execvpe("sh", words, dict(environment) if environment is not None else dict(os.environ))
    shown, given, asked, deadline = b"", list(answers), 0, time.monotonic() + seconds
    try:
        while not (ended := ENDED.search(shown)):
            assert time.monotonic() < deadline, shown
            if select.select([terminal], [], [], 1.0)[0]:
                shown += os.read(terminal, 4096)
            if given and shown[asked:].rstrip().endswith(QUESTION):
                asked = len(shown)
                os.write(terminal, f"{given.pop(0)}\n".encode())
        while ended[1] == b"0" and not stays():
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)
    finally:
        os.close(terminal)
        os.waitpid(pid, 0)
    return int(ended[1]), shown[: ended.start()].decode(errors="replace")
