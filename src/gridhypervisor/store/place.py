"""Whether a folder can hold a store: on a local disk, and for one process at a time. Decides nothing about its content.

SQLite's write-ahead log is shared memory between the processes that use it, and its safety rests on fsync and locks
that mean what they say. Over a network neither holds, and the damage shows only later; so such a folder is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from pathlib import Path

from gridhypervisor.model.commit import StoreError

MOUNTINFO = Path("/proc/self/mountinfo")

LOCK = "store.lock"

NETWORK = frozenset(
    {"9p", "afs", "beegfs", "beegfs_nodev", "ceph", "cifs", "coda", "davfs", "davfs2", "gcsfuse", "glusterfs", "gpfs"}
    | {"gvfsd-fuse", "juicefs", "lustre", "mfs", "moosefs", "ncpfs", "nfs", "nfs4", "orangefs", "panfs", "pvfs2"}
    | {"quobyte", "rclone", "s3fs", "smb3", "smbfs", "sshfs", "vboxsf", "vmhgfs", "vmhgfs-fuse", "wekafs"}
)
"""File systems, as the kernel names them without a leading `fuse.`, that other machines may change too."""


def file_system(folder: Path, mountinfo: str) -> tuple[str, str]:
    """(mount point, type) of the file system that holds an absolute, resolved folder; ("", "") if none is listed.

    `mountinfo` is the text of /proc/self/mountinfo (see proc(5)). The last of equally long mount points counts: it
    lies over the others.
    """
    best = ("", "")
    for line in mountinfo.splitlines():
        mount, _, source = line.partition(" - ")
        if not source:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), mount.split(" ")[4])
        if folder.is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, source.split(" ")[0])
    return best


def require_local(database: Path) -> None:
    """See that the folder of a store's file is on a disk of this machine.

    Raises:
        StoreError: it is on a network file system.
    """
    try:
        mountinfo = MOUNTINFO.read_text(errors="surrogateescape")
    except OSError:
        return  # no Linux: SQLite itself will say whether it can work there
    folder = database.parent.resolve()
    point, kind = file_system(folder, mountinfo)
    if kind.removeprefix("fuse.") in NETWORK:
        raise StoreError(
            "open the store",
            str(database),
            f"{folder} is on a network file system ({kind}, mounted on {point}), where SQLite's write-ahead log "
            "cannot keep what was committed: it needs memory shared through the file, and locks and syncs that reach "
            "the disk",
            f"set GHV_DATA to a folder on a local disk, for instance GHV_DATA=/var/tmp/ghv-{os.getuid()}",
        )


class Lock:
    """The right to use a store, held until `release` or the end of the process, however it ends."""

    def __init__(self, database: Path) -> None:
        """Take it.

        Raises:
            StoreError: another process has it, or the lock file cannot be made.
        """
        path = database.parent / LOCK
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(
                "open the store", str(database), f"cannot make {path}: {error.strerror}", "see that you may write there"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._file, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._file)
            raise StoreError(
                "open the store",
                str(database),
                f"the process with pid {holder} has it open ({path})",
                "use the service that is running, or stop it first (ghv service stop)",
            ) from error
        # Only for people: the lock itself is what counts. A full disk must not keep the store from opening.
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give it back. Harmless when repeated."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
