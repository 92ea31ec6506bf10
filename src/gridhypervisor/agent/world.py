"""Where the programs that travel are: argv prefixes, firmware and the guest's archive.

`start.sh` unpacks the bundle's world and says in `GHV_WORLD` where. Nothing in it relies on the machine's loader or
libraries, so every program is started through the world's own `ld.so`. This module finds; it starts nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

SYSTEM = "system"
"""The value of `GHV_WORLD` that means this machine's own programs: for development and tests, never at a site."""

SYSTEM_XSTATE = "GHV_XSTATE"
"""With this machine's own programs: the variable that names `xstate.c`, compiled. Without it there is none."""

UML_MODULES = ("overlay", "squashfs", "erofs")
"""What User-Mode Linux needs beside what is built in (ext4, its disks and lines)."""

_SYSTEM_FOLDERS = ("/usr/local/bin", "/usr/bin", "/usr/sbin", "/bin", "/sbin")


class WorldError(RuntimeError):
    """A program that travels is not where it should be; the message says what to do."""


@dataclass(frozen=True)
class UmlParts:
    """User-Mode Linux: a kernel, modules of it, and what the kernel as a program needs to start."""

    kernel: Path
    modules: tuple[Path, ...]
    loader: Path
    libc: Path
    xstate: Path | None  # what it loads first, for processors with AMX (xstate.c); always there in the bundle


@dataclass(frozen=True)
class World:
    """A root of our own without chroot. `root` is None for this machine's own programs."""

    root: Path | None
    guest: Path | None = None  # guest.cpio; where None it is packed from the source tree's agent/guest

    @classmethod
    def from_environment(cls) -> World:
        """The world that `start.sh` unpacked, or the system's where `GHV_WORLD=system` asks for it.

        Raises:
            WorldError: `GHV_WORLD` is not set, or there is no world where it points.
        """
        where = os.environ.get("GHV_WORLD", "")
        if where == SYSTEM:
            return cls(None)
        if not where:
            raise WorldError("find the bundle's programs: GHV_WORLD is not set; start this role by `sh BUNDLE/start`")
        root = Path(where)
        if not (root / "ld.so").is_file():
            raise WorldError(f"find the bundle's programs: no {root}/ld.so; remove {root}, it is unpacked anew")
        return cls(root, root / "guest.cpio")

    def argv(self, program: str) -> list[str]:
        """The words that start `program` (`qemu-system-x86_64`, `qemu-img`, `mke2fs`, `zstd`); append its arguments.

        Raises:
            WorldError: it is not there.
        """
        if self.root is None:
            import shutil  # at no site: a start waits for every import

            found = shutil.which(program, path=os.pathsep.join(_SYSTEM_FOLDERS))
            if found is None:
                raise WorldError(f"find {program} on this machine: not installed, and GHV_WORLD=system asks for it")
            return [found]
        path = self.root / "bin" / program
        if not path.is_file():
            raise WorldError(f"find {program}: no {path}; remove {self.root}, it is unpacked anew")
        return [str(self.root / "ld.so"), "--library-path", str(self.root / "so"), "--argv0", program, str(path)]

    def uml(self) -> UmlParts:
        """What User-Mode Linux is made of: its file is no position-independent program, so `ld.so` cannot start it.

        Raises:
            WorldError: it is not there.
        """
        if self.root is None:
            found = Path("/usr/lib/uml/modules").glob("*/kernel/fs/*/*.ko")
            xstate = os.environ.get(SYSTEM_XSTATE)
            parts = UmlParts(
                Path("/usr/bin/linux.uml"), tuple(path for path in found if path.stem in UML_MODULES),
                Path("/lib64/ld-linux-x86-64.so.2"), Path("/lib/x86_64-linux-gnu/libc.so.6"),
                Path(xstate) if xstate else None,
            )  # fmt: skip
        else:
            uml = self.root / "uml"
            modules = tuple(uml / f"{name}.ko" for name in UML_MODULES)
            libc = self.root / "so/libc.so.6"
            parts = UmlParts(uml / "linux", modules, self.root / "ld.so", libc, uml / "xstate.so")
        if not parts.kernel.is_file():
            what = (
                "not installed" if self.root is None else f"no {parts.kernel}; remove {self.root}, it is unpacked anew"
            )
            raise WorldError(f"find User-Mode Linux: {what}")
        return parts

    def environment(self) -> dict[str, str]:
        """What must be added to the environment of QEMU."""
        return {} if self.root is None else {"QEMU_MODULE_DIR": str(self.root / "qemu")}

    def firmware(self) -> list[str]:
        """QEMU's words for where its firmware is; empty where its own default holds."""
        return [] if self.root is None else ["-L", str(self.root / "firmware")]

    def guest_archive(self) -> bytes:
        """The newc cpio archive with the guest's init and agent, ready to be appended to an image's initrd."""
        if self.guest is not None:
            return self.guest.read_bytes()
        from gridhypervisor.agent import cpio

        return cpio.guest_archive(Path(__file__).parent / "guest")
