"""The recipe of the world that travels: CPython, the hypervisors and a few tools out of Debian packages, with all they
need.

An ordinary user can follow it: apt resolves and fetches against an empty package list in folders of its own, packages
are opened but not installed. The result holds the programs named below, exactly the shared libraries that they load,
and nothing that a pilot or a relay does not use. It is made once for a recipe and a set of package versions.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gridhypervisor.agent.world import UML_MODULES

PACKAGES = (
    "qemu-system-x86", "qemu-utils", "seabios", "user-mode-linux", "python3.11-minimal", "libpython3.11-stdlib",
    "e2fsprogs", "zstd", "busybox-static", "tcc",
)  # fmt: skip
PROGRAMS = {
    "python3.11": "usr/bin/python3.11",
    "qemu-system-x86_64": "usr/bin/qemu-system-x86_64",
    "qemu-img": "usr/bin/qemu-img",
    "mke2fs": "sbin/mke2fs",
    "zstd": "usr/bin/zstd",
}
QEMU_MODULES = ("accel-tcg-x86_64",)
FIRMWARE = {
    "usr/share/seabios/": ("bios-256k.bin",),
    "usr/share/qemu/": ("kvmvapic.bin", "linuxboot.bin", "linuxboot_dma.bin", "multiboot.bin", "multiboot_dma.bin",
                        "pvh.bin"),
}  # fmt: skip
UML = "usr/bin/linux.uml"
UML_MODULES_FOLDER = "usr/lib/uml/modules"
XSTATE = Path(__file__).with_name("xstate.c")
COMPILER = "usr/bin/tcc"
LOADER = "lib64/ld-linux-x86-64.so.2"
LIBRARY_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
STDLIB = "usr/lib/python3.11"
STDLIB_LEFT_OUT = (
    "antigravity.py", "curses", "dbm", "distutils", "doctest.py", "ensurepip", "idlelib", "lib2to3", "pdb.py",
    "__phello__", "pydoc.py", "pydoc_data", "sitecustomize.py", "sqlite3", "test", "this.py", "tkinter", "turtle.py",
    "turtledemo", "unittest", "venv", "wsgiref", "xmlrpc",
)  # fmt: skip
EXTENSIONS_LEFT_OUT = (
    "_codecs_", "_crypt", "_ctypes_test", "_curses", "_dbm", "_gdbm", "_lsprof", "_sqlite3", "_test", "_tkinter", "_xx",
    "audioop", "nis", "ossaudiodev", "readline", "xxlimited",
)  # fmt: skip
TOOLS = ("apt-get", "dpkg-deb")
COMPRESSION = "-9"  # 27.8 MB in 3 s of CPU; -19 would save a tenth once per account, and take a minute of a first run
WORLDS_KEPT = 3  # 100 MB each: this recipe's, and what an older version may still want
ISOLATED = ("-I", "-S", "-B", "-X", "utf8")
"""Python without anything of the machine's or the user's: environment, site packages, caches."""


class BundleError(RuntimeError):
    """The bundle could not be made; the message names the step and what to do."""


@dataclass(frozen=True)
class BuiltWorld:
    """What `build_world` left in `folder`: `world.tar.zst`, `busybox`, `zstd/` to travel; `tree/` to run here."""

    folder: Path

    @property
    def python(self) -> list[str]:
        tree = self.folder / "tree"
        return [str(tree / "ld.so"), "--library-path", str(tree / "so"), str(tree / "bin/python3.11"), *ISOLATED]


def last_change(path: Path) -> int:
    """When, to sort by, oldest first: what another builder has pruned meanwhile counts as the oldest."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def build_world(cache: Path, progress: Callable[[str], None], *, refresh: bool) -> BuiltWorld:
    """Give the world of this recipe from `cache`, made anew where there is none or (`refresh`) packages have moved on.

    Raises:
        BundleError: a tool or a package is missing, or a step failed.
    """
    sources = Path(__file__).read_bytes() + XSTATE.read_bytes()
    recipe = hashlib.sha256(sources + repr(UML_MODULES).encode()).hexdigest()[:16]
    made = sorted((cache / "worlds").glob(f"{recipe}-*/done"), key=last_change)
    if made and not refresh:
        return BuiltWorld(made[-1].parent)
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        raise BundleError(
            f"make the bundle: {', '.join(missing)} not found; it is made of Debian packages, on a Debian 12 machine "
            "with the packages apt and dpkg"
        )
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    packages = _fetch(cache / "apt", progress)
    versions = "\n".join(sorted(package.name for package in packages))
    folder = cache / "worlds" / f"{recipe}-{hashlib.sha256(versions.encode()).hexdigest()[:16]}"
    if (folder / "done").exists():
        (folder / "done").touch()
        return BuiltWorld(folder)
    shutil.rmtree(folder, ignore_errors=True)
    root = folder / "root"
    root.mkdir(parents=True)
    progress(f"open {len(packages)} packages")
    for package in packages:
        _run(["dpkg-deb", "-x", str(package), str(root)], f"open {package.name}")
    progress("gather programs, libraries, firmware")
    _gather(root, folder / "tree")
    _gather_tools(root, folder)
    progress("compile the standard library")
    _compile(BuiltWorld(folder), folder / "tree/lib/python3.11")
    progress("compress the world")
    _pack(folder)
    shutil.rmtree(root)
    (folder / "packages").write_text(versions + "\n")
    (folder / "done").touch()
    for old in sorted(folder.parent.iterdir(), key=last_change)[:-WORLDS_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return BuiltWorld(folder)


def _fetch(apt: Path, progress: Callable[[str], None]) -> list[Path]:
    """Resolve PACKAGES as if nothing were installed, fetch what is not there yet, return the package files."""
    archives = apt / "archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    (apt / "lists/partial").mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    settings = [
        f"Dir::State::status={apt}/status", f"Dir::State::extended_states={apt}/extended", f"Dir::Cache={apt}",
        f"Dir::Cache::archives={archives}", "Debug::NoLocking=1", "APT::Sandbox::User=root",
        "APT::Install-Recommends=0", "Acquire::Retries=3",
    ]  # fmt: skip
    words = ["apt-get", "-qq", "-y", *(word for setting in settings for word in ("-o", setting))]
    progress("ask apt for packages")
    if subprocess.run([*words, "--print-uris", "install", *PACKAGES], capture_output=True, check=False).returncode:
        # This machine's own lists are empty, old or those of another release: fetch lists of our own.
        words += ["-o", f"Dir::State::lists={apt}/lists"]
        _run([*words, "update"], "fetch the package lists")
    # What an archives folder holds already is left out of --print-uris: look with an empty one.
    nothing = apt / "nothing"
    (nothing / "partial").mkdir(parents=True, exist_ok=True)
    listing = _run([*words, "-o", f"Dir::Cache::archives={nothing}", "--print-uris", "install", *PACKAGES],
                   "find packages for the bundle")  # fmt: skip
    names = [line.split()[1] for line in listing.splitlines() if line.startswith("'")]
    size = sum(int(line.split()[2]) for line in listing.splitlines() if line.startswith("'"))
    progress(f"fetch {len(names)} packages, {size >> 20} MiB, where they are not here yet")
    _run([*words, "--download-only", "install", *PACKAGES], "fetch packages for the bundle")
    for stale in {path.name for path in archives.glob("*.deb")} - set(names):
        (archives / stale).unlink()
    return [archives / name for name in sorted(names)]


