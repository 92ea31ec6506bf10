"""The image repository: what was put in comes out, damage is found where it is, nothing that is needed goes away."""

from __future__ import annotations

import hashlib
import io
import threading
from pathlib import Path

import pytest

from gridhypervisor.images.errors import ImageError
from gridhypervisor.images.repository import CHUNK_SIZE, Repository
from gridhypervisor.model.wire import ImageManifest, Layer

DATA = bytes(range(256)) * (10 * CHUNK_SIZE // 256) + b"and a little more"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "images")


def add(repository: Repository, data: bytes = DATA, **fields: str) -> Layer:
    given = {"role": "base", "format": "squashfs", **fields}
    return repository.add_layer(io.BytesIO(data), **given)


def image(repository: Repository, *layers: Layer, name: str = "") -> str:
    digest = repository.put(ImageManifest(layers=layers))
    if name:
        repository.tag(name, digest)
    return digest


def files(repository: Repository) -> set[str]:
    return {path.name for path in (repository.root / "layers").iterdir()}


def test_a_layers_digest_is_that_of_its_chunk_list(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(DATA)
    layer = repository.add_layer(tmp_path / "data", role="app", format="squashfs", mount="/opt/x")
    pieces = [DATA[at : at + CHUNK_SIZE] for at in range(0, len(DATA), CHUNK_SIZE)]
    chunks = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
    assert layer.digest == hashlib.sha256(chunks).hexdigest()
    assert (layer.size, layer.role, layer.mount) == (len(DATA), "app", "/opt/x")
    assert repository.layer_path(layer).read_bytes() == DATA
    assert repository.chunks_path(layer).read_bytes() == chunks


def test_the_same_bytes_are_kept_once(repository: Repository) -> None:
    first, second = add(repository), add(repository)
    assert first == second
    assert files(repository) == {first.digest, f"{first.digest}.chunks"}


def test_an_empty_layer_is_a_layer(repository: Repository) -> None:
    digest = image(repository, add(repository, b""))
    assert repository.verify(f"@{digest}") == ()


def test_others_cannot_read_it(repository: Repository) -> None:
    image(repository, add(repository), name="xmm")
    for path in [repository.root, *repository.root.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_names(repository: Repository) -> None:
    digest = image(repository, add(repository), name="xmm")
    newer = image(repository, add(repository, b"newer"), name="xmm:v2")
    assert repository.resolve("xmm") == repository.resolve("xmm:latest") == digest
    assert repository.resolve("xmm:v2") == repository.resolve(f"xmm@{newer}") == repository.resolve(f"@{newer[:12]}")
    repository.tag("xmm", newer)
    assert repository.resolve("xmm") == newer
    assert repository.show("xmm").tags == ("xmm:latest", "xmm:v2")
    assert [found.tags for found in repository.list()] == [("xmm:latest", "xmm:v2"), ()]


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("other", "image other:latest: there is no such image"),
        ("xmm:v9", "there is xmm:latest"),
        ("xmm@012345678901", "there is no such image"),
        ("xmm@01", "is no digest"),
        ("../xmm", "cannot name an image"),
        ("xmm:../../lock", "cannot name an image"),
        ("", "cannot name an image"),
    ],
)
def test_names_that_mean_nothing(repository: Repository, reference: str, says: str) -> None:
    image(repository, add(repository), name="xmm")
    with pytest.raises(ImageError, match=says):
        repository.resolve(reference)


def test_a_manifest_needs_its_layers(repository: Repository) -> None:
    with pytest.raises(ImageError, match="its base layer 000000000000 is not in"):
        repository.put(ImageManifest(layers=(Layer("0" * 64, 1, "base", "squashfs"),)))
    with pytest.raises(ImageError, match="no such image"):
        repository.tag("xmm", "0" * 64)


def test_a_flipped_bit_is_found_at_its_chunk(repository: Repository) -> None:
    layer = add(repository)
    image(repository, layer, name="xmm")
    with repository.layer_path(layer).open("r+b") as data:
        data.seek(3 * CHUNK_SIZE + 77)
        data.write(bytes([DATA[3 * CHUNK_SIZE + 77] ^ 1]))
    [damage] = repository.verify("xmm")
    assert (damage.chunk, damage.offset) == (3, 3 * CHUNK_SIZE)
    assert str(damage) == (
        f"base layer {layer.digest[:12]}, chunk 3 at byte {3 * CHUNK_SIZE}: its bytes are not those of its digest"
    )


@pytest.mark.parametrize("size", [0, CHUNK_SIZE, CHUNK_SIZE + 5, len(DATA) - 1, len(DATA) + 1])
def test_a_layer_of_another_length_is_told_by_its_length(repository: Repository, size: int) -> None:
    layer = add(repository)
    image(repository, layer, name="xmm")
    with repository.layer_path(layer).open("r+b") as data:
        data.truncate(size)
    assert f"holds {size} bytes instead of {len(DATA)}" in str(repository.verify("xmm")[0])


def test_damage_to_what_describes_the_layers(repository: Repository) -> None:
    layer = add(repository)
    digest = image(repository, layer, name="xmm")
    repository.chunks_path(layer).write_bytes(b"x" * 32)
    assert "chunk list" in str(repository.verify("xmm")[0])
    repository.chunks_path(layer).unlink()
    assert "is missing" in str(repository.verify("xmm")[0])
    (repository.root / "images" / f"{digest}.json").write_bytes(b"{}")
    with pytest.raises(ImageError, match=r"its manifest .* is damaged"):
        repository.verify("xmm")


def test_adding_again_mends_what_was_lost(repository: Repository) -> None:
    layer = add(repository)
    image(repository, layer, name="xmm")
    repository.chunks_path(layer).unlink()
    add(repository)
    assert repository.verify("xmm") == ()


def test_a_shared_layer_goes_with_its_last_image(repository: Repository) -> None:
    shared, alone = add(repository), add(repository, b"alone")
    image(repository, shared, alone, name="a")
    image(repository, shared, name="b")
    repository.delete("a")
    assert files(repository) == {shared.digest, f"{shared.digest}.chunks"}
    repository.delete("b")
    assert files(repository) == set()
    assert repository.list() == ()


def test_an_image_stays_while_it_is_needed(repository: Repository) -> None:
    digest = image(repository, add(repository), name="xmm")
    with pytest.raises(ImageError, match="xmm:latest points at it; delete that first"):
        repository.delete(f"@{digest}")
    with pytest.raises(ImageError, match="it is in use"):
        repository.delete("xmm", in_use={digest})
    repository.tag("xmm:v1", digest)
    assert repository.delete("xmm", in_use={digest}) == ()  # only a name
    assert repository.delete("xmm:v1") == (digest,)


def test_prune_takes_what_has_no_name_and_no_use(repository: Repository) -> None:
    named = image(repository, add(repository, b"named"), name="xmm")
    used = image(repository, add(repository, b"used"))
    idle = image(repository, add(repository, b"idle"))
    assert repository.prune(in_use={used}) == (idle,)
    assert {found.digest for found in repository.list()} == {named, used}
    assert repository.verify(f"@{used}") == ()


def test_what_is_being_added_is_never_swept(repository: Repository) -> None:
    old = add(repository, b"old")
    image(repository, old, name="old")
    with repository.adding():
        layer = add(repository, b"new")  # nothing refers to it yet
        assert repository.delete("old") != ()  # does not wait
        assert layer.digest in files(repository)
        digest = image(repository, layer)
        assert repository.prune() == ()  # has no name yet
        repository.tag("new", digest)
    assert repository.prune() == ()
    assert files(repository) == {layer.digest, f"{layer.digest}.chunks"}
    assert repository.verify("new") == ()


def test_many_add_the_same_at_once(repository: Repository) -> None:
    layers: list[Layer] = []
    threads = [threading.Thread(target=lambda: layers.append(add(Repository(repository.root)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(layers) == 4 and len(set(layers)) == 1
    image(repository, layers[0], name="xmm")
    assert repository.verify("xmm") == ()
