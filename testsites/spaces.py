"""Name spaces of one test site: a host name, processes, mounts and, if asked for, a network of its own.

`testsites.keeper` is process 1 in there; this is the end that its starter holds. It decides nothing about the daemons.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Spaces:
    """Started when made; `stop` ends every process in them. `descriptors` are inherited by what is started.

    With `network` there is nothing but a loopback of its own: all ports are free, and nobody else hears anything.

    Raises:
        RuntimeError: this machine lets nobody make name spaces.
    """

    def __init__(self, root: Path, hostname: str, *, network: bool = False, descriptors: Sequence[int] = ()) -> None:
        self.root, self.hostname = root, hostname
        kinds = ["--mount", "--pid", "--uts", *(["--net"] if network else [])]
        up = "ip link set lo up && " if network else ""
        self._keeper = subprocess.Popen(
            ["unshare", *kinds, "--fork", "--kill-child", "--propagation", "private", "sh", "-c", f'{up}exec "$@"',
             "sh", sys.executable, "-I", Path(__file__).with_name("keeper.py"), root, hostname],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True, pass_fds=descriptors,
        )  # fmt: skip
        self._answer()
        keeper = self._keeper.pid
        inner = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()[0]
        self._door = ["/usr/bin/nsenter", f"--target={inner}", "--net", "--uts", "--pid", "--mount"]

    def start(self, name: str, argv: Sequence[str]) -> int:
        """Start a daemon, whose number in there is returned; what it prints goes to the root's `var/log/NAME.log`."""
        return int(self._ask({"start": name, "argv": list(argv)})["pid"])

    def run(self, *argv: str) -> str:
        """What a command of this machine prints, run in there.

        Raises:
            RuntimeError: it failed; the message is its own.
        """
        result = subprocess.run([*self._door, *argv], capture_output=True, text=True, check=False, timeout=120)
        if result.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)} in {self.hostname}: {result.stderr.strip() or result.returncode}")
        return result.stdout

    def signal(self, name: str, number: signal.Signals) -> None:
        self._ask({"signal": name, "number": int(number)})

    def cut(self, name: str) -> int:
        """Kill everything that descends from a daemon, but not the daemon; how many processes that were."""
        return len(self._ask({"cut": name})["killed"])

    def alive(self, name: str) -> bool:
        return bool(self._ask({"alive": name})["alive"])

    def processes(self) -> list[str]:
        """The command names of everything that runs in there."""
        return list(self._ask({"list": True})["commands"])

    def enter(self, *argv: str) -> list[str]:
        """The command line that runs `chroot` in there with these arguments."""
        return [*self._door, "/usr/sbin/chroot", *argv]

    def stop(self) -> None:
        assert self._keeper.stdin and self._keeper.stdout
        self._keeper.stdin.close()
        self._keeper.stdout.close()
        self._keeper.wait(timeout=120)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._keeper.stdin
        self._keeper.stdin.write(json.dumps(request) + "\n")
        self._keeper.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._keeper.stdout
        line = self._keeper.stdout.readline()
        if not line:
            raise RuntimeError(f"start {self.hostname}: unshare failed; is this a container without name spaces?")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.hostname}: {answer['error']}")
        return answer
