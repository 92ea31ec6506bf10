"""What an image file (`kind: Image`) may hold, and reading one. Building it is `build`'s.

kind: Image
name: xmm
suite: bookworm
packages: [python3-minimal]            # in the base, with all that they depend on
layers:
  - mount: /opt/xmm                    # a read-only layer of its own, so that it can change without the base
    packages: [libcfitsio-bin]         # unpacked there, with the libraries that the base lacks
    files: {bin/evproducts: evproducts}
path: [/opt/xmm/bin]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from gridhypervisor.images.errors import ImageError
from gridhypervisor.model import yamlspec

Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$", description="an image's name: xmm, debian-12")]
Word = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]*$", description="a suite: bookworm, trixie")]
PackageName = Annotated[
    str, Meta(pattern=r"^[a-z0-9][a-z0-9+.-]+$", description="a Debian package's name: libcfitsio-bin, python3-minimal")
]
MountPoint = Annotated[
    str,
    Meta(
        pattern=r"^/(opt|srv|usr/local)(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)*$",
        description="a folder below /opt, /srv or /usr/local: /opt, /opt/xmm",
    ),
]
Destination = Annotated[str, Meta(description="a path in the image: bin/evproducts, etc/motd")]
Folder = Annotated[str, Meta(pattern=r"^/[^:\s]+$", description="an absolute path: /opt/xmm/bin, /usr/games")]
Cmdline = Annotated[str, Meta(pattern=r"^[ -~]*$", description="kernel arguments: mitigations=off, panic=-1")]


@dataclass(frozen=True)
class LayerRecipe:
    """A read-only part of an image with a place of its own in the guest."""

    mount: MountPoint
    packages: tuple[PackageName, ...] = ()
    files: dict[Destination, str] = field(default_factory=dict)  # path in the layer → path beside the recipe


@dataclass(frozen=True)
class ImageRecipe:
    """An image that can be built from Debian packages and files."""

    kind: Literal["Image"]
    name: Name
    description: str = ""
    suite: Word = "bookworm"
    base: Literal["debian", "busybox"] = "debian"  # busybox: a shell and its tools, some 2 MB, for tests and tools
    packages: tuple[PackageName, ...] = ()
    files: dict[Destination, str] = field(default_factory=dict)  # path in the base → path beside the recipe
    layers: tuple[LayerRecipe, ...] = ()
    user: Literal["job", "root"] = "job"  # whom programs run as; job has uid 1000
    path: tuple[Folder, ...] = ()  # put before PATH
    cmdline: Cmdline = ""  # added to the kernel's command line


def load(path: Path) -> ImageRecipe:
    """Read and check a recipe; the files that it names are looked for beside it.

    Raises:
        ImageError: the file cannot be read.
        SpecError: it is not a recipe; says where and why.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"read the recipe {path}: {error}", "give a YAML file with `kind: Image`") from error
    return yamlspec.load(str(path), text, ImageRecipe, problems, lambda recipe: missing_files(recipe, path.parent))


def problems(recipe: ImageRecipe) -> Iterator[tuple[str, str]]:
    """What types alone cannot say: field, and what is wrong with it."""
    if recipe.base == "busybox" and recipe.packages:
        yield "packages", "the busybox base takes none; use base: debian, or put them into a layer"
    mounts: set[str] = set()
    for i, layer in enumerate(recipe.layers):
        if layer.mount in mounts:
            yield f"layers[{i}].mount", f"{layer.mount} is another layer's place already"
        mounts.add(layer.mount)
        if not layer.packages and not layer.files:
            yield f"layers[{i}]", "the layer is empty; give packages or files"
    for where, files in _files(recipe):
        for destination in files:
            if any(part in ("", ".", "..") for part in destination.split("/")):
                yield f"{where}.{destination}", f"{destination!r} is no place in the image; write e.g. bin/evproducts"


def missing_files(recipe: ImageRecipe, folder: Path) -> Iterator[tuple[str, str]]:
    """Which of the files that it names are not beside it: field, and what is not there."""
    for where, files in _files(recipe):
        for destination, source in files.items():
            if not (folder / source).is_file():
                yield f"{where}.{destination}", f"there is no file {folder / source}"


def _files(recipe: ImageRecipe) -> Iterator[tuple[str, dict[str, str]]]:
    yield "files", recipe.files
    for i, layer in enumerate(recipe.layers):
        yield f"layers[{i}].files", layer.files