def _gather(root: Path, tree: Path) -> None:
    """Copy from an opened root what the world holds."""
    for folder in ("bin", "so", "qemu", "firmware", "uml"):
        (tree / folder).mkdir(parents=True)
    _copy(root / LOADER, tree / "ld.so", root)
    roots: list[Path] = []
    for name, place in PROGRAMS.items():
        _copy(root / place, tree / "bin" / name, root)
        roots.append(tree / "bin" / name)
    for module in QEMU_MODULES:
        _copy(root / LIBRARY_FOLDERS[1] / "qemu" / f"{module}.so", tree / "qemu" / f"{module}.so", root)
        roots.append(tree / "qemu" / f"{module}.so")
    _copy(root / UML, tree / "uml/linux", root)
    roots.append(tree / "uml/linux")
    for module in UML_MODULES:
        [found] = (root / UML_MODULES_FOLDER).rglob(f"{module}.ko")
        _copy(found, tree / "uml" / found.name, root)
    compile_xstate([*_loader(root), str(root / COMPILER)], tree / "uml/xstate.so")
    for place, names in FIRMWARE.items():
        for name in names:
            _copy(root / place / name, tree / "firmware" / name, root)

    def left_out(folder: str, names: list[str]) -> set[str]:
        out = {name for name in names if name in STDLIB_LEFT_OUT or name.startswith(("config-", "__pycache__"))}
        if folder.endswith("lib-dynload"):
            out |= {name for name in names if name.startswith(EXTENSIONS_LEFT_OUT)}
        return out

    shutil.copytree(root / STDLIB, tree / "lib/python3.11", ignore=left_out, ignore_dangling_symlinks=True)
    (tree / "unpacked").touch()  # the last name of the archive: `start.sh` takes it for "all of it is here"
    roots += (tree / "lib/python3.11/lib-dynload").glob("*.so")
    _copy_libraries(root, roots, tree / "so")


