"""Images are really built from packages, are the same when built again, and their kernel, initrd and base boot."""

from __future__ import annotations

import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gridhypervisor.images import boot, build, importing, recipe
from gridhypervisor.images.repository import Image, Repository

pytestmark = pytest.mark.timeout(1800)  # packages are downloaded and installed, on a machine that may be busy

EXAMPLES = Path(__file__).parents[2] / "examples" / "images"

INIT = b"""#!/bin/sh
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r module; do insmod "$module" || echo "FAILED $module"; done < /ghv/modules
mount -o ro /dev/vda /mnt && chroot /mnt /bin/sh -c 'read -r line < /etc/passwd; echo "BASE $line"'
poweroff -f
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository and a cache that the tests of this file share: packages are downloaded once."""
    return tmp_path_factory.mktemp("images")


@pytest.fixture
def repository(place: Path) -> Repository:
    return Repository(place / "images")


@pytest.fixture
def make(place: Path, repository: Repository) -> Callable[[str], tuple[Image, list[str]]]:
    def made(name: str) -> tuple[Image, list[str]]:
        steps: list[str] = []
        given = recipe.load(EXAMPLES / name / "image.yaml")
        digest = build.build(given, EXAMPLES / name, repository, place / "cache", progress=steps.append)
        assert repository.resolve(name) == digest
        return repository.show(name), steps

    return made


def paths(repository: Repository, image: Image, role: str) -> list[Path]:
    return [repository.layer_path(layer) for layer in image.manifest.layers if layer.role == role]


def console(kernel: Path, initrd: Path, disk: Path, work: Path) -> str:
    """Boot with an /init of ours appended, as the pilot does; what the guest printed until it powered off."""
    joined = work / "initrd"
    joined.write_bytes(initrd.read_bytes() + boot.cpio([("init", stat.S_IFREG | 0o755, INIT)]))
    drive = f"file={disk},if=none,id=base,format={'qcow2' if disk.suffix == '.qcow2' else 'raw'},readonly=on"
    done = subprocess.run(
        ["qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "qemu64", "-m", "256", "-nodefaults",
         "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot", "-kernel", kernel, "-initrd", joined,
         "-append", "console=ttyS0 panic=-1 quiet", "-drive", drive, "-device", "virtio-blk-pci,drive=base"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    return done.stdout


def test_tiny_is_built_boots_and_is_not_built_twice(
    make: Callable[[str], tuple[Image, list[str]]], repository: Repository, tmp_path: Path
) -> None:
    image, _ = make("tiny")
    assert [layer.role for layer in image.manifest.layers] == ["kernel", "initrd", "base"]
    assert repository.verify("tiny") == ()
    [kernel], [initrd], [base] = (paths(repository, image, role) for role in ("kernel", "initrd", "base"))
    assert kernel.read_bytes()[:4] == b"\x7fELF"
    printed = console(kernel, initrd, base, tmp_path)
    assert "BASE root:x:0:0" in printed
    assert "FAILED" not in printed

    again, steps = make("tiny")
    assert again.digest == image.digest
    assert not [step for step in steps if "packing" in step or "unpacking" in step]


def test_xmm_is_hardened_small_and_the_same_when_built_again(
    make: Callable[[str], tuple[Image, list[str]]], repository: Repository, place: Path
) -> None:
    image, _ = make("xmm")
    [base], [app] = (paths(repository, image, role) for role in ("base", "app"))
    assert image.manifest.user == "job" and image.manifest.path == "/opt/xmm/bin"
    assert image.manifest.layers[-1].mount == "/opt/xmm"
    assert base.stat().st_size + app.stat().st_size < 40e6

    listing = subprocess.check_output(["unsquashfs", "-lln", base], text=True).splitlines()
    entries = {line.split(None, 5)[5].removeprefix("squashfs-root"): line.split() for line in listing}
    assert not [path for path, fields in entries.items() if "s" in fields[0][1:].lower()], "set-user-ID or set-group-ID"
    assert entries[""][1] == "0/0"
    for absent in ("sshd", "systemd", "cron", "apt-get"):
        assert not [path for path in entries if path.endswith(f"bin/{absent}")]
    shadow = subprocess.check_output(["unsquashfs", "-cat", base, "etc/shadow"], text=True).splitlines()
    assert {line.split(":")[1] for line in shadow} == {"*"}
    contents = subprocess.check_output(["unsquashfs", "-l", app], text=True)
    assert "bin/evproducts" in contents and "usr/bin/fitscopy" in contents and "libcom_err.so.2" in contents

    for record in (place / "cache").glob("layer-*.json"):
        if app.name in record.read_text():
            record.unlink()  # forget that it was built: it must come out the same
    again, steps = make("xmm")
    assert again.digest == image.digest
    assert "/opt/xmm: packing" in steps and "base: packing" not in steps


def test_a_raw_disk_is_imported_whole(repository: Repository, place: Path, tmp_path: Path) -> None:
    root, disk = tmp_path / "root", tmp_path / "disk.raw"
    (root / "etc").mkdir(parents=True)
    (root / "etc/os-release").write_text("ID=imported\n")
    with disk.open("wb") as data:
        data.truncate(16 << 20)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-d", root, disk], check=True)
    importing.import_disk(disk, "mine:v1", repository, place / "cache", progress=lambda text: None)
    image = repository.show("mine:v1")
    assert [(layer.role, layer.format) for layer in image.manifest.layers] == [
        ("kernel", "raw"), ("initrd", "raw"), ("disk", "qcow2"),
    ]  # fmt: skip
    [stored] = paths(repository, image, "disk")
    assert stored.stat().st_size < 1 << 20
    subprocess.run(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", stored, disk], check=True)
