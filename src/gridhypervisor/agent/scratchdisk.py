"""The disks that belong to one VM: `scratch`, made with the inputs in place, `out`, and the overlay of a whole disk.

Inputs are verified while they are brought into the tree that mke2fs makes the file system from, so the guest finds
them where the job expects them, and nothing is copied over a channel.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from gridhypervisor.agent.ending import Ending
from gridhypervisor.agent.node import remove
from gridhypervisor.agent.processes import Child
from gridhypervisor.agent.world import World
from gridhypervisor.model.wire import Input, Reason

SMALLEST = 32 << 20
"""Bytes of the smallest scratch disk that is made."""

OUT_MARGIN = 64 << 20
"""Bytes that the out disk has beyond the scratch disk: the tar stream's own headers."""

_PIECE = 1 << 20
OPTIONS = [
    *["-q", "-F", "-t", "ext4", "-b", "4096"],
    # The disk is thrown away with the VM: no journal, no checksums, nothing reserved, nothing zeroed before its time.
    *["-m", "0", "-O", "^metadata_csum,^has_journal,^64bit,^resize_inode"],
    *["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"],
]


def make_scratch(
    world: World, run: Path, *, size: int, job_file: str, inputs: tuple[Input, ...], source: Path,
    stop: Callable[[], bool],
) -> Callable[[], Path]:  # fmt: skip
    """Begin to make `scratch` in the folder `run`: the overlay's folders, the job file, and /job with the inputs. The
    program that makes the file system goes on meanwhile; what is returned waits for it, and gives the disk's path.

    Raises:
        Ending: an input is missing or damaged (input), or the node is full (node-disk).
    """
    tree, path = run / "tree", run / "scratch"
    job = tree / "scratch" / "job"
    try:
        for folder in (tree, tree / "upper", tree / "work", tree / "scratch", job):
            folder.mkdir(mode=0o755)
            folder.chmod(0o755)  # whatever the umask: `upper` is the guest's root folder
        (tree / "job").write_text(job_file)
        for item in inputs:
            _bring(item, source, job, stop)
        with path.open("wb") as file:
            file.truncate(max(size, SMALLEST) & -4096)
    except OSError as error:
        raise full(f"make the scratch disk in {run}", error) from error
    mke2fs = _start([*world.argv("mke2fs"), *OPTIONS, "-d", str(tree), str(path)], {"PATH": "/usr/bin:/bin"})

    def finish() -> Path:
        code, said = mke2fs.wait()
        said = said or f"mke2fs ended with status {code}"
        if code != 0 and inputs and "allocat" in said:
            raise Ending(
                Reason.SCRATCH_FULL, f"make the scratch disk: the inputs do not fit: {said}", "ask for more scratch"
            )
        if code != 0:
            hint = "free space on the node's scratch, or configure another"
            raise Ending(Reason.NODE_DISK, f"make the scratch disk: {said}", hint)
        if inputs:  # else what little is there goes with the run's folder
            remove(tree)
        return path

    return finish


def make_out(run: Path, size: int) -> Path:
    """Make the empty raw disk on which the guest writes one tar stream."""
    path = run / "out"
    with path.open("wb") as file:
        file.truncate((max(size, SMALLEST) + OUT_MARGIN) & -4096)
    return path


def make_overlay(world: World, run: Path, base: Path, form: str) -> Path:
    """Make the writable qcow2 overlay of an image that is one whole disk.

    Raises:
        Ending: qemu-img does not take the disk (image).
    """
    path = run / "disk"
    words = [*world.argv("qemu-img"), "create", "-q", "-f", "qcow2", "-F", form, "-b", str(base), str(path)]
    code, said = _start(words, world.environment()).wait()
    if code != 0:
        raise Ending(Reason.IMAGE, f"make the overlay of disk {base.name[:12]}: {said}", "import the image again")
    return path


def rebase_overlay(world: World, path: Path, base: Path, form: str) -> None:
    """Say in an overlay that was made on another node where its base is here.

    Raises:
        Ending: qemu-img does not take it (checkpoint).
    """
    words = [*world.argv("qemu-img"), "rebase", "-q", "-u", "-f", "qcow2", "-F", form, "-b", str(base), str(path)]
    code, said = _start(words, world.environment()).wait()
    if code != 0:
        raise Ending(Reason.CHECKPOINT, f"take up the overlay of disk {base.name[:12]}: {said}", "begin anew")


def _bring(item: Input, source: Path, job: Path, stop: Callable[[], bool]) -> None:
    """Copy one input, verified on the way."""
    import hashlib  # only here: it loads OpenSSL, which a job without inputs need not wait for

    parts = PurePosixPath(item.path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise Ending(Reason.INPUT, f"bring in {item.path!r}: not a path below the job's folder", "rename the input")
    target = job / parts
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    hint = "submit again; if this comes back, check that nobody changes files in the account's workdir"
    try:
        file = (source / parts).open("rb")
    except OSError as error:
        raise Ending(Reason.INPUT, f"read input {item.path} at the site: {error.strerror}", hint) from error
    with file, target.open("xb") as copy:
        while data := file.read(_PIECE):
            if stop():
                raise Ending(Reason.CANCELLED, "stopped while bringing in inputs")
            digest.update(data)
            size += len(data)
            copy.write(data)
    if size != item.size:
        raise Ending(Reason.INPUT, f"verify input {item.path}: {size} bytes instead of {item.size}", hint)
    if item.sha256 and digest.hexdigest() != item.sha256:
        raise Ending(Reason.INPUT, f"verify input {item.path}: its SHA-256 is not {item.sha256[:12]}…", hint)
    target.chmod(item.mode)
    for folder in list(target.relative_to(job).parents)[:-1]:
        (job / folder).chmod(0o755)


def _start(words: list[str], environment: dict[str, str]) -> Child:
    try:
        return Child(words, environment)
    except OSError as error:
        raise Ending(
            Reason.BUNDLE, f"start {words[0]}: {error.strerror}", "upload the bundle again, or retry"
        ) from error


def full(what: str, error: OSError) -> Ending:
    """A write on the node failed."""
    return Ending(
        Reason.NODE_DISK, f"{what}: {error.strerror or error}",
        "free space on the node's scratch, or configure another scratch for the site",
    )  # fmt: skip
