"""`python -m testsites up|down`: a real Slurm site for demonstrations and for trying things by hand.

`up` prints one JSON object (host, port, user, key, known_hosts, workdir, root, nodes) once the site takes jobs, and
stays until TERM or INT, or until its stdin closes where that is a pipe. With `--keep` the next `up` goes on with the
same address, keys and home. `down` ends an `up` (without `--keep`) of the same name and waits for its end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from testsites.slurm import SlurmSite


def up(name: str, nodes: int, cpus: int, spool_delay: float, kept: Path | None) -> int:
    ended, end = os.pipe()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # our starter may want a Ctrl-C for itself
            signal.signal(number, lambda *_: os.write(end, b"."))
    if kept is None and _pid_file(name).exists() and _starter(name) is None:
        shutil.rmtree(_folder(name))  # its starter was killed, and everything that it had started died with it
    folder = kept or _folder(name)
    with (
        SlurmSite(name, nodes=nodes, cpus=cpus, spool_delay=spool_delay, folder=folder, keep=kept is not None) as site,
        _findable(name) if kept is None else contextlib.nullcontext(),
    ):
        print(json.dumps(site.describe()), flush=True)
        waits = [ended, sys.stdin] if stat.S_ISFIFO(os.fstat(0).st_mode) else [ended]
        while not (ready := select.select(waits, [], [])[0]) or (ended not in ready and os.read(0, 4096)):
            pass
    return 0


@contextlib.contextmanager
def _findable(name: str) -> Iterator[None]:
    """While this lasts, `down` finds us."""
    _pid_file(name).write_text(f"{os.getpid()}\n")
    try:
        yield
    finally:
        _pid_file(name).unlink()


def down(name: str) -> int:
    """End the site of this name; 0 also where there is none."""
    starter = _starter(name)
    if starter is not None:
        signal.pidfd_send_signal(starter, signal.SIGTERM)
        if not select.select([starter], [], [], 30)[0]:
            print(f"end test site {name}: its starter is still there after 30 s", file=sys.stderr)
            return 1
    return 0


def _starter(name: str) -> int | None:
    """A descriptor of the process that started the site; None if it is gone (or its number is now somebody else's)."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        pid = int(_pid_file(name).read_text())
        handle = os.pidfd_open(pid)
        if b"testsites" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return handle
        os.close(handle)
    return None


def _folder(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"ghv-testsite-{name}"


def _pid_file(name: str) -> Path:
    return _folder(name) / "pid"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m testsites", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("up", "down"):
        command = verbs.add_parser(verb)
        command.add_argument("--name", default="slurm-a")
        if verb == "up":
            command.add_argument("--nodes", type=int, default=2)
            command.add_argument("--cpus", type=int, default=2, help="per node")
            late = "seconds by which the front-end sees late what the nodes write"
            command.add_argument("--spool-delay", type=float, default=0.0, metavar="S", help=late)
            command.add_argument("--keep", type=Path, metavar="DIR", help="put it there; go on with what is there")
    args = parser.parse_args()
    try:
        if args.verb == "down":
            return down(args.name)
        return up(args.name, args.nodes, args.cpus, args.spool_delay, args.keep and args.keep.absolute())
    except FileExistsError as error:
        print(
            f"start test site {args.name}: {error.filename} exists: it is up, or just starting; end it with `down`",
            file=sys.stderr,
        )  # fmt: skip
    except (PermissionError, RuntimeError) as error:
        print(error, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
