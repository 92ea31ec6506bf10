"""Process 1 of a test site: starts its daemons, signals them on request, reaps everybody, ends with its stdin.

Run by `testsites.slurm` inside new mount, process and host-name name spaces. When it ends, the kernel ends every
process of the site: no daemon, batch job or stray can outlive the test that started it. One JSON object a line in:
`{"start": NAME, "argv": […]}` (with the program's path), `{"signal": NAME, "number": N}`, `{"alive": NAME}`,
`{"list": true}` (the commands of all processes), `{"cut": NAME}` (kill the children of NAME and theirs, not NAME
itself). One out for each, and `{"ready": true}` first.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Keeper:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.pids: dict[str, int] = {}

    def start(self, name: str, argv: list[str]) -> dict[str, Any]:
        log = str(self.root / "var/log" / f"{name}.log")
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # else it may have ended before it is known
        pid = os.posix_spawn(
            argv[0],
            argv,
            {"PATH": "/usr/bin:/usr/sbin", "LANG": "C.UTF-8"},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=[],
        )
        self.pids[name] = pid
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        return {"pid": pid}

    def signal(self, name: str, number: int) -> dict[str, Any]:
        pid = self.pids.get(name)
        if pid is None:
            return {"error": f"signal {name}: it is not running"}
        os.kill(pid, number)
        return {"pid": pid}

    def cut(self, name: str) -> dict[str, Any]:
        """Kill what descends from NAME, as its own processes see it: for sshd, all open sessions."""
        parents = {pid: parent for pid, parent, _ in self._processes()}
        family = {self.pids[name]}
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        killed = sorted(family - {self.pids[name]})
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return {"killed": killed}

    def list(self) -> dict[str, Any]:
        return {"commands": [command for _, _, command in self._processes()]}

    def _processes(self) -> Iterator[tuple[int, int, str]]:
        """Pid, parent's pid and command name of every process of the site."""
        for stat in (self.root / "proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                head, _, tail = stat.read_text().rpartition(")")
                yield int(stat.parent.name), int(tail.split()[1]), head.partition("(")[2]

    def reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                for name in [name for name, pid in self.pids.items() if pid == ended]:
                    del self.pids[name]


def main() -> None:
    root = Path(sys.argv[1])
    socket.sethostname(sys.argv[2])
    subprocess.run(["mount", "-t", "proc", "proc", root / "proc"], check=True)
    for folder in ("dev", "sys"):
        subprocess.run(["mount", "--rbind", f"/{folder}", root / folder], check=True)
    keeper = Keeper(root)
    signal.signal(signal.SIGCHLD, lambda *_: keeper.reap())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for whoever holds our stdin
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            answer = keeper.start(request["start"], request["argv"])
        elif "signal" in request:
            answer = keeper.signal(request["signal"], request["number"])
        elif "alive" in request:
            answer = {"alive": request["alive"] in keeper.pids}
        elif "list" in request:
            answer = keeper.list()
        else:
            answer = keeper.cut(request["cut"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
