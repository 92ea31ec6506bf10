"""The main path as its user goes it, on the local site: submit a job, watch it, get its results and its account."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.guestkit import HYPERVISORS
from tests.e2e.installation import Installation, wait_for
from tests.e2e.webserver import WebServer

SMALL = ("--image", "tiny", "--memory", "128M", "--scratch", "64M")
PHASES = {"wait", "prolog", "queue", "prepare", "boot", "stage_in", "execute", "stage_out", "shut_down", "epilog"}


@pytest.fixture(scope="module", params=HYPERVISORS)
def hypervisor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_inputs_of_all_kinds_go_in_and_outputs_come_out(lab: Installation) -> None:
    work = lab.work
    blob = os.urandom(3_000_017)
    (work / "blob").write_bytes(blob)
    (work / "tool.sh").write_text("#!/bin/sh\necho tool with $# words\n")
    (work / "tool.sh").chmod(0o755)
    (work / "tree/below/deeper").mkdir(parents=True)
    (work / "tree/top").write_text("top")
    (work / "tree/below/deeper/ä name with spaces").write_text("odd")
    with WebServer() as web:
        web.files["/data/far.bin"] = far = os.urandom(70_000)
        program = (
            "./tool.sh one two; sha256sum blob far.bin; cat tree/top 'tree/below/deeper/ä name with spaces' second;"
            " mkdir -p products/sub; cp blob products/blob; cp tool.sh products/sub/tool; echo no > products.txt;"
            " touch products/empty; id -u; env | grep ^MINE"
        )
        ran = lab.ghv(
            "run", *SMALL, "--in", "blob", "--in", "tool.sh", "--in", "tree", "--in", "tree/top=second",
            "--in", f"{web.url}/data/far.bin#sha256={hashlib.sha256(far).hexdigest()}",
            "--out", "products/*", "--out", "products/sub/*", "--to", "results", "--env", "MINE=a b",
            "--", "sh", "-c", program,
        )  # fmt: skip
    expected = (
        f"tool with 2 words\n{hashlib.sha256(blob).hexdigest()}  blob\n{hashlib.sha256(far).hexdigest()}  far.bin\n"
        "topoddtop1000\nMINE=a b\n"
    )
    assert ran.out.decode() == expected
    results = work / "results"
    found = sorted(str(path.relative_to(results)) for path in results.rglob("*") if path.is_file())
    assert found == ["products/blob", "products/empty", "products/sub/tool"]
    assert (results / "products/blob").read_bytes() == blob
    assert stat.S_IMODE((results / "products/sub/tool").stat().st_mode) & 0o100
    lab.assert_clean()


def test_output_is_streamed_byte_for_byte_while_the_program_runs(lab: Installation) -> None:
    """The program waits, and nobody lets it go on before its first bytes have been seen here."""
    raw = "printf 'to stderr\\n' >&2; printf '\\000\\377\\r\\n'; sleep 3600"
    ghv = lab.start("run", "-q", *SMALL, "--walltime", "1h", "--", "sh", "-c", raw)
    assert ghv.stdout is not None
    assert ghv.stderr is not None
    assert ghv.stdout.read(4) == b"\0\xff\r\n"
    job = lab.ghv("list", "--state", "running", "-o", "json").json[0]["id"]
    assert lab.ghv("logs", job).out == b"\0\xff\r\n"
    lab.ghv("cancel", job)
    rest, err = ghv.communicate(timeout=240)
    assert (ghv.returncode, rest) == (130, b"")
    assert err.startswith(b"to stderr\n") or b"\nto stderr\n" in err
    assert b"cancelled" in err


def test_a_job_file_detached_followed_and_forgotten(lab: Installation, hypervisor: str) -> None:
    (lab.work / "job.yaml").write_text(
        "kind: Job\nname: from-a-file\nimage: tiny\n"
        "command: [sh, -c, 'for i in 1 2 3; do echo $i; sleep 1; done; echo kept > result; exit 4']\n"
        "outputs: [result]\nenvironment: {A: b}\nresources: {memory: 128M, scratch: 64M, walltime: 5m}\n"
    )
    job = lab.detach("-f", "job.yaml", "--to", "filed")
    followed = lab.start("logs", "-f", job)
    watched = lab.start("events", "-w", "-o", "json", job)
    assert lab.ghv("wait", job, check=False).code == 4
    out, err = followed.communicate(timeout=240)
    assert out == b"1\n2\n3\n", err
    assert (lab.work / "filed/result").read_text() == "kept\n"

    found = lab.job(job)
    assert (found["job"]["name"], found["job"]["state"], found["job"]["exit_code"]) == ("from-a-file", "done", 4)
    assert found["outputs"] == [str(lab.work / "filed/result")]
    assert job in {row["id"] for row in lab.ghv("list", "-o", "json").json}
    for verb in ("show", "list", "explain", "events"):
        told = lab.ghv(verb, *([job] if verb != "list" else [])).out.decode()
        assert job in told, verb
    wait_for("its last event", lambda: "collected>cleaned" in lab.story(job))
    past = lab.events(job)
    story = lab.story(job)
    for step in ("pending", "planned>submitting", "ended>collected", "epilog>done"):
        assert step in story, story
    # What it was before its end is a matter of when the service looks: a stalled one sees the end first.
    assert {"submitting>ended", "queued>ended", "running>ended"} & {*story}, story
    assert watched.stdout is not None
    live = [json.loads(watched.stdout.readline()) for _ in past]
    watched.terminate()
    watched.communicate(timeout=60)
    assert [event["sequence"] for event in live] == [event["sequence"] for event in past]

    ledger = found["ledger"]
    assert {row["phase"] for row in ledger["rows"]} <= {*PHASES, "middleware"}
    assert PHASES - {"queue", "wait"} <= {row["phase"] for row in ledger["rows"]}
    assert sum(row["seconds"] for row in ledger["rows"]) == pytest.approx(ledger["wall"], abs=0.01)
    assert all(row["seconds"] >= 0 for row in ledger["rows"])
    assert ledger["wall"] == pytest.approx(found["job"]["ended"] - found["job"]["created"], abs=0.01)
    # A little less than the program's 3 s is no lie: the guest sleeps by its own clock.
    assert next(row["seconds"] for row in ledger["rows"] if row["phase"] == "execute") >= 2.5
    assert {"pilot", "hypervisor", "relay", "controller"} <= ledger["cpu"].keys()
    assert ledger["hypervisor"].endswith(f", {hypervisor}")
    assert f"hypervisor: {ledger['hypervisor']}: the job asks for {hypervisor}" in lab.ghv("explain", job).out.decode()

    lab.ghv("delete", job)
    wait_for("its records to be gone", lambda: lab.ghv("show", job, check=False).code == 66)
    assert (lab.work / "filed/result").exists()


def test_json_at_the_end_leaves_stdout_to_it(lab: Installation) -> None:
    ran = lab.ghv("run", *SMALL, "-o", "json", "--", "sh", "-c", "echo to be found on stderr; exit 3", check=False)
    assert ran.code == 3
    record = ran.json
    assert (record["job"]["state"], record["job"]["exit_code"]) == ("done", 3)
    assert "to be found on stderr\n" in ran.err


def test_jobs_side_by_side_under_the_slots_of_the_site(lab: Installation) -> None:
    """More jobs than the site takes at once: all of them end, each with its own results."""
    count = (os.cpu_count() or 1) + 3
    program = "echo $0 | tee result"
    jobs = [
        lab.detach(*SMALL, "--out", "result", "--to", f"many/{n}", "--", "sh", "-c", program, str(n))
        for n in range(count)
    ]
    lab.ghv("wait", *jobs, timeout=600)
    for number, job in enumerate(jobs):
        assert lab.ghv("logs", job).out.decode() == f"{number}\n"
        assert (lab.work / f"many/{number}/result").read_text() == f"{number}\n"
    lab.assert_clean()


def test_the_guest_sees_no_network_and_none_of_the_host(lab: Installation) -> None:
    look = "ls /sys/class/net; cat /proc/net/tcp /proc/net/udp | grep -vc sl; ls /dev/vd?; id -un"
    out = lab.ghv("run", *SMALL, "--", "sh", "-c", look).out.decode().split()
    assert out[0] == "lo"
    assert out[1] == "0"
    assert out[-1] == "job"


def test_a_programs_options_are_its_own(lab: Installation) -> None:
    """And not those of what makes it the image's user, in an image whose programs run as `job`."""
    assert lab.ghv("run", *SMALL, "--", "id", "-u", "-n").out == b"job\n"
    assert lab.ghv("run", *SMALL, "ls", "-l", "-d", "/").out.startswith(b"drwx")


