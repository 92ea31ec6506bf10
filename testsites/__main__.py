"""`python -m testsites up [--keep DIR] NAME:KIND:NODES…`: real sites for demonstrations and for trying things by hand.

Starts them one after another; of each it prints one JSON object (name, address, nodes, root, workdir, ssh: how to
log in, words: what to tell `ghv site add`) as soon as that one takes jobs. They stay until TERM or INT, or until stdin
closes where that is a pipe; then all of them end. With `--keep` each has a folder of its name in DIR, and the next `up`
goes on with the same addresses, keys and homes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import stat
import sys
from pathlib import Path
from typing import NamedTuple

from testsites import GridEngineSite, HTCondorSite, SlurmSite
from testsites.site import ClusterSite

KINDS: dict[str, type[SlurmSite] | type[GridEngineSite] | type[HTCondorSite]] = {
    kind.kind: kind for kind in (SlurmSite, GridEngineSite, HTCondorSite)
}


class Wanted(NamedTuple):
    """One site as the command line asks for it."""

    name: str
    kind: str
    nodes: int

    def start(self, kept: Path | None) -> ClusterSite:
        folder = kept and kept / self.name
        return KINDS[self.kind](self.name, nodes=self.nodes, folder=folder, keep=kept is not None, namespaces=True)


def wanted(words: str) -> Wanted:
    """Raises ArgumentTypeError."""
    name, _, rest = words.partition(":")
    kind, _, nodes = rest.partition(":")
    if not name or kind not in KINDS or not nodes.isdecimal() or int(nodes) < 1:
        raise argparse.ArgumentTypeError(f"{words!r} is not NAME:KIND:NODES, where KIND is one of {', '.join(KINDS)}")
    return Wanted(name, kind, int(nodes))


def up(sites: list[Wanted], kept: Path | None) -> None:
    ended, end = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # our starter may want a Ctrl-C for itself
            signal.signal(number, lambda *_: os.write(end, b"."))
    waits = [ended, sys.stdin] if stat.S_ISFIFO(os.fstat(0).st_mode) else [ended]

    def over(seconds: float | None) -> bool:
        """Whether they are to end, at once or within so many seconds; None: for as long as it takes."""
        while ready := select.select(waits, [], [], seconds)[0]:
            if ended in ready or not os.read(0, 4096):
                return True
        return False

    with contextlib.ExitStack() as running:
        for each in sites:
            if over(0):
                return
            site = running.enter_context(each.start(kept))
            print(json.dumps(site.describe()), flush=True)
        over(None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m testsites", description=__doc__)
    command = parser.add_subparsers(dest="verb", required=True).add_parser("up")
    kinds = ", ".join(KINDS)
    command.add_argument("sites", nargs="+", type=wanted, metavar="NAME:KIND:NODES", help=f"KIND is one of {kinds}")
    command.add_argument("--keep", type=Path, metavar="DIR", help="put them there; go on with what is there")
    args = parser.parse_args()
    try:
        up(args.sites, args.keep and args.keep.absolute())
    except FileExistsError as error:
        print(f"start test sites: {error.filename} is not a test site's folder: move it away", file=sys.stderr)
        return 1
    except (PermissionError, RuntimeError) as error:
        print(error, file=sys.stderr)  # it names the site
        return 1
    except OSError as error:
        print(f"start test sites: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
