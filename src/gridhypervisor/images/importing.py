"""Makes an image of a disk that exists, qcow2 or raw: the disk becomes a layer, beside the usual kernel and initrd.

The guest boots our kernel and finds the disk's root partition by looking (ext4 or xfs); the disk's own boot loader and
kernel are not used. The disk is never trusted to say what it is: QEMU's tools are told its format, and a qcow2 that
would read other files is refused. It is stored as compressed qcow2, which stands alone.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from gridhypervisor.images import boot, tools
from gridhypervisor.images.apt import Apt
from gridhypervisor.images.build import boot_layers
from gridhypervisor.images.errors import ImageError
from gridhypervisor.images.repository import Repository
from gridhypervisor.model.wire import ImageManifest

FORMATS = ("qcow2", "raw")
_QCOW2 = b"QFI\xfb"


def import_disk(
    disk: Path,
    name: str,
    repository: Repository,
    cache: Path,
    *,
    format: str = "",
    progress: Callable[[str], None],
) -> str:
    """Take in the disk `disk` as image `name[:tag]` and return its digest. The file itself is not changed.

    `format` is `qcow2` or `raw`; empty: what the first bytes say. Programs in the image run as root.

    Raises:
        ImageError: the file is unreadable, no such disk, damaged, refers to other files, or disk space is missing.
    """
    what = f"import {disk}"
    tools.require("qemu-img", "apt-get", "dpkg-deb")
    format = checked_format(what, disk, format)
    with tools.cache_folder(cache, progress), tempfile.TemporaryDirectory(dir=cache) as folder, repository.adding():
        packed = Path(folder) / "disk.qcow2"
        progress(f"{disk.name}: packing")
        argv: list[str | Path] = ["qemu-img", "convert", "-q", "-f", format, "-O", "qcow2", "-c",
                                  "-o", "compression_type=zstd", disk.absolute(), packed]  # fmt: skip
        tools.run(what, argv, hint=f"is there space in {cache}?")
        files = boot.make(Apt(cache / "apt"), cache, modules=boot.MODULES + boot.DISK_MODULES, progress=progress)
        layers = (*boot_layers(files, repository), repository.add_layer(packed, role="disk", format="qcow2"))
        digest = repository.put(ImageManifest(layers=layers, description=f"imported from {disk.name}"))
        repository.tag(name, digest)
    progress(f"{name}: {sum(layer.size for layer in layers) / 2**20:.0f} MiB, image {digest[:12]}")
    return digest


def checked_format(what: str, disk: Path, format: str) -> str:
    """The disk's format, once it is clear that it is whole and stands alone."""
    try:
        with disk.open("rb") as data:
            magic = data.read(len(_QCOW2))
            size = disk.stat().st_size
    except OSError as error:
        raise ImageError(f"{what}: {error.strerror}", "give a qcow2 or raw disk that you may read") from error
    format = format or ("qcow2" if magic == _QCOW2 else "raw")
    if format not in FORMATS:
        raise ImageError(f"{what}: {format!r} is not known", f"give one of {', '.join(FORMATS)}")
    if format == "raw":
        if not size or size % 512:
            raise ImageError(f"{what}: its size, {size} bytes, is no disk's", "a raw disk is whole sectors of 512")
        return format
    if magic != _QCOW2:
        raise ImageError(f"{what}: it is not qcow2", "say `--format raw` if it is a raw disk")
    argv: list[str | Path] = ["qemu-img", "info", "--output=json", "-f", "qcow2", disk.absolute()]
    info = json.loads(tools.run(what, argv, hint="check the file, e.g. its checksum"))
    details = info.get("format-specific", {}).get("data", {})
    for key, holder in (("backing-filename", info), ("data-file", details)):
        if key in holder:
            raise ImageError(
                f"{what}: it needs another file, {holder[key]}",
                f"make one file of them: qemu-img convert -O qcow2 {disk.name} whole.qcow2",
            )
    if info.get("encrypted"):
        raise ImageError(f"{what}: it is encrypted", "decrypt it with qemu-img convert")
    tools.run(
        f"{what}: check it",
        ["qemu-img", "check", "-q", "-f", "qcow2", disk.absolute()],
        hint="it is damaged: get it again, or repair a copy with qemu-img check -r all",
    )
    return format