def _gather_tools(root: Path, folder: Path) -> None:
    """What must run before anything is unpacked: a static busybox, and zstd with its own loader and libraries."""
    _copy(root / "bin/busybox", folder / "busybox", root)
    (folder / "zstd").mkdir()
    _copy(root / LOADER, folder / "zstd/ld.so", root)
    _copy(root / "usr/bin/zstd", folder / "zstd/zstd", root)
    _copy_libraries(root, [folder / "zstd/zstd"], folder / "zstd")


def _copy_libraries(root: Path, loaded_by: Iterable[Path], into: Path) -> None:
    """Copy the shared libraries that those files load, directly or not, as the root's own loader finds them."""
    for file in loaded_by:
        for line in _run([*_loader(root), "--list", str(file)], f"find the libraries of {file.name}").splitlines():
            name, _, path = line.strip().partition(" => ")
            if not path:
                continue  # the loader itself, and what the kernel brings
            source = Path(path.rsplit(" (", 1)[0])
            if not source.is_relative_to(root):
                raise BundleError(f"find the libraries of {file.name}: {name} is in none of the packages ({path})")
            if name != "ld-linux-x86-64.so.2" and not (into / name).exists():
                _copy(source, into / name, root)


def _loader(root: Path) -> list[str]:
    """The words that start a program with the loader and libraries of an opened root."""
    folders = [root / folder for folder in LIBRARY_FOLDERS]
    return [str(_inside(root / LOADER, root)), "--library-path", ":".join(map(str, folders))]


def compile_xstate(compiler: Sequence[str], made: Path) -> None:
    """Compile `xstate.c`, which User-Mode Linux loads first, to a shared library. It needs no headers.

    Raises:
        BundleError: it does not compile.
    """
    _run([*compiler, "-nostdlib", "-nostdinc", "-shared", "-o", str(made), str(XSTATE)], f"compile {XSTATE.name}")


def _compile(world: BuiltWorld, folder: Path) -> None:
    """Replace sources by bytecode that is never checked against them: half the size, nothing to compile."""
    compile_bytecode(world, folder)
    for source in folder.rglob("*.py"):
        source.unlink()


def compile_bytecode(world: BuiltWorld, folder: Path) -> None:
    """Compile every module below `folder` with the world's own Python, to NAME.pyc beside NAME.py.

    The paths in the bytecode are relative to `folder`, so that the bytes do not depend on where they were made.

    Raises:
        BundleError: a module does not compile.
    """
    code = (
        "import sys, compileall, py_compile; sys.exit(not compileall.compile_dir(sys.argv[1], quiet=1, legacy=True, "
        "stripdir=sys.argv[1], invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH))"
    )
    environment = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
    _run([*world.python, "-c", code, str(folder)], f"compile {folder.name}", environment)


def _pack(folder: Path) -> None:
    raw = folder / "world.tar"
    raw.write_bytes(tar_of(folder / "tree"))
    zstd = [str(folder / "zstd/ld.so"), "--library-path", str(folder / "zstd"), str(folder / "zstd/zstd")]
    _run(
        [*zstd, "-q", COMPRESSION, "-T2", "--check", "--rm", "-f", str(raw), "-o", str(folder / "world.tar.zst")],
        "compress the world",
    )


def tar_of(tree: Path) -> bytes:
    """A tar archive of a folder's content that depends on names, modes and bytes only."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in sorted(tree.rglob("*"), key=lambda path: path.relative_to(tree).as_posix()):
            member = tarfile.TarInfo(path.relative_to(tree).as_posix())
            if path.is_dir():
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
            else:
                data = path.read_bytes()
                member.size, member.mode = len(data), 0o755 if os.access(path, os.X_OK) else 0o644
                archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _inside(path: Path, root: Path) -> Path:
    """The file that a path in an opened root means: absolute links there start at `root`, not at ours."""
    for _ in range(40):
        if not path.is_symlink():
            return path
        target = path.readlink()
        path = root / target.relative_to("/") if target.is_absolute() else path.parent / target
    raise BundleError(f"follow {path}: too many links")


def _copy(source: Path, target: Path, root: Path) -> None:
    found = _inside(source, root)
    if not found.is_file():
        raise BundleError(f"make the bundle: the packages hold no {source.relative_to(root)}; is this Debian 12?")
    shutil.copyfile(found, target)
    target.chmod(0o755 if os.access(found, os.X_OK) else 0o644)


def _run(words: list[str], what: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", env=environment, check=False)
    if done.returncode:
        why = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
        raise BundleError(f"{what}: {' · '.join(why[-3:])}")
    return done.stdout
