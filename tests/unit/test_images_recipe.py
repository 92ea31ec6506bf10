"""Image recipes: what is refused, and the pieces from which an image is put together."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from gridhypervisor.images import boot, importing, recipe
from gridhypervisor.images.apt import Apt
from gridhypervisor.images.build import harden
from gridhypervisor.images.errors import ImageError
from gridhypervisor.images.repository import Repository
from gridhypervisor.images.tree import EPOCH, Tree
from gridhypervisor.model.yamlspec import SpecError

EXAMPLES = Path(__file__).parents[2] / "examples" / "images"


@pytest.mark.parametrize("name", ["tiny", "xmm"])
def test_the_examples_are_recipes(name: str) -> None:
    assert recipe.load(EXAMPLES / name / "image.yaml").name == name


def test_problems_name_line_field_and_what_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "image.yaml"
    file.write_text("""\
kind: Image
name: XMM
user: joe
layers:
  - mount: /etc
    package: [x]
  - mount: /opt/a
""")
    with pytest.raises(SpecError) as caught:
        recipe.load(file)
    assert str(caught.value).splitlines() == [
        f'{file}:2: name: "XMM" is not an image\'s name; write e.g. xmm or debian-12',
        f'{file}:3: user: "joe" is not allowed; expected one of job, root',
        f'{file}:5: layers[0].mount: "/etc" is not a folder below /opt, /srv or /usr/local; '
        "write e.g. /opt or /opt/xmm",
        f'{file}:6: layers[0].package: unknown field; did you mean "packages"? allowed here: mount, packages, files',
    ]


def test_what_types_cannot_say(tmp_path: Path) -> None:
    file = tmp_path / "image.yaml"
    file.write_text("""\
kind: Image
name: x
base: busybox
packages: [bash]
files: {../etc/motd: image.yaml, etc/motd: motd}
layers:
  - mount: /opt/a
