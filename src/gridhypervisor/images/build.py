"""Builds an image of a recipe: a read-only Debian base, read-only layers over it, a kernel and an initrd.

The base is installed by mmdebstrap, in a user namespace for ordinary users; layers are unpacked without their packages'
scripts. All goes from archive to archive (`tree`), never onto a disk as root. The result is hardened: no password, no
set-user-ID program, no service. The same recipe with the same package versions gives the same bytes; each layer is
remembered by what it was made from, so that only what changed is built again.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from gridhypervisor.images import boot, tools
from gridhypervisor.images.apt import Apt, Package
from gridhypervisor.images.errors import NotPossibleHere
from gridhypervisor.images.recipe import ImageRecipe, LayerRecipe
from gridhypervisor.images.repository import Repository
from gridhypervisor.images.tree import EPOCH, Tree
from gridhypervisor.model.wire import ImageManifest, Layer, canonical, from_plain

Progress = Callable[[str], None]

UID = 1000  # of the user `job`
_RECIPE = "1"  # to be raised when the same recipe is to give other bytes
_BLOAT = r"usr/share/(man|info|locale|lintian|bug)/.*|usr/share/doc/[^/]+/(?!copyright$)[^/]+"
_MERGED = "usr-is-merged"  # says that /bin is a link already, and keeps out the tool that would make it one, and Perl
_HOOKS = Path("/usr/share/mmdebstrap/hooks/merged-usr")


def build(recipe: ImageRecipe, folder: Path, repository: Repository, cache: Path, *, progress: Progress) -> str:
    """Build what is not built yet, tag it `recipe.name`, and return its digest.

    `folder` is where the recipe's files are, `cache` where packages and intermediate results are kept.

    Raises:
        ImageError: a program, a privilege, a package or disk space is missing.
    """
    tools.require("apt-get", "dpkg-deb", "mksquashfs", *(["mmdebstrap"] if recipe.base == "debian" else []))
    with tools.cache_folder(cache, progress), repository.adding():
        builder = _Builder(recipe, folder, repository, cache, progress)
        layers = [*builder.boot(), builder.base(), *(builder.layer(layer) for layer in recipe.layers)]
        digest = repository.put(
            ImageManifest(
                layers=tuple(layers),
                cmdline=recipe.cmdline,
                user=recipe.user,
                path=":".join(recipe.path),
                description=recipe.description,
            )
        )
        repository.tag(recipe.name, digest)
    progress(f"{recipe.name}: {sum(layer.size for layer in layers) / 2**20:.0f} MiB, image {digest[:12]}")
    return digest


def boot_layers(files: boot.Boot, repository: Repository) -> tuple[Layer, Layer]:
    """Kernel and initrd as layers."""
    return (
        repository.add_layer(files.kernel, role="kernel", format="raw"),
        repository.add_layer(files.initrd, role="initrd", format="raw"),
    )


class _Builder:
    def __init__(
        self, recipe: ImageRecipe, folder: Path, repository: Repository, cache: Path, progress: Progress
    ) -> None:
        self._recipe, self._folder, self._repository, self._cache = recipe, folder, repository, cache
        self._apt = Apt(cache / "apt")
        self._status: Path | None = None  # the base's list of installed packages
        self._progress = progress

    def boot(self) -> tuple[Layer, Layer]:
        return boot_layers(boot.make(self._apt, self._cache, progress=self._progress), self._repository)

    def base(self) -> Layer:
        recipe = self._recipe
        busybox = recipe.base == "busybox"
        packages = self._apt.resolve(["busybox-static"] if busybox else ["?essential", _MERGED, *recipe.packages])
        if busybox:
            packages = tuple(package for package in packages if package.name == "busybox-static")
        versions = [str(package) for package in packages]
        key = _key("base", [recipe.base, recipe.suite, recipe.packages, versions, self._digests(recipe.files)])
        status = self._cache / f"base-{key}.status"

        def make(work: Path) -> Tree:
            tree = self._busybox(packages, work) if busybox else self._debian(work)
            status.write_bytes(tree.read("var/lib/dpkg/status"))
            self._add_files(tree, recipe.files)
            harden(tree)
            return tree

        layer = self._layer(key, "base", "", make, fresh=not status.exists())
        self._status = status
        return layer

    def layer(self, recipe: LayerRecipe) -> Layer:
        packages = self._apt.resolve(recipe.packages, installed=self._status) if recipe.packages else ()
        listing = "".join(f"{package}\n" for package in packages)

        def make(work: Path) -> Tree:
            self._progress(f"{recipe.mount}: unpacking {len(packages)} packages")
            tree = Tree()
            for name in ("lib", "lib64"):  # so that all libraries are in one place, as in the base
                tree.add_link(name, f"usr/{name}")
            self._unpack(tree, packages, work)
            tree.remove(_BLOAT)
            self._add_files(tree, recipe.files)
            if listing:
                tree.add_file("PACKAGES", listing.encode())
            tree.strip_privileges()
            return tree

        return self._layer(_key("app", [recipe.mount, listing, self._digests(recipe.files)]), "app", recipe.mount, make)

    def _layer(self, key: str, role: str, mount: str, make: Callable[[Path], Tree], *, fresh: bool = False) -> Layer:
        """The layer that was made of the same things before, or a new one."""
        record = self._cache / f"layer-{key}.json"
        if record.exists() and not fresh:
            layer = from_plain(Layer, json.loads(record.read_text()))
            if self._repository.has(layer):
                return layer
        with tempfile.TemporaryDirectory(dir=self._cache) as work:
            tree = make(Path(work))
            archive, packed = Path(work) / "tree.tar", Path(work) / "tree.squashfs"
            with archive.open("wb") as out:
                tree.write(out)
            self._progress(f"{mount or role}: packing")
            with archive.open("rb") as data:
                # mksquashfs gives the root folder to whoever runs it, so that must be root, if only by name.
                as_root = [] if os.geteuid() == 0 else ["unshare", "--map-root-user"]
                argv = [*as_root, "mksquashfs", "-", str(packed), "-tar", "-noappend", "-no-progress", "-quiet",
                        "-comp", "zstd", "-Xcompression-level", "15", "-root-mode", "755"]  # fmt: skip
                tools.run(
                    f"pack the {role} layer",
                    argv,
                    stdin=data,
                    environment={"SOURCE_DATE_EPOCH": str(EPOCH)},
                    hint=f"is there space in {self._cache}, and may this user make user namespaces?",
                )
            layer = self._repository.add_layer(packed, role=role, format="squashfs", mount=mount)
        record.write_bytes(canonical(layer))
        return layer

    def _debian(self, work: Path) -> Tree:
        recipe = self._recipe
        sources = self._apt.sources(recipe.suite)
        mode = _mmdebstrap_mode()
        how = "as root" if mode == "root" else "in a user namespace"
        self._progress(f"base: installing Debian {recipe.suite} ({how})")
        argv: list[str | Path] = [
            "mmdebstrap", f"--mode={mode}", "--variant=essential", f"--hook-dir={_HOOKS}", "--quiet",
            '--aptopt=APT::Install-Recommends "false"', "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "info", "locale")),
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            *(f"--include={package}" for package in recipe.packages),
            "--format=tar", recipe.suite, "-", *sources,
        ]  # fmt: skip
        archive = work / "debian.tar"
        with archive.open("wb") as out:
            tools.run("install the base", argv, stdout=out, environment={"SOURCE_DATE_EPOCH": str(EPOCH)})
        tree = Tree()
        tree.add_tar(archive)
        return tree

    def _busybox(self, packages: Sequence[Package], work: Path) -> Tree:
        unpacked = Tree()
        self._unpack(unpacked, packages, work)
        data = unpacked.read("usr/bin/busybox") or unpacked.read("bin/busybox")
        program = work / "busybox"
        program.write_bytes(data)
        program.chmod(0o755)
        tree = Tree()
        tree.add_file("usr/bin/busybox", data, mode=0o755)
        for applet in tools.run("list busybox's applets", [program, "--list"]).decode().split():
            if applet != "busybox":
                tree.add_link(f"usr/bin/{applet}", "busybox")
        for name in ("bin", "sbin"):
            tree.add_link(name, "usr/bin")
        tree.add_file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
        tree.add_file("etc/group", b"root:x:0:\n")
        return tree

    def _unpack(self, tree: Tree, packages: Sequence[Package], work: Path) -> None:
        for package, path in zip(packages, self._apt.download(packages), strict=True):
            archive = work / f"{package.name}.tar"
            with archive.open("wb") as out:
                tools.run(f"unpack {package.name}", ["dpkg-deb", "--fsys-tarfile", path], stdout=out)
            tree.add_tar(archive)

    def _add_files(self, tree: Tree, files: Mapping[str, str]) -> None:
        for destination, source in files.items():
            path = self._folder / source
            tree.add_file(destination, path.read_bytes(), mode=0o755 if os.access(path, os.X_OK) else 0o644)

    def _digests(self, files: Mapping[str, str]) -> list[tuple[str, str, bool]]:
        paths = [(destination, self._folder / source) for destination, source in sorted(files.items())]
        return [(to, hashlib.sha256(path.read_bytes()).hexdigest(), os.access(path, os.X_OK)) for to, path in paths]


def _mmdebstrap_mode() -> str:
    """How mmdebstrap may be root inside the new system.

    Raises:
        ImageError: it may not at all; says what an administrator would have to give.
    """
    if os.geteuid() == 0:
        return "root"
    user = pwd.getpwuid(os.geteuid()).pw_name
    ids = "100000-165535"
    hint = (
        f"an administrator can give it: apt-get install uidmap; usermod --add-subuids {ids} --add-subgids {ids} {user}"
    )
    try:
        tools.find("newuidmap")
    except NotPossibleHere:
        raise NotPossibleHere("build a Debian base without root: newuidmap is not installed", hint) from None
    for file in (Path("/etc/subuid"), Path("/etc/subgid")):
        lines = file.read_text().splitlines() if file.exists() else []
        if not any(line.split(":")[0] in (user, str(os.geteuid())) for line in lines):
            raise NotPossibleHere(f"build a Debian base without root: {file} gives {user} no range of ids", hint)
    limit = Path("/proc/sys/user/max_user_namespaces")
    if limit.exists() and limit.read_text().strip() == "0":
        raise NotPossibleHere(
            "build a Debian base without root: user namespaces are off (user.max_user_namespaces is 0)",
            "an administrator can turn them on with sysctl; or build on another machine and import",
        )
    return "unshare"


def harden(tree: Tree) -> None:
    """Leave no password, no privilege by file mode, and nothing that differs from one build to the next."""
    tree.remove(_BLOAT)
    tree.remove(r"(dev|run|tmp|boot|proc|sys|var/log|var/tmp|var/cache|var/lib/apt/lists)/.*")
    tree.remove(r"etc/(passwd-|group-|shadow-|gshadow-|\.pwd\.lock|hostname|resolv\.conf|machine-id)")
    tree.remove(r"etc/apt/(sources\.list.*|apt\.conf\.d/99mmdebstrap)|etc/dpkg/dpkg\.cfg\.d/99mmdebstrap|.*\.dpkg-old")
    tree.remove(r"var/lib/dpkg/[a-z]+-old")
    tree.strip_privileges()
    passwd = [line for line in tree.read("etc/passwd").decode().splitlines() if not line.startswith("job:")]
    group = [line for line in tree.read("etc/group").decode().splitlines() if not line.startswith("job:")]
    users = [line.split(":")[0] for line in passwd]
    fields = [line.split(":") for line in passwd]
    tree.add_file(
        "etc/passwd",
        _lines([":".join([name, "x", *rest]) for name, _, *rest in fields] + [f"job:x:{UID}:{UID}::/scratch:/bin/sh"]),
    )
    tree.add_file("etc/group", _lines([*group, f"job:x:{UID}:"]))
    tree.add_file("etc/shadow", _lines(f"{user}:*:{EPOCH // 86400}::::::" for user in [*users, "job"]), mode=0o600)
    tree.add_file("etc/hosts", b"127.0.0.1 localhost\n::1 localhost\n")
    tree.add_file("etc/machine-id", b"")
    for path, mode in {
        "dev": 0o755,
        "proc": 0o755,
        "sys": 0o755,
        "run": 0o755,
        "mnt": 0o755,
        "opt": 0o755,
        "scratch": 0o755,
        "root": 0o700,
        "tmp": 0o1777,
        "var/tmp": 0o1777,
        "var/log": 0o755,
        "var/cache": 0o755,
    }.items():
        tree.add_folder(path, mode=mode)


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _key(what: str, made_from: object) -> str:
    return hashlib.sha256(json.dumps([_RECIPE, what, made_from]).encode()).hexdigest()[:16]
