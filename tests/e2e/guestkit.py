"""Small real guests for end-to-end tests: an image of kernel, busybox initrd and busybox base, and entries to run.

The image is made once per checkout, from Debian's cloud kernel and this machine's static busybox, kept in `build`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gridhypervisor.agent import cpio, spool
from gridhypervisor.model import wire
from gridhypervisor.model.wire import (
    ExitRecord,
    ImageManifest,
    Input,
    Layer,
    Manifest,
    Program,
    Resources,
    Status,
)
from tests import making
from tests.making import BUILD, system_world

HYPERVISORS = ("tcg", "uml")
"""What the tests of one VM run under: all of them everywhere, for KVM is nowhere to be counted on."""

MODULES = ("virtio_pci", "virtio_console", "virtio_blk", "squashfs", "overlay", "virtio_rng", "virtio_net")


def tiny_image() -> tuple[ImageManifest, Path]:
    """The image and the folder with its layers as a site's cache has them."""
    folder = BUILD / "guestkit" / "tiny-2"
    if not (folder / "image.json").exists():  # it comes last, and whole; who finds it need not wait for other makers
        with making.alone():
            if not (folder / "image.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                _build(folder)
    image = spool.read_json(folder / "image.json", ImageManifest)
    assert image is not None
    return image, folder


def add_layer(folder: Path, data: bytes, role: str, form: str, mount: str = "") -> Layer:
    """Put a layer's bytes and its chunk list into a cache folder."""
    chunks = b"".join(hashlib.sha256(data[i : i + (1 << 20)]).digest() for i in range(0, len(data), 1 << 20))
    digest = hashlib.sha256(chunks).hexdigest()
    (folder / digest).write_bytes(data)
    (folder / f"{digest}.chunks").write_bytes(chunks)
    return Layer(digest, len(data), role, form, mount)


def _build(folder: Path) -> None:
    """Needs apt, dpkg-deb, modprobe, lz4 or a bzImage that boots, mksquashfs, and a static busybox."""
    work = folder / "work"
    work.mkdir()
    depends = subprocess.run(
        ["apt-cache", "depends", "linux-image-cloud-amd64"], capture_output=True, text=True, check=True
    ).stdout
    package = next(line.split()[1] for line in depends.splitlines() if "Depends:" in line)
    subprocess.run(["apt-get", "-q", "download", package], cwd=work, check=True, capture_output=True)
    [deb] = work.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", str(deb), str(work / "kernel")], check=True)
    [kernel] = (work / "kernel/boot").glob("vmlinuz-*")
    version = kernel.name.removeprefix("vmlinuz-")
    subprocess.run(["depmod", "-b", str(work / "kernel"), version], check=True)

    busybox = Path(shutil.which("busybox") or "/bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    initrd = work / "initrd"
    for name in ("bin", "proc", "sys", "dev", "ghv", "lib/modules"):
        (initrd / name).mkdir(parents=True)
    _busybox(initrd / "bin", busybox, applets)
    order: list[str] = []
    for module in MODULES:
        shown = subprocess.run(
            ["modprobe", "-d", str(work / "kernel"), "-S", version, "--show-depends", module],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        for line in shown.splitlines():
            path = Path(line.split()[1])
            if line.startswith("insmod") and path.name not in order:
                order.append(path.name)
                shutil.copy(path, initrd / "lib/modules")
    (initrd / "ghv/modules").write_text("".join(f"/lib/modules/{name}\n" for name in order))
    base = work / "base"
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "run", "root", "scratch"):
        (base / name).mkdir(parents=True)
    _busybox(base / "bin", busybox, applets)
    (base / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\njob:x:1000:1000:job:/tmp:/bin/sh\n")
    (base / "etc/group").write_text("root:x:0:\njob:x:1000:\n")
    (base / "tmp").chmod(0o1777)
    subprocess.run(
        ["mksquashfs", str(base), str(work / "base.sqfs"), "-quiet", "-noappend", "-all-root", "-no-progress"],
        check=True, capture_output=True,
    )  # fmt: skip
    image = ImageManifest(
        layers=(
            add_layer(folder, kernel.read_bytes(), "kernel", "raw"),
            add_layer(folder, _archive(initrd), "initrd", "raw"),
            add_layer(folder, (work / "base.sqfs").read_bytes(), "base", "squashfs"),
        )
    )
    shutil.rmtree(work)
    spool.write_durable(folder / "image.json", wire.canonical(image))


def _busybox(folder: Path, busybox: Path, applets: list[str]) -> None:
    shutil.copy(busybox, folder / "busybox")
    for name in applets:
        if name != "busybox":
            (folder / name).symlink_to("busybox")


def _archive(folder: Path) -> bytes:
    """A newc archive of a tree."""
    import stat

    out = bytearray()
    for number, path in enumerate(sorted(folder.rglob("*")), 1):
        found = path.lstat()
        data = b""
        if path.is_symlink():
            data = os.fsencode(os.readlink(path))
        elif path.is_file():
            data = path.read_bytes()
        mode = found.st_mode if stat.S_ISLNK(found.st_mode) else stat.S_IFMT(found.st_mode) | 0o755
        out += cpio._member(number, str(path.relative_to(folder)), mode, data)
    return bytes(out + cpio._member(0, "TRAILER!!!", 0))


class Site:
    """A workdir and a node's scratch, with pilots as processes."""

    def __init__(self, root: Path, image: ImageManifest, layers: Path, hypervisor: str = "uml") -> None:
        self.hypervisor = hypervisor  # of the entries that do not say
        self.workdir, self.scratch = root / "work", root / "scratch"
        for folder in (self.workdir / "spool", self.workdir / "cache", self.scratch):
            folder.mkdir(parents=True)
        for layer in image.layers:
            for name in (layer.digest, f"{layer.digest}.chunks"):
                shutil.copy(layers / name, self.workdir / "cache" / name)
        self.image = image
        self.pilots: list[subprocess.Popen[bytes]] = []
        self._count = 0

    def prepare(
        self, command: str | tuple[str, ...], *, inputs: dict[str, bytes] | None = None, outputs: tuple[str, ...] = (),
        restart: tuple[str, ...] = (),
        environment: dict[str, str] | None = None, image: ImageManifest | None = None, **manifest: object,
    ) -> Path:  # fmt: skip
        """Make an entry whose program is a shell command, or words."""
        self._count += 1
        entry = self.workdir / "spool" / f"test-{self._count}"
        (entry / "in").mkdir(parents=True, mode=0o700)
        for name, data in (inputs or {}).items():
            (entry / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (entry / "in" / name).write_bytes(data)
        words = ("sh", "-c", command) if isinstance(command, str) else command
        program = Program(
            words, environment or {},
            tuple(Input(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in (inputs or {}).items()),
            outputs,
            restart,
        )  # fmt: skip
        resources = Resources(memory=256 << 20, scratch=64 << 20, walltime=1800)  # seconds; no test waits as long
        record = Manifest(
            protocol=wire.PROTOCOL, installation="test", entry=entry.name, vm="vm1", epoch=1, allocation="a1",
            job="j1", image=image or self.image, image_digest="0" * 64, program=program, resources=resources,
            stop_grace=5, hypervisor=self.hypervisor,
        )  # fmt: skip
        record = dataclasses.replace(record, **manifest)  # type: ignore[arg-type]
        spool.write_durable(entry / wire.MANIFEST, wire.canonical(record))
        return entry

    def start(self, entry: Path, *more: str) -> subprocess.Popen[bytes]:
        """Start a pilot on an entry, in a session of its own as a batch system would. `more`: of its words."""
        code = "import sys; from gridhypervisor.agent.pilot import main; sys.exit(main())"
        pilot = subprocess.Popen(
            [sys.executable, "-c", code, "--entry", str(entry), "--scratch", str(self.scratch), *more],
            env=system_world(), start_new_session=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.pilots.append(pilot)
        return pilot

    def run(self, entry: Path, timeout: float = 240) -> ExitRecord:
        """Run a pilot to its end; its sentinel."""
        self.start(entry).wait(timeout)
        return self.sentinel(entry)

    def sentinel(self, entry: Path, timeout: float = 60) -> ExitRecord:
        """The sentinel, once it is there."""
        wait_for(lambda: (entry / wire.EXIT).exists(), timeout, f"{entry / wire.EXIT}")
        record = spool.read_json(entry / wire.EXIT, ExitRecord)
        assert record is not None
        return record

    def wait_for_stdout(self, entry: Path, text: str, timeout: float = 120) -> None:
        """Wait until the program has printed this and nothing else."""
        stdout = entry / wire.STDOUT
        wait_for(lambda: stdout.exists() and stdout.read_text() == text, timeout, f"{entry.name} to print {text!r}")

    def status(self, entry: Path) -> Status | None:
        return spool.read_json(entry / wire.STATUS, Status)

    def wait_for_phase(self, entry: Path, phase: wire.Phase, timeout: float = 120) -> Status:
        """Wait until the pilot reports this phase."""

        def there() -> bool:
            status = self.status(entry)
            return status is not None and status.phase is phase

        wait_for(there, timeout, f"phase {phase} of {entry.name}")
        status = self.status(entry)
        assert status is not None
        return status

    def hypervisors(self, entry: Path) -> list[int]:
        """The processes that run the entry's guest, and are not dead: QEMU's one, or User-Mode Linux' first and then
        its family."""
        out = []
        names = (b"-name\0%s\0" % entry.name.encode(), b"\0umid=%s\0" % entry.name.encode())
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes()
                # Behind its walls the one knows no path of ours, but what its disks are mounted from.
                if any(name in words for name in names) and (
                    os.fsencode(self.scratch) in words or str(self.scratch) in (folder / "mountinfo").read_text()
                ):
                    within = (folder / "status").read_text().split("NSpid:", 1)[1].split("\n", 1)[0].split()
                    out.append((len(within) > 1 and within[-1] != "1", int(folder.name)))
            except OSError:
                continue
        return [number for _, number in sorted(out)]

    def is_clean(self, entry: Path) -> None:
        """Assert that nothing is left of the run: no process, no folder."""
        runs = self.scratch / f"ghv-{os.getuid()}" / "run"
        wait_for(lambda: not self.hypervisors(entry), 60, f"the hypervisor of {entry.name} to be gone")
        wait_for(lambda: not (runs / entry.name).exists(), 60, f"{runs / entry.name} to be gone")

    def close(self) -> None:
        """End what this site started."""
        for pilot in self.pilots:
            if pilot.poll() is None:
                os.kill(pilot.pid, signal.SIGCONT)
                pilot.kill()
                pilot.wait(60)


def whole_disk(site: Site, folder: Path) -> ImageManifest:
    """An image that is one whole disk, as an imported one: a partition table, the root in the second partition, and
    nothing of ours in it."""
    root = folder / "root"
    for name in ("etc", "bin", "opt"):
        (root / name).mkdir(parents=True)
    (root / "etc/os-release").write_text("ID=other\n")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    busybox = Path("/bin/busybox").read_bytes()
    (root / "bin/sh").write_bytes(busybox)
    (root / "bin/cat").write_bytes(busybox)
    for path in (root / "bin").iterdir():
        path.chmod(0o755)
    disk, start, size = folder / "disk.raw", 8 << 20, 24 << 20
    subprocess.run(["truncate", "-s", str(start + size), str(disk)], check=True)
    subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-d", str(root), "-E", f"offset={start}", str(disk), f"{size >> 10}k"],
        check=True,
    )
    # A DOS table: a small empty first partition, then the root.
    entries = [(2048, 2048), (start >> 9, size >> 9)]
    table = b"".join(bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + b.to_bytes(4, "little") + n.to_bytes(4, "little")
                     for b, n in entries)  # fmt: skip
    with disk.open("r+b") as file:
        file.seek(446)
        file.write(table + bytes(32) + b"\x55\xaa")
    qcow = folder / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(disk), str(qcow)], check=True)
    layer = add_layer(site.workdir / "cache", qcow.read_bytes(), "disk", "qcow2")
    others = tuple(layer for layer in site.image.layers if layer.role in ("kernel", "initrd"))
    return dataclasses.replace(site.image, layers=(*others, layer))


def wait_for(condition: Callable[[], bool], timeout: float, what: str) -> None:
    """Wait for the condition; fail when it does not come."""
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit, f"waited {timeout} s for {what}"
        time.sleep(0.05)


def sites(root: Path, hypervisor: str) -> Iterator[Site]:
    image, layers = tiny_image()
    site = Site(root, image, layers, hypervisor)
    yield site
    site.close()
