"""Makes the kernel and the initrd that every image boots with, from Debian's cloud kernel and static busybox.

The initrd holds busybox with a link for each applet, the modules that reach the guest's disks, console and network, and
`/ghv/modules`: their paths, one a line, in the order in which `insmod` takes them (under emulation that is faster than
modprobe). It has no /init: the bundle's archive, which the pilot appends, brings that. Results are kept by package
versions, so they are made once.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import os
import re
import stat
import struct
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gridhypervisor.images.apt import Apt
from gridhypervisor.images.errors import ImageError
from gridhypervisor.images.tools import run

KERNEL = "linux-image-cloud-amd64"
MODULES = (
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_rng",
    "virtio_net",
    "squashfs",
    "overlay",
    "isofs",
    "pvpanic_pci",
    "button",
    "evdev",
)
"""What a guest needs beside what is built in (ext4, ACPI). `button` and `evdev` are for the power button."""

DISK_MODULES = ("xfs",)
"""Also needed to find the root of somebody else's disk. Not btrfs: its module spends seconds choosing algorithms."""

_RECIPE = "1"  # to be raised when the same packages are to give other bytes
_LZ4_LEGACY = b"\x02\x21\x4c\x18"


@dataclass(frozen=True)
class Boot:
    """What to start: files and the kernel's version."""

    kernel: Path
    initrd: Path
    version: str


def make(apt: Apt, cache: Path, *, modules: Sequence[str] = MODULES, progress: Callable[[str], None]) -> Boot:
    """Kernel and initrd with `modules`; from `cache` where they were made before from the same packages.

    Raises:
        ImageError: the packages cannot be had, or do not hold what is expected.
    """
    packages = [
        package
        for package in apt.resolve([KERNEL, "busybox-static"])
        if re.fullmatch(r"linux-image-\d.*|busybox-static", package.name)
    ]
    if len(packages) != 2:
        raise ImageError(f"make the initrd: {KERNEL} does not stand for one kernel", "check apt's sources")
    key = hashlib.sha256(repr((_RECIPE, packages, modules)).encode()).hexdigest()[:16]
    [version] = [name for package in packages if (name := package.name.removeprefix("linux-image-")) != package.name]
    boot = Boot(cache / f"vmlinux-{key}", cache / f"initrd-{key}", version)
    if not boot.initrd.exists():  # it is written last
        progress(f"kernel {version}: unpacking")
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            root = Path(folder)
            for archive in apt.download(packages):
                run(f"unpack {archive.name}", ["dpkg-deb", "-x", archive, root])
            _write(boot.kernel, uncompressed_kernel((root / f"boot/vmlinuz-{version}").read_bytes()))
            _write(boot.initrd, _initrd(root, version, modules))
    return boot


def uncompressed_kernel(image: bytes) -> bytes:
    """The ELF kernel inside a bzImage (it starts 0.25 s sooner under emulation); the image itself if packed otherwise.

    The payload's place is in the setup header (Documentation/arch/x86/boot.rst). Debian's is in LZ4's legacy format:
    blocks, each preceded by its compressed size, of at most 8 MiB uncompressed.

    Raises:
        ImageError: it is no bzImage, or the payload is damaged.
    """
    if image[0x202:0x206] != b"HdrS":
        raise ImageError("read the kernel: it is no bzImage", "check the kernel package")
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if not payload.startswith(_LZ4_LEGACY):
        return image
    try:
        lz4 = ctypes.CDLL("liblz4.so.1")  # dpkg's and squashfs-tools' own
    except OSError:
        return image
    out, at = bytearray(), 4
    block = ctypes.create_string_buffer(8 << 20)
    while at + 8 <= len(payload):  # the last four bytes are the uncompressed size
        (size,) = struct.unpack_from("<I", payload, at)
        made = lz4.LZ4_decompress_safe(payload[at + 4 : at + 4 + size], block, size, len(block))
        if made < 0:
            raise ImageError(f"read the kernel: its payload is damaged at byte {start + at}", "download it again")
        out += block.raw[:made]
        at += 4 + size
    if not out.startswith(b"\x7fELF"):
        raise ImageError("read the kernel: the bzImage's payload is no ELF file", "check the kernel package")
    return bytes(out)


def load_order(available: Iterable[Path], wanted: Sequence[str]) -> list[Path]:
    """The module files of `wanted` and of all that they depend on, each after what it needs.

    Raises:
        ImageError: a module is not among those available.
    """
    files = {path.stem.replace("-", "_"): path for path in available}
    order: list[Path] = []

    def visit(name: str, why: str) -> None:
        if name not in files:
            raise ImageError(f"make the initrd: the kernel has no module {name}{why}", "check the kernel package")
        if files[name] not in order:
            info = files[name].read_bytes()
            depends = re.search(rb"\0depends=([^\0]*)\0", info)
            for needed in filter(None, depends[1].decode().split(",") if depends else ()):
                visit(needed.replace("-", "_"), f", which {name} needs")
            order.append(files[name])

    for name in wanted:
        visit(name.replace("-", "_"), "")
    return order


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """A newc cpio archive of (path, mode with type, content or link's target); all of root's, without times."""
    out = io.BytesIO()
    for number, (path, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")]):
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(name), 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
        out.write(bytes(-out.tell() % 4) + data)
        out.write(bytes(-out.tell() % 4))
    out.write(bytes(-out.tell() % 512))
    return out.getvalue()


def _initrd(root: Path, version: str, modules: Sequence[str]) -> bytes:
    busybox = next(path for path in (root / "bin/busybox", root / "usr/bin/busybox") if path.exists())
    applets = run("list busybox's applets", [busybox, "--list"]).decode().split()
    order = load_order((root / "lib/modules" / version).rglob("*.ko"), modules)
    folder, link, file = stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777, stat.S_IFREG
    entries = [
        (path, folder, b"")
        for path in ("bin", "dev", "etc", "ghv", "lib", "lib/modules", "mnt", "proc", "root", "run", "sys", "tmp")
    ]
    entries.append(("bin/busybox", file | 0o755, busybox.read_bytes()))
    entries += [(f"bin/{name}", link, b"busybox") for name in sorted(applets) if name != "busybox"]
    entries += [(f"lib/modules/{path.name}", file | 0o644, path.read_bytes()) for path in order]
    listing = "".join(f"/lib/modules/{path.name}\n" for path in order)
    entries.append(("ghv/modules", file | 0o644, listing.encode()))
    return cpio(entries)


def _write(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    os.replace(name, path)