""")
    with pytest.raises(SpecError) as caught:
        recipe.load(file)
    assert [problem.field for problem in caught.value.problems] == [
        "packages", "files.../etc/motd", "files.etc/motd", "layers[0]",
    ]  # fmt: skip
    file.write_text("kind: Image\nname: x\nfiles: {etc/motd: motd, etc/issue: image.yaml}\n")
    with pytest.raises(SpecError, match=f"image.yaml:3: files.etc/motd: there is no file {tmp_path}/motd") as missing:
        recipe.load(file)
    assert missing.value.missing


def test_a_package_that_apt_does_not_know_is_told_with_how_to_find_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt = tmp_path / "apt-get"
    apt.write_text('#!/bin/sh\ncase "$*" in *update*) exit 0 ;; esac\n'
                   'echo "E: Unable to locate package libcfitso" >&2\nexit 100\n')  # fmt: skip
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ImageError, match="Unable to locate package libcfitso") as caught:
        Apt(tmp_path / "cache").resolve(["libcfitso"])
    assert "`apt-cache search libcfitso`" in caught.value.hint


def archive(path: Path, *members: tuple[str, bytes | str | None, int]) -> Path:
    """A tar of files (bytes), links (text) and folders (None), with their modes."""
    with tarfile.open(path, "w") as tar:
        for name, content, mode in members:
            info = tarfile.TarInfo(name)
            info.mode, info.mtime = mode, EPOCH + 5
            if content is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return path


def written(tree: Tree) -> tuple[bytes, dict[str, tarfile.TarInfo]]:
    out = io.BytesIO()
    tree.write(out)
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        return out.getvalue(), {member.name: member for member in tar}


def test_a_trees_bytes_do_not_depend_on_order_or_time(tmp_path: Path) -> None:
    one = archive(tmp_path / "1", ("./a", None, 0o755), ("./a/x", b"x", 0o644))
    two = archive(tmp_path / "2", ("./b", b"b", 0o600))

    def made(*order: Path) -> bytes:
        tree = Tree()
        for path in order:
            tree.add_tar(path)
        data, members = written(tree)
        assert max(member.mtime for member in members.values()) <= EPOCH
        return data

    assert made(one, two) == made(two, one)


def test_files_go_where_linked_folders_lead(tmp_path: Path) -> None:
    tree = Tree()
    tree.add_link("bin", "usr/bin")
    tree.add_tar(archive(tmp_path / "deb", ("./bin", None, 0o755), ("./bin/ls", b"ls", 0o755)))
    _, members = written(tree)
    assert members["./bin"].issym() and members["./usr/bin/ls"].isreg()
    assert tree.read("usr/bin/ls") == b"ls"


def test_hardening_leaves_no_privilege_and_no_password(tmp_path: Path) -> None:
    tree = Tree()
    tree.add_tar(archive(
        tmp_path / "base",
        ("./usr/bin/su", b"su", 0o4755),
        ("./etc/passwd", b"root::0:0:root:/root:/bin/bash\nwww:!:33:33::/:/bin/sh\n", 0o644),
        ("./etc/shadow", b"root:$6$hash:1::::::\n", 0o644),
        ("./etc/shadow-", b"root:$6$hash:1::::::\n", 0o644),
        ("./dev/console", b"", 0o600),
        ("./var/cache/debconf/x", b"", 0o600),
        ("./usr/share/doc/y/copyright", b"free", 0o644),
        ("./usr/share/doc/y/README", b"long", 0o644),
    ))  # fmt: skip
    harden(tree)
    _, members = written(tree)
    assert not [name for name, member in members.items() if member.mode & 0o6000]
    shadow = tree.read("etc/shadow").decode().splitlines()
    assert [line.split(":")[:2] for line in shadow] == [["root", "*"], ["www", "*"], ["job", "*"]]
    assert [line.split(":")[1] for line in tree.read("etc/passwd").decode().splitlines()] == ["x", "x", "x"]
    assert members["./etc/shadow"].mode == 0o600
    gone = {"./etc/shadow-", "./dev/console", "./var/cache/debconf/x", "./usr/share/doc/y/README"}
    assert not gone & members.keys() and "./usr/share/doc/y/copyright" in members


def test_cpio_is_what_the_kernel_reads(tmp_path: Path) -> None:
    entries = [("bin", stat.S_IFDIR | 0o755, b""), ("bin/x", stat.S_IFREG | 0o755, b"data"),
               ("bin/y", stat.S_IFLNK | 0o777, b"x")]  # fmt: skip
    data = boot.cpio(entries)
    assert len(data) % 512 == 0  # so that another archive can follow
    subprocess.run(["cpio", "-id", "--quiet"], input=data, cwd=tmp_path, check=True)
    assert (tmp_path / "bin/y").read_bytes() == b"data"
    assert os.access(tmp_path / "bin/x", os.X_OK)


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    for name, needs in {"virtio-rng": "virtio", "virtio": "virtio_ring", "virtio_ring": "", "odd": "gone"}.items():
        (tmp_path / f"{name}.ko").write_bytes(b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0name=x\0")
    order = boot.load_order(tmp_path.glob("*.ko"), ["virtio_rng", "virtio"])
    assert [path.stem for path in order] == ["virtio_ring", "virtio", "virtio-rng"]
    with pytest.raises(ImageError, match="no module gone, which odd needs"):
        boot.load_order(tmp_path.glob("*.ko"), ["odd"])


def test_a_kernel_that_is_none() -> None:
    with pytest.raises(ImageError, match="no bzImage"):
        boot.uncompressed_kernel(bytes(4096))


def qemu_img(*argv: str | Path) -> None:
    subprocess.run(["qemu-img", *argv], check=True, stdout=subprocess.DEVNULL)


def with_backing(folder: Path) -> Path:
    qemu_img("create", "-q", "-f", "qcow2", folder / "base.qcow2", "1M")
    qemu_img("create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", folder / "top.qcow2")
    return folder / "top.qcow2"


def with_data_file(folder: Path) -> Path:
    data = folder / "elsewhere.raw"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data}", folder / "top.qcow2", "1M")
    return folder / "top.qcow2"


def damaged(folder: Path) -> Path:
    path = folder / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    with path.open("r+b") as data:
        data.truncate(70_000)
        data.seek(48)  # where the header says its reference counts are
        data.write((1 << 40).to_bytes(8, "big"))
    return path


def odd(folder: Path) -> Path:
    (folder / "disk.raw").write_bytes(b"x" * 513)
    return folder / "disk.raw"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (with_backing, r"it needs another file, base.qcow2; make one file of them: qemu-img convert"),
        (with_data_file, r"it needs another file, .*elsewhere.raw"),
        (damaged, r"qemu-img exited with"),
        (odd, r"its size, 513 bytes, is no disk's"),
        (lambda folder: folder / "none.raw", "No such file"),
    ],
)
def test_disks_that_cannot_be_imported(tmp_path: Path, make: Callable[[Path], Path], says: str) -> None:
    repository = Repository(tmp_path / "images")
    with pytest.raises(ImageError, match=says):
        importing.import_disk(make(tmp_path), "x", repository, tmp_path / "cache", progress=lambda text: None)
    assert repository.list() == ()


def test_what_looks_like_qcow2_may_be_said_to_be_raw(tmp_path: Path) -> None:
    """A guest can write that header on its raw disk: the user's word counts, not the disk's."""
    disk = with_backing(tmp_path)
    with disk.open("ab") as data:
        data.truncate(256 << 10)
    assert importing.checked_format("import", disk, "raw") == "raw"
    with pytest.raises(ImageError, match="it needs another file"):
        importing.checked_format("import", disk, "")
