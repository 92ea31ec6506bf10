"""Where a store cannot be, or cannot go on: it says why and what to do, and loses nothing that it had promised."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from gridhypervisor.model.commit import StoreError
from gridhypervisor.store import open_store, place
from tests.unit.store_records import new_job

ROOT = Path(__file__).parents[2]

MOUNTS = """\
22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw
30 22 0:25 / /home rw,nosuid shared:1 - nfs4 server:/export/home rw,vers=4.2
31 30 0:26 / /home/ann/My\\040Data rw shared:2 - fuse.sshfs ann@hpc:/data rw
32 30 254:2 / /home/local rw - xfs /dev/vdb1 rw
33 22 0:27 / /scratch rw - autofs systemd-1 rw
34 33 0:28 / /scratch rw - lustre mds@tcp:/scratch rw
"""


@pytest.mark.parametrize(
    ("folder", "found"),
    [
        ("/var/lib/ghv", ("/", "ext4")),
        ("/home/ann", ("/home", "nfs4")),
        ("/home/ann/My Data/ghv", ("/home/ann/My Data", "fuse.sshfs")),
        ("/home/local/ann", ("/home/local", "xfs")),
        ("/home/localized", ("/home", "nfs4")),
        ("/scratch/ann", ("/scratch", "lustre")),
    ],
)
def test_knows_which_file_system_holds_a_folder(folder: str, found: tuple[str, str]) -> None:
    assert place.file_system(Path(folder), MOUNTS) == found


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "fuse.sshfs", "lustre", "gpfs", "beegfs"])
def test_a_network_home_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 254:1 / / rw - ext4 /dev/vda1 rw\n30 22 0:25 / {tmp_path}/home rw - {kind} x rw\n")
    monkeypatch.setattr(place, "MOUNTINFO", mounts)
    with pytest.raises(StoreError) as refused:
        open_store(tmp_path / "home" / "ghv" / "store.db")
    assert f"{tmp_path}/home/ghv is on a network file system ({kind}, mounted on {tmp_path}/home)" in str(refused.value)
    assert "GHV_DATA" in refused.value.hint
    assert not (tmp_path / "home").exists()


def test_a_second_service_is_told_which_process_has_the_store(tmp_path: Path) -> None:
    first = open_store(tmp_path / "store.db")
    second = run(
        f"""
        from gridhypervisor.store import open_store
        from gridhypervisor.model.commit import StoreError
        try:
            open_store(Path({str(tmp_path)!r}) / "store.db")
        except StoreError as error:
            print(error)
        """
    )
    assert f"the process with pid {os.getpid()} has it open" in second
    assert "ghv service stop" in second
    first.close()
    open_store(tmp_path / "store.db").close()


def test_a_store_that_should_be_there_and_is_not(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is none"):
        open_store(tmp_path / "store.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database at all" * 1000)
    with pytest.raises(StoreError, match=r"open the store in .*store\.db: file is not a database; the file is damaged"):
        open_store(path)
    path.unlink()
    open_store(path).close()  # the lock was given back


def test_a_damaged_page_is_told_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    store = open_store(path)
    for _ in range(20):
        new_job(store)
    store.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(StoreError) as damaged:
        open_store(path).alive()
    assert "malformed" in damaged.value.why
    assert "put a copy from before in its place" in damaged.value.hint


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="see that you may write"):
        open_store(tmp_path / "file" / "store.db")


def test_a_full_disk_loses_nothing_and_is_survived(tmp_path: Path) -> None:
    """On a real small file system of the test's own, in a mount namespace that ends with it."""
    said = run(
        f"""
        folder = Path({str(tmp_path)!r})
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "ghv-test", folder], check=True)
        from gridhypervisor.model.commit import StoreError
        from gridhypervisor.store import open_store
        from tests.unit.store_records import new_job

        def fill(path):
            with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1024))

        store = open_store(folder / "store.db")
        new_job(store)
        ballast = folder / "ballast"
        fill(ballast)
        acknowledged = 1
        try:
            while True:
                new_job(store)
                acknowledged += 1
        except StoreError as error:
            print(error)
        assert [r.job.id for r in store.jobs(limit=1)] == [f"j{{acknowledged}}"]
        ballast.unlink()
        assert new_job(store).job.id == f"j{{acknowledged + 1}}"
        store.close()
        fill(ballast)
        try:
            open_store(folder / "store.db")
        except StoreError as error:
            print(error)
        ballast.unlink()
        assert len(open_store(folder / "store.db").alive()) == acknowledged + 1
        print("survived")
        """,
        *(["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--user", "--map-root-user"]),
    )
    assert f"create a job in {tmp_path}/store.db: database or disk is full; nothing was changed; make room" in said
    assert "open the store in" in said, "a start on a full disk is told in the same words"
    assert said.count("make room on the disk of") == 2
    assert said.endswith("survived\n")


def test_nothing_acknowledged_is_lost_when_the_service_is_killed(tmp_path: Path) -> None:
    script = f"""
        import dataclasses
        from gridhypervisor.model.records import JobState
        from gridhypervisor.store import open_store
        from tests.unit.store_records import moved, new_job
        store = open_store(Path({str(tmp_path)!r}) / "store.db")
        jobs = [r.job for r in store.alive()] or [new_job(store).job for _ in range(50)]
        print("ready", flush=True)
        while True:
            assert all(store.commit([moved(job, JobState.PENDING) for job in jobs]))
            jobs = [dataclasses.replace(job, version=job.version + 1) for job in jobs]
            print(jobs[0].version, flush=True)
        """
    for kill_after in (3, 7, 20):
        process = start(script)
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(kill_after)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
        acknowledged = int(said[-1])
        process.wait()
        process.stdout.close()
        store = open_store(tmp_path / "store.db")
        versions = {r.job.version for r in store.alive()}
        stories = len(store.events(limit=1 << 40))
        store.close()
        assert len(versions) == 1, "a transaction is there whole or not at all"
        [version] = versions
        assert acknowledged <= version <= acknowledged + 1
        assert stories == 50 * version


def start(script: str, *wrapper: str) -> subprocess.Popen[str]:
    text = "import contextlib, subprocess\nfrom pathlib import Path\n" + textwrap.dedent(script)
    return subprocess.Popen([*wrapper, sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def run(script: str, *wrapper: str) -> str:
    process = start(script, *wrapper)
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return said
