"""Which role this process plays: `python -I -m gridhypervisor.agent.main ROLE ARGS…`, started by `start.sh`.

Each role is imported only when it is asked for: what a pilot imports, a relay need not read from the disk.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

USAGE = "usage: start relay|pilot|forkq [--scratch DIR] ARGUMENTS…"


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
            from gridhypervisor.agent import pilot

            scratch = os.environ.get("GHV_SCRATCH", "")
            return pilot.main([*arguments, "--scratch", scratch] if scratch else arguments)
        case _:
            sys.stderr.write(f"start {role or 'nothing'}: no such role\n{USAGE}\n")
            return 64


if __name__ == "__main__":
    sys.exit(main())