def test_what_is_wrong_with_a_name_is_said_at_once_and_with_its_code(lab: Installation) -> None:
    (lab.work / "no-disk").write_text("not a disk")

    def code(*words: str) -> int:
        return lab.ghv(*words, check=False).code

    for verb in ("show", "verify", "delete"):
        assert code("image", verb, "none") == 66
    assert code("image", "import", "no-disk", "--tag", "d", "--format", "qcow2") == 65
    assert code("run", *SMALL, "--site", "nowhere", "true") == 66
    assert code("site", "add", "../there", "--kind", "slurm", "--host", "h") == 65
    strange = lab.ghv("site", "add", "there", "--kind", "slurm", "--host", "h", "--option", "colour=red", check=False)
    assert strange.code == 65
    assert "colour: a slurm site has no such option" in strange.err and "partition" in strange.err
    assert [site["name"] for site in lab.ghv("site", "list", "-o", "json").json] == ["local"]


def test_the_service_lives_on_its_own_and_its_jobs_outlive_it(lab: Installation) -> None:
    job = lab.detach(*SMALL, "--", "sh", "-c", "for i in 1 2 3 4 5; do echo $i; sleep 5; done")
    lab.wait_phase(job, "execute")
    hypervisor = lab.hypervisor(job)
    lab.ghv("service", "stop")
    assert lab.ghv("service", "status", check=False).code == 69
    assert Path(f"/proc/{hypervisor}").exists()
    followed = lab.ghv("logs", "-f", job)  # which starts it again
    assert followed.out == b"1\n2\n3\n4\n5\n"
    assert lab.wait(job)["job"]["state"] == "done"


