"""Disks that are full: the node's, the user's, the service's own. Small tmpfs mounts stand for them.

What was computed is never lost to it: once there is room, the job goes on from where it was.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.conftest import fresh
from tests.e2e.installation import Installation, wait_for

SMALL = ("--image", "tiny", "--memory", "128M", "--scratch", "48M", "--retry", "0")


@contextlib.contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[None]:
    """A small disk at `folder`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def enlarge(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Take all the room that is left; the file to remove when there is to be some again."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        piece = bytes(1 << 20)
        while True:
            try:
                file.write(piece)
            except OSError as error:
                if error.errno != errno.ENOSPC or len(piece) == 1:
                    raise
                piece = piece[: len(piece) // 2]
    return filler


def test_a_full_node(template: Path) -> None:
    """First too full for the bundle, which keeps the site away; then too full for the image, which fails the job."""
    scratch = Path(tempfile.mkdtemp(prefix="ghv-node-", dir="/tmp"))
    with tmpfs(scratch, "600m"), fresh(scratch, template) as installation:
        filler = fill(scratch)
        job = installation.detach(*SMALL, "--", "echo", "at last")
        told = wait_for(
            "a word about the site", lambda: text if "space" in (text := explain(installation, job)) else None
        )
        assert str(scratch) in told
        filler.unlink()
        installation.ghv("recover", job)
        assert installation.wait(job)["job"]["state"] == "done"
        assert installation.ghv("logs", job).out == b"at last\n"

        shutil.rmtree(next(scratch.glob("ghv-*")) / "cache")
        filler = fill(scratch)
        job = installation.detach(*SMALL, "--", "true")
        found = installation.wait(job)
        assert (found["job"]["state"], found["job"]["reason"]) == ("failed", "node-disk"), found
        assert "free space" in explain(installation, job)
        assert installation.ghv("wait", job, check=False).code == 75
        filler.unlink()
        installation.ghv("run", *SMALL, "--", "true")
        installation.assert_clean()
    scratch.rmdir()


def test_results_wait_at_the_site_while_their_folder_is_full(lab: Installation) -> None:
    results = lab.work / "small"
    with tmpfs(results, "1m"):
        make = "dd if=/dev/urandom of=big bs=1M count=3 2>/dev/null; sha256sum big"
        job = lab.detach(*SMALL, "--out", "big", "--to", "small", "--", "sh", "-c", make)
        told = wait_for("a word about the disk", lambda: text if "No space" in (text := explain(lab, job)) else None)
        assert str(results) in told
        assert "ghv recover" in told
        assert lab.job(job)["job"]["state"] == "epilog"
        with lab.silent_site():  # so that it does not come home by itself before it is asked for
            enlarge(results, "8m")
            lab.ghv("recover", job)
        assert lab.wait(job)["job"]["state"] == "done"
        digest = lab.ghv("logs", job).out.split()[0].decode()
        summed = subprocess.run(["sha256sum", str(results / "big")], capture_output=True, text=True, check=True)
        assert summed.stdout.split()[0] == digest
        assert [path.name for path in results.iterdir()] == ["big"]
    lab.assert_clean()


def test_a_full_disk_under_the_services_data_stops_nothing_for_good(template: Path, node_scratch: Path) -> None:
    """The job runs at its site; nothing new is decided or taken until there is room, and then all of it comes."""
    with fresh(node_scratch, template) as installation:
        data = installation.data
        size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file() and not path.is_symlink())
        kept = data.with_name("kept")
        data.rename(kept)
        with tmpfs(data, f"{(size >> 20) + 40}m"):
            shutil.copytree(kept, data, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(kept)
            program = "for i in 1 2 3 4 5 6; do echo $i; done; echo all > made"
            with installation.busy_site():
                job = installation.detach(*SMALL, "--out", "made", "--", "sh", "-c", program)
                installation.wait_state(job, "queued")
                filler = fill(data)
            entry = installation.entry(job)
            assert entry is not None
            wait_for("the end of the run", (entry / "exit.json").exists)
            refused = installation.ghv("run", "--detach", *SMALL, "--", "true", check=False)
            assert refused.code == 69, refused
            assert "make room" in refused.err
            told = wait_for("a word about it", lambda: t if "make room" in (t := explain(installation, job)) else None)
            assert str(data) in told
            with installation.silent_site():  # so that it does not come home by itself before it is asked for
                filler.unlink()
                installation.ghv("recover", job)
            found = installation.wait(job)
            assert (found["job"]["state"], found["job"]["exit_code"]) == ("done", 0), found
            assert installation.ghv("logs", job).out == b"1\n2\n3\n4\n5\n6\n"
            assert (installation.work / "made").read_text() == "all\n"
            installation.assert_clean()
            installation.stop()


def explain(installation: Installation, job: str) -> str:
    return installation.ghv("explain", job, check=False).out.decode()
