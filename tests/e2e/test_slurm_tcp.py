"""A real Slurm whose nodes do not see the account's workdir: a courier carries the entry over TCP."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.model import wire
from gridhypervisor.planning.probes import REACH
from tests.e2e.cluster import PATIENT, joined
from tests.e2e.installation import _parent, _processes, wait_for
from tests.e2e.slurmsite import TINY, SlurmLab, _inside, reasons
from testsites import SlurmSite
from testsites.site import UID

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def shared_lab(template: Path, node_scratch: Path) -> Iterator[SlurmLab]:
    with (
        SlurmSite("slurm-tcp", nodes=2, cpus=2, private=True, wired=True) as site,
        joined(SlurmLab, site, node_scratch, template) as made,
    ):
        yield made


@pytest.fixture
def tcp(shared_lab: SlurmLab) -> Iterator[SlurmLab]:
    yield shared_lab
    shared_lab.assert_clean()


def on_node(tcp: SlurmLab, job: str) -> Path:
    """The job's entry on its node."""
    entry = tcp.entry(job)
    assert entry is not None
    return tcp.site.root / "tmp" / f"ghv-{UID}" / "run" / f"{entry.name}.entry" / wire.SPOOL / entry.name


def courier(tcp: SlurmLab, job: str) -> int:
    """Its process: the pilot's parent."""
    return _parent(tcp.pilot(job))


def relays(tcp: SlurmLab) -> list[int]:
    return [pid for pid, words in _processes() if " relay --workdir " in words and _inside(pid, tcp.site.root)]


def test_a_job_with_inputs_outputs_and_streams_runs_whole(tcp: SlurmLab) -> None:
    (tcp.work / "deep").mkdir()
    data = bytes(range(256)) * 10000
    (tcp.work / "deep/input").write_bytes(data)
    program = (
        "mkdir -p out/deep; cp input out/deep/copy; ln -s deep/copy out/link; echo x > made; chmod 700 made; "
        "echo said; echo aside >&2; exit 7"
    )
    words = ("--in", "deep/input", "--out", "made", "--out", "out/*", "--to", "home", "--", "sh", "-c", program)
    done = tcp.ghv("run", *TINY, *words, check=False)
    assert (done.code, done.out) == (7, b"said\n"), done
    rows = {check["claim"]: check["evidence"] for check in tcp.ghv("site", "check", "slurm", "-o", "json").json}
    assert rows["its relay listens"] == f"{tcp.site.name}:7750-7765"
    assert re.fullmatch(rf"\S+ at {tcp.site.name} port 77\d\d, [\d.]+ ms there and back", rows[REACH]), rows
    assert "aside\n" in done.err
    home = tcp.work / "home"
    assert (home / "out/deep/copy").read_bytes() == data and (home / "out/link").readlink() == Path("deep/copy")
    assert (home / "made").stat().st_mode & 0o777 == 0o700
    for node in tcp.site.nodes:
        assert not list((tcp.site.root / "var/homes" / node).iterdir()), "the nodes had no way but TCP"


def test_a_cancel_reaches_a_guest_whose_relay_was_killed_and_came_back(tcp: SlurmLab) -> None:
    # `replace`: so the service's answers reach its pilot too, or no guest would have begun.
    words = ("--on-silence", "replace", "--out", "result", "--to", "cancelled")
    job = tcp.detach(*TINY, *words, "--", "sh", "-c", PATIENT)
    tcp.wait_word(job)
    carrier = courier(tcp, job)
    secret = b"PRIVATE KEY"
    for part in ("cmdline", "environ"):
        assert secret not in Path(f"/proc/{carrier}/{part}").read_bytes()
    script = ("scontrol", "write", "batch_script", tcp.batch_id(job), "-")
    assert "PRIVATE KEY" in tcp.site.admin(*script, as_user=True)
    assert "PRIVATE KEY" not in tcp.site._run(UID + 1, script, check=False), "another user's"
    scripts = [path for node in tcp.site.nodes for path in (tcp.site.root / "var/spool" / node).rglob("slurm_script")]
    assert scripts and all(path.stat().st_mode & 0o077 == 0 for path in scripts)
    [relay] = relays(tcp)
    os.kill(relay, signal.SIGKILL)
    tcp.ghv("cancel", job)
    found = tcp.wait(job)
    assert (found["job"]["state"], len(found["attempts"])) == ("cancelled", 1), found
    assert (tcp.work / "cancelled/result").read_text() == "saved\n"
    assert tcp.ghv("logs", job).out == b"started\nstopped\n"