@pytest.mark.parametrize("hypervisor", ["tcg"], indirect=True)
def test_a_qcow2_and_a_raw_disk_are_imported_and_run(lab: Installation, tmp_path: Path) -> None:
    """A disk with a system of its own: its root is writable, and what is written there goes with the machine."""
    raw, qcow2 = tmp_path / "own.raw", tmp_path / "own.qcow2"
    make_disk(raw, tmp_path)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2], check=True)
    for disk in (raw, qcow2):
        lab.ghv("image", "import", str(disk), "--tag", f"own:{disk.suffix[1:]}")
        for _ in range(2):
            program = "cat /etc/whose word; [ ! -e /etc/mark ] && touch /etc/mark && echo fresh; cp word result"
            (lab.work / "word").write_text(f"{disk.suffix}\n")
            words = ("--in", "word", "--out", "result", "--to", "own", "--", "/bin/sh", "-c", program)
            ran = lab.ghv("run", "--image", f"own:{disk.suffix[1:]}", "--memory", "256M", "--scratch", "64M", *words)
            assert ran.out.decode() == f"mine\n{disk.suffix}\nfresh\n"
            assert (lab.work / "own/result").read_text() == f"{disk.suffix}\n"
    images: list[dict[str, Any]] = lab.ghv("image", "list", "-o", "json").json
    assert {"own:raw", "own:qcow2"} <= {tag for image in images for tag in image["tags"]}
    lab.assert_clean()


def make_disk(disk: Path, work: Path) -> None:
    """A whole disk with one ext4 partition that holds a small system."""
    root = work / "root"
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "run", "scratch", "root", "sbin", "mnt"):
        (root / name).mkdir(parents=True)
    subprocess.run(["cp", "/bin/busybox", root / "bin/busybox"], check=True)
    for name in ("sh", "cat", "cp", "touch", "[", "echo", "mount", "ls"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/whose").write_text("mine\n")
    (root / "etc/os-release").write_text("ID=own\n")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    size, start = 48 << 20, 1 << 20
    partition = work / "partition"
    with partition.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", root, partition], check=True)
    # A partition table by hand: one Linux partition from the first MiB on.
    entry = (
        bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + (start // 512).to_bytes(4, "little") + (size // 512).to_bytes(4, "little")
    )
    with disk.open("wb") as file:
        file.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")
        file.seek(start)
        file.write(partition.read_bytes())
    partition.unlink()
