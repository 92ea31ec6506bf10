"""Asks the machine's own apt, as an ordinary user, which Debian packages something needs, and downloads them.

The machine's sources, keys and proxies are used as they are; its package lists too, while they serve. What apt must
write (its index cache, downloads, newer lists) goes to a folder of ours. Nothing is installed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from gridhypervisor.images.errors import ImageError
from gridhypervisor.images.tools import run

_LISTS = Path("/var/lib/apt/lists")
_SOURCES = Path("/etc/apt")


@dataclass(frozen=True, order=True)
class Package:
    """One version of one package, as apt would download it."""

    name: str
    version: str
    file: str  # as apt names it: NAME_VERSION_ARCH.deb
    size: int

    def __str__(self) -> str:
        return f"{self.name}={self.version}"


class Apt:
    """The machine's apt, writing to `cache` alone."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._pool = cache / "pool"
        for folder in (self._pool, cache / "lists" / "partial", cache / "archives" / "partial"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._nothing_installed = cache / "status"
        self._nothing_installed.touch()
        machine_has_lists = any(_LISTS.glob("*_Packages*"))
        self._lists = _LISTS if machine_has_lists else cache / "lists"

    def resolve(self, wanted: Sequence[str], *, installed: Path | None = None) -> tuple[Package, ...]:
        """The packages to add so that `wanted` work, beside those of the dpkg status file `installed`; sorted.

        Raises:
            ImageError: a package is unknown, or they contradict each other.
        """
        argv = ["install", "--print-uris", "-qq", "-y", "--no-install-recommends", *wanted]
        try:
            text = self._apt_get(f"resolve packages {' '.join(wanted)}", argv, installed or self._nothing_installed)
        except ImageError as error:
            unknown = ["".join(found) for found in _UNKNOWN.findall(error.message)]
            if not unknown:
                raise
            hint = (
                f"mend the name in the recipe: `apt-cache search {unknown[0]}` finds what this machine's sources have"
            )
            raise ImageError(error.message, hint) from error
        found = []
        for file, size in re.findall(r"^'[^']*' (\S+) (\d+)", text, re.MULTILINE):
            name, version, _ = file.split("_", 2)
            found.append(Package(name, unquote(version), file, int(size)))
        return tuple(sorted(found))

    def download(self, packages: Sequence[Package]) -> tuple[Path, ...]:
        """The .deb files of these packages, in their order; apt has checked them against the signed lists.

        Raises:
            ImageError: one cannot be had, or the disk is full.
        """
        missing = [package for package in packages if not self._is_here(package)]
        if missing:
            argv = ["download", "-qq", *map(str, missing)]
            self._apt_get(f"download {', '.join(p.name for p in missing)}", argv, self._nothing_installed)
        return tuple(self._pool / package.file for package in packages)

    def sources(self, suite: str) -> tuple[Path, ...]:
        """The machine's source files that speak of `suite`.

        Raises:
            ImageError: there is none.
        """
        files = [_SOURCES / "sources.list", *sorted((_SOURCES / "sources.list.d").glob("*"))]
        found, suites = [], set()
        for file in files:
            if file.suffix in (".list", ".sources"):
                with contextlib.suppress(OSError):
                    text = re.sub(r"(?m)^\s*#.*$", "", file.read_text())
                    words = set(text.split())
                    suites |= {word for word in words if re.fullmatch(r"[a-z]+", word)} & _SUITES
                    if suite in words:
                        found.append(file)
        if not found:
            offered = ", ".join(sorted(suites)) or "none that is known"
            raise ImageError(
                f"packages of suite {suite}: this machine's apt sources do not name it; they name {offered}",
                f"write one of those into the recipe, or add a source for {suite} below {_SOURCES}/sources.list.d",
            )
        return tuple(found)

    def _is_here(self, package: Package) -> bool:
        path = self._pool / package.file
        return path.exists() and path.stat().st_size == package.size

    def _apt_get(self, what: str, argv: Sequence[str], status: Path) -> str:
        try:
            return self._apt_get_once(what, argv, status)
        except ImageError:
            # The machine's lists may be older than the archive, and an ordinary user cannot refresh those: ours, then.
            if self._lists == self._cache / "lists" and any(self._lists.glob("*_Packages*")):
                raise
            self._lists = self._cache / "lists"
            self._apt_get_once("refresh the package lists", ["update", "-qq"], status)
            return self._apt_get_once(what, argv, status)

    def _apt_get_once(self, what: str, argv: Sequence[str], status: Path) -> str:
        options = {
            "Dir::State": self._cache,
            "Dir::State::lists": self._lists,
            "Dir::State::status": status,
            "Dir::Cache": self._cache,
            "Debug::NoLocking": "1",  # nothing is changed but files of ours
            "APT::Sandbox::User": "root",  # as root, do not become a user who may not write here
        }
        flags = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
        hint = "check the network and this machine's apt sources, or run `apt-get update`"
        return run(what, ["apt-get", *flags, *argv], cwd=self._pool, hint=hint).decode()


_UNKNOWN = re.compile(r"Unable to locate package (\S+)|Package '(\S+)' has no installation candidate")
"""How apt says that it knows no package of that name."""

_SUITES = {"bookworm", "trixie", "forky", "sid", "stable", "oldstable", "testing", "unstable"}
