"""Keeps images: layers and manifests by their digest, tags by name. Makes none and runs none.

    layers/DIGEST           a layer's bytes
    layers/DIGEST.chunks    its chunk list (see wire.Layer)
    images/DIGEST.json      a manifest, canonical
    tags/NAME/TAG           the digest that it points at
    tmp/                    what is being written
    names                   flock: held alone by whoever changes what a name points at
    adding                  flock: shared by all who add, held alone to remove layers

Everything is 0600 or 0700 and appears by rename, in an order in which a crash leaves only what nothing refers to:
layers, then the manifest, then the tag; removal goes the other way. Whoever adds holds `adding` from the first layer to
the manifest, so layers that no manifest names may go whenever nobody adds. Nobody waits for that: what is left over is
removed another time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gridhypervisor.images.errors import ImageError, NoSuchImage
from gridhypervisor.model.wire import ImageManifest, Layer, WireError, canonical, from_plain

CHUNK_SIZE = 1 << 20
DEFAULT_TAG = "latest"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}")
_DIGEST = re.compile(r"[0-9a-f]{12,64}")
_THREADS = min(4, os.cpu_count() or 1)  # hashing is done outside the interpreter's lock; more only wait for the disk


@dataclass(frozen=True)
class Image:
    """An image in the repository."""

    digest: str
    manifest: ImageManifest
    tags: tuple[str, ...]  # name:tag, sorted

    @property
    def size(self) -> int:
        """Bytes of all layers, shared ones included."""
        return sum(layer.size for layer in self.manifest.layers)


@dataclass(frozen=True)
class Damage:
    """A part of an image whose bytes are not those of its digest."""

    part: str  # e.g. "base layer 3f2a…"
    chunk: int | None  # counted from 0; None when it is not one chunk that is wrong
    offset: int | None  # bytes from the layer's start
    what: str

    def __str__(self) -> str:
        where = f", chunk {self.chunk} at byte {self.offset}" if self.chunk is not None else ""
        return f"{self.part}{where}: {self.what}"


class Repository:
    """A repository in the folder `root`. Safe for many processes and threads at once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in (root, self._layers, self._images, self._tags, self._tmp):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def _layers(self) -> Path:
        return self.root / "layers"

    @property
    def _images(self) -> Path:
        return self.root / "images"

    @property
    def _tags(self) -> Path:
        return self.root / "tags"

    @property
    def _tmp(self) -> Path:
        return self.root / "tmp"

    # Adding

    def adding(self) -> contextlib.AbstractContextManager[None]:
        """Hold this from the first `add_layer` to `tag`: what was added stays although nothing refers to it yet."""
        return self._locked("adding", fcntl.LOCK_SH)

    def add_layer(self, source: Path | BinaryIO, *, role: str, format: str, mount: str = "") -> Layer:
        """Take in a copy of a layer's bytes; does nothing but read when they are there already.

        Raises:
            ImageError: the source cannot be read, or the repository's disk is full.
        """
        with self.adding(), self._temporary() as path:
            try:
                with path.open("wb") as out:
                    if isinstance(source, Path):
                        with source.open("rb") as given:
                            shutil.copyfileobj(given, out, CHUNK_SIZE)
                    else:
                        shutil.copyfileobj(source, out, CHUNK_SIZE)
                    out.flush()
                    os.fsync(out.fileno())
            except OSError as error:
                what = f"add {role} layer to {self.root}"
                raise ImageError(f"{what}: {error}", "free some space, or mend the file") from error
            digests = b"".join(_chunk_digests(path, path.stat().st_size, CHUNK_SIZE))
            layer = Layer(hashlib.sha256(digests).hexdigest(), path.stat().st_size, role, format, mount, CHUNK_SIZE)
            if not self.has(layer):
                # The list last: `has` wants both, and what is incomplete is written again.
                os.replace(path, self.layer_path(layer))
                self._write(self.chunks_path(layer), digests)
            return layer

    def put(self, manifest: ImageManifest) -> str:
        """Keep a manifest whose layers are here; return its digest. It has no name until it is tagged.

        Raises:
            ImageError: a layer is not here.
        """
        with self.adding():
            for layer in manifest.layers:
                if not self.has(layer):
                    raise ImageError(f"put image: its {_part(layer)} is not in {self.root}", "build or import it again")
            text = canonical(manifest)
            digest = hashlib.sha256(text).hexdigest()
            self._write(self._images / f"{digest}.json", text)
            return digest

    def tag(self, reference: str, digest: str) -> None:
        """Point `name[:tag]` at an image, in one step, whatever it pointed at before.

        Raises:
            ImageError: the name cannot be one, or there is no such image.
        """
        name, tag = _parse_tag(reference)
        with self._locked("names", fcntl.LOCK_EX):
            self._manifest(digest)
            (self._tags / name).mkdir(mode=0o700, exist_ok=True)
            self._write(self._tags / name / tag, digest.encode())

    # Looking

    def resolve(self, reference: str) -> str:
        """The digest of `name`, `name:tag` or `name@digest` (at least the first 12 digits of it).

        Raises:
            ImageError: there is none.
        """
        _, at, digest = reference.partition("@")
        if at:
            if not _DIGEST.fullmatch(digest):
                raise ImageError(f"image {reference}: {digest!r} is no digest", "give 12 to 64 hexadecimal digits")
            found = [path.stem for path in self._images.glob(f"{digest}*.json")]
            if len(found) != 1:
                why = "several images begin so" if found else "there is no such image"
                raise NoSuchImage(f"image {reference}: {why} in {self.root}", "see `ghv image list`")
            return found[0]
        name, tag = _parse_tag(reference)
        try:
            return (self._tags / name / tag).read_text()
        except (FileNotFoundError, NotADirectoryError):
            known = sorted(image_tag for image_tag in self._all_tags() if image_tag.startswith(f"{name}:"))
            hint = f"there is {', '.join(known)}" if known else "see `ghv image list`, or `ghv image build`"
            raise NoSuchImage(f"image {name}:{tag}: there is no such image in {self.root}", hint) from None

    def show(self, reference: str) -> Image:
        """One image.

        Raises:
            ImageError: there is none, or its manifest is damaged.
        """
        digest = self.resolve(reference)
        tags = tuple(sorted(tag for tag, target in self._all_tags().items() if target == digest))
        return Image(digest, self._manifest(digest), tags)

    def list(self) -> tuple[Image, ...]:
        """All images, tagged ones first, by name.

        Raises:
            ImageError: a manifest is damaged.
        """
        digests = [path.stem for path in self._images.glob("*.json")]
        images = [self.show(f"@{digest}") for digest in digests]
        return tuple(sorted(images, key=lambda image: (not image.tags, image.tags, image.digest)))

    def has(self, layer: Layer) -> bool:
        """Whether a layer is here, whole by its length; `verify` reads it."""
        path = self.layer_path(layer)
        return path.exists() and self.chunks_path(layer).exists() and path.stat().st_size == layer.size

    def layer_path(self, layer: Layer) -> Path:
        """Where a layer's bytes are."""
        return self._layers / layer.digest

    def chunks_path(self, layer: Layer) -> Path:
        """Where a layer's chunk list is."""
        return self._layers / f"{layer.digest}.chunks"

    def verify(self, reference: str) -> tuple[Damage, ...]:
        """Read all of an image and compare it with its digests; nothing is returned when all is well.

        Raises:
            ImageError: there is no such image, or its manifest is damaged.
        """
        manifest = self._manifest(self.resolve(reference))
        return tuple(damage for layer in manifest.layers for damage in self._verify_layer(layer))

    # Removing

    def delete(self, reference: str, *, in_use: Collection[str] = ()) -> tuple[str, ...]:
        """Remove a tag, and the image with it when that was its last; or, by `name@digest`, an image without tags.

        Layers go when no image names them any more, unless somebody is adding just now. `in_use` holds digests of
        images that something still needs.
        Returns the digests of the images that are gone.

        Raises:
            ImageError: there is no such image, it is in use, or tags point at it.
        """
        with self._locked("names", fcntl.LOCK_EX):
            digest = self.resolve(reference)
            tags = [tag for tag, target in self._all_tags().items() if target == digest]
            mine = [] if "@" in reference else [":".join(_parse_tag(reference))]
            others = sorted(set(tags) - set(mine))
            if others and not mine:
                raise ImageError(
                    f"delete image {reference}: {', '.join(others)} point{'s' * (len(others) == 1)} at it",
                    f"delete {'that' if len(others) == 1 else 'those'} first",
                )
            if not others and digest in in_use:
                raise ImageError(f"delete image {reference}: it is in use", "wait for its jobs to end, or cancel them")
            for tag in mine:
                name, _, label = tag.partition(":")
                (self._tags / name / label).unlink()
                with contextlib.suppress(OSError):  # not empty: there are other tags
                    (self._tags / name).rmdir()
            if others:
                return ()
            (self._images / f"{digest}.json").unlink()
            self._sweep()
            return (digest,)

    def prune(self, *, in_use: Collection[str] = ()) -> tuple[str, ...]:
        """Remove all images that have no tag and are not in use, and all that crashes left; return the images' digests.

        While somebody is adding nothing is removed: an image has no tag yet when it is new.

        Raises:
            ImageError: a manifest is damaged, so that it cannot be known which layers it needs.
        """
        with self._locked("names", fcntl.LOCK_EX), self._nobody_adds() as nobody_adds:
            if not nobody_adds:
                return ()
            gone = {path.stem for path in self._images.glob("*.json")} - set(self._all_tags().values()) - set(in_use)
            for digest in gone:
                (self._images / f"{digest}.json").unlink()
        self._sweep()
        return tuple(sorted(gone))

    def _sweep(self) -> None:
        """Remove layers that no image names and what crashed writers left, unless somebody is adding."""
        with self._nobody_adds() as nobody_adds:
            if not nobody_adds:
                return
            kept = {layer.digest for path in self._images.glob("*.json") for layer in self._manifest(path.stem).layers}
            for path in self._layers.iterdir():
                if path.name.removesuffix(".chunks") not in kept:
                    path.unlink()
            for path in self._tmp.iterdir():
                path.unlink()

    @contextlib.contextmanager
    def _nobody_adds(self) -> Iterator[bool]:
        """Keep everybody from adding, if nobody is."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._locked("adding", fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    # Inside

    def _manifest(self, digest: str) -> ImageManifest:
        path = self._images / f"{digest}.json"
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            why = f"there is no such image in {self.root}"
            raise NoSuchImage(f"image {digest[:12]}: {why}", "see `ghv image list`") from None
        if hashlib.sha256(text).hexdigest() != digest:
            raise ImageError(f"image {digest[:12]}: its manifest {path} is damaged", "remove that file; build it again")
        try:
            return from_plain(ImageManifest, json.loads(text))
        except WireError as error:
            hint = "it was made by another version: build it again"
            raise ImageError(f"image {digest[:12]}: {error}", hint) from error

    def _all_tags(self) -> dict[str, str]:
        found = {}
        for path in self._tags.glob("*/*"):
            with contextlib.suppress(FileNotFoundError):  # deleted while we look
                found[f"{path.parent.name}:{path.name}"] = path.read_text()
        return found

    def _verify_layer(self, layer: Layer) -> Iterator[Damage]:
        path, part = self.layer_path(layer), _part(layer)
        try:
            digests, size = self.chunks_path(layer).read_bytes(), path.stat().st_size
        except FileNotFoundError as error:
            yield Damage(part, None, None, f"{error.filename} is missing")
            return
        if hashlib.sha256(digests).hexdigest() != layer.digest:
            yield Damage(part, None, None, f"its chunk list {self.chunks_path(layer)} is damaged")
            return
        if size != layer.size:
            yield Damage(part, None, None, f"{path} holds {size} bytes instead of {layer.size}")
        for index, digest in enumerate(_chunk_digests(path, min(size, layer.size), layer.chunk_size)):
            if digest != digests[32 * index : 32 * index + 32]:
                yield Damage(part, index, index * layer.chunk_size, "its bytes are not those of its digest")

    @contextlib.contextmanager
    def _locked(self, name: str, how: int) -> Iterator[None]:
        with open(os.open(self.root / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "rb") as lock:
            fcntl.flock(lock, how)
            yield

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        handle, name = tempfile.mkstemp(dir=self._tmp)  # 0600
        os.close(handle)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)

    def _write(self, path: Path, data: bytes) -> None:
        """Write a file so that it is there whole or not at all, also after a power cut."""
        with self._temporary() as temporary:
            with temporary.open("wb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _parse_tag(reference: str) -> tuple[str, str]:
    name, colon, tag = reference.partition(":")
    if not _NAME.fullmatch(name) or (colon and not _TAG.fullmatch(tag)):
        raise ImageError(
            f"{reference!r} cannot name an image",
            "write name, name:tag or name@digest; names hold a-z, 0-9, '.', '_' and '-'",
        )
    return name, tag or DEFAULT_TAG


def _part(layer: Layer) -> str:
    at = f" ({layer.mount})" if layer.mount else ""
    return f"{layer.role} layer {layer.digest[:12]}{at}"


def _chunk_digests(path: Path, size: int, chunk_size: int) -> Iterator[bytes]:
    """SHA-256 of each piece, in order, hashed in parallel."""
    with path.open("rb") as data, ThreadPoolExecutor(_THREADS) as pool:

        def digest(offset: int) -> bytes:
            return hashlib.sha256(os.pread(data.fileno(), min(chunk_size, size - offset), offset)).digest()

        yield from pool.map(digest, range(0, size, chunk_size))