def test_what_ends_while_nobody_listens_waits_on_its_node(tcp: SlurmLab) -> None:
    job = tcp.detach(*TINY, "--retry", "0", "--out", "result", "--to", "late", "--", "sh", "-c", PATIENT)
    tcp.wait_word(job)
    entry, there, carrier = tcp.entry(job), on_node(tcp, job), courier(tcp, job)
    assert entry is not None
    tcp.kill_service()
    wait_for("the relay's end", lambda: not relays(tcp))
    os.kill(carrier, signal.SIGUSR1)  # which a batch system may send; none follows that would kill
    wait_for("the end on the node", (there / wire.EXIT).exists)
    assert not (entry / wire.EXIT).exists() and not tcp.guests(job)
    found = tcp.wait(job)  # which starts the service
    assert (found["job"]["state"], reasons(found)) == ("failed", ["evicted"]), found
    assert tcp.ghv("logs", job).out == b"started\nstopped\n"
    assert (tcp.work / "late/result").read_text() == "saved\n"


def test_a_killed_pilot_is_told_of_and_a_killed_courier_takes_the_guest_along(tcp: SlurmLab) -> None:
    jobs = [tcp.detach(*TINY, "--retry", "0", "--", "sh", "-c", PATIENT) for _ in range(2)]
    for job in jobs:
        tcp.wait_word(job)
    os.kill(tcp.pilot(jobs[0]), signal.SIGKILL)
    os.kill(courier(tcp, jobs[1]), signal.SIGKILL)
    for job, reason in zip(jobs, ("pilot", "lost"), strict=True):
        found = tcp.wait(job)
        assert (found["job"]["state"], reasons(found)) == ("failed", [reason]), found
        assert not tcp.guests(job)
    # What a killed courier leaves on its node, the next one sweeps.
    assert tcp.ghv("run", *TINY, "--", "echo", "next").out == b"next\n"


def test_a_node_that_does_not_reach_the_relay_is_told_of_with_what_to_do(tcp: SlurmLab) -> None:
    """The front-end's own loopback is not the nodes'. They have no way to say so but their batch job's exit code."""
    tcp.ghv("site", "edit", "slurm", "--option", "listen=127.0.0.1:7750")
    found = tcp.ghv("site", "check", "slurm", "-o", "json", check=False)
    [row] = [check for check in found.json if check["claim"] == REACH]
    assert (found.code, row["holds"]) == (75, False), found
    assert "127.0.0.1:7750" in row["evidence"] and "(exit code 69)" in row["evidence"]
    assert "ghv site edit slurm --option listen=HOST" in row["hint"]
    tcp.ghv("site", "edit", "slurm", "--unset", "option:listen")
    assert tcp.ghv("run", *TINY, "--", "echo", "again").out == b"again\n"


def test_a_lender_who_forbids_to_listen_is_obeyed_and_told_of(tcp: SlurmLab) -> None:
    file = tcp.site.home / ".ghv.lender.toml"
    file.write_text("listen = false\n")
    file.chmod(0o644)
    tcp.site.cut_ssh()
    wait_for("the refusal", lambda: tcp.health() == "refused")
    assert f"{file.name} says so" in tcp.why() or "limit itself" in tcp.why(), tcp.why()
    assert "`listen`" in tcp.why()
    file.unlink()
    tcp.ghv("site", "check", "slurm", check=False)
    wait_for("the site", lambda: tcp.health() == "up")
