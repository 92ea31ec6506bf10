"""Which role this process plays: `python -I -m gridhypervisor.agent.main ROLE ARGS…`, started by `start.sh`.

Each role is imported only when it is asked for: what a pilot imports, a relay need not read from the disk. There is a
pilot to every guest, so what it imports is half of its own CPU time: two modules of the standard library that others
there import for the sake of one function each, which a pilot never calls, come only if one is called after all.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

USAGE = "usage: start relay|pilot|courier|forkq [--scratch DIR] ARGUMENTS…"


def main(argv: Sequence[str] | None = None) -> int:
    """Play the role that the first word names; give the process's exit code (64: no such role)."""
    words = list(sys.argv[1:] if argv is None else argv)
    role, arguments = (words[0], words[1:]) if words else ("", [])
    with contextlib.suppress(OSError, KeyError):
        os.utime(os.environ["GHV_WORLD"])  # by which `start` knows the worlds that are still used
    match role:
        case "relay":
            from gridhypervisor.agent import relay

            return relay.main(arguments)
        case "forkq":
            from gridhypervisor.agent import forkq

            return forkq.main(arguments)
        case "pilot":
            with later("inspect", "urllib.parse"):  # for docstrings of dataclasses that have none; for paths as URIs
                from gridhypervisor.agent import pilot

            return pilot.main([*arguments, *_scratch()])
        case "courier":
            from gridhypervisor.agent import courier

            return courier.main([*arguments, *_scratch()])
        case _:
            sys.stderr.write(f"start {role or 'nothing'}: no such role\n{USAGE}\n")
            return 64


class _Later(ModuleType):
    """Stands for a module: each of its names is a function that imports the module when it is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*arguments: Any, **named: Any) -> Any:
            self.leave()
            return getattr(importlib.import_module(self.__name__), name)(*arguments, **named)

        return call

    def leave(self) -> None:
        """From now on the module itself is imported."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


@contextlib.contextmanager
def later(*names: str) -> Iterator[None]:
    """Who imports one of these modules meanwhile gets what stands for it. Afterwards they are imported as ever."""
    placed = [_Later(name) for name in names if name not in sys.modules]
    sys.modules.update({module.__name__: module for module in placed})
    try:
        yield
    finally:
        for module in placed:
            module.leave()


def _scratch() -> list[str]:
    """What `start` took out of the arguments."""
    scratch = os.environ.get("GHV_SCRATCH", "")
    return ["--scratch", scratch] if scratch else []


if __name__ == "__main__":
    sys.exit(main())
