"""Jobs that share a batch job: which may, how long it lasts, how many are cancelled at once, who speaks for whom."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gridhypervisor.agent import entries, pilot, spool, warm
from gridhypervisor.agent.ending import now
from gridhypervisor.execution.cancellations import Cancellations
from gridhypervisor.execution.observer import folded
from gridhypervisor.model import wire
from gridhypervisor.model.batch import BatchJob, BatchState, Submission, Warm
from gridhypervisor.model.errors import LinkLost
from gridhypervisor.model.records import Job, Site, SiteKind
from gridhypervisor.model.spec import GangSpec, JobSpec
from gridhypervisor.model.wire import ExitRecord, ImageManifest, Manifest, OwnerRecord, Program, Reason, Resources
from gridhypervisor.planning.warm import lasting, warmth
from gridhypervisor.planning.world import Absent, Batch, Seen, Unknown
from gridhypervisor.sites.driver import batch_script

POOL = "a-pool"


def job(owner: str = "ann", **spec: Any) -> Job:
    image = spec.pop("image", "tiny")
    asked = JobSpec(image, ("true",), **spec)
    return Job("j1", owner, "default", "", asked, "/to", "/to", ImageManifest(()), "0" * 64, 0.0, version=1)


def site(name: str = "a", **options: str) -> Site:
    return Site(name, "ann", "default", SiteKind.SLURM, host="h", options=options)


def pool(of: Job, at: Site | None = None, installation: str = "g1", bundle: str = "b") -> str | None:
    found = warmth(of, at or site(), installation, bundle, 10.0)
    return found.pool if found is not None else None


def test_a_pool_is_of_one_user_of_one_service_at_one_site() -> None:
    assert pool(job(name="one")) == pool(job(name="another", environment={"A": "b"}))
    others = [pool(job()), pool(job("bob")), pool(job(), site("b")), pool(job(), installation="g2"),
              pool(job(), bundle="c")]  # fmt: skip
    assert None not in others and len(set(others)) == len(others)


@pytest.mark.parametrize(
    "alone",
    [job(isolation="job"), job(image=""), job(gang=GangSpec(2)), job(on_silence="replace")],
)
def test_what_needs_a_batch_job_of_its_own_has_one(alone: Job) -> None:
    assert pool(alone) is None


def test_a_site_may_share_none() -> None:
    assert warmth(job(), site(), "g1", "b", 0.0) is None
    assert pool(job(), site(control="tcp", listen="0.0.0.0:4000-4010")) is None


@pytest.mark.parametrize(
    ("walltime", "most", "lasts"),
    [
        (60, None, 120),
        (600, None, 1200),
        (3600, None, 4200),
        (3600, 4000, 4000),
        (3600, 3600, 3600),
        (60, 90, 90),
        (3601, None, 3601),
    ],
)
def test_a_batch_job_lasts_longer_by_what_one_more_job_takes(walltime: int, most: int | None, lasts: int) -> None:
    assert lasting(walltime, most) == lasts


def test_a_batch_script_says_what_its_pilot_may_serve() -> None:
    alone = Submission("g-j1-1", "/w/spool/g-j1-1", "/w/start", "/s", 1, 1 << 20, 60)
    line = "exec /bin/sh /w/start pilot --scratch /s --entry /w/spool/g-j1-1"
    assert batch_script(alone).splitlines()[-1] == line
    shared = replace(alone, warm=Warm(POOL, 2.5))
    assert batch_script(shared).splitlines()[-1] == f"{line} --pool a-pool --idle 2.5 --lasts 60"


def batch(state: BatchState, restarts: int = 0) -> BatchJob:
    return BatchJob("7", "g-j1-1", state, restarts=restarts)


@pytest.mark.parametrize(
    ("before", "found", "after"),
    [
        (Unknown(), batch(BatchState.RUNNING), Seen(batch(BatchState.RUNNING), 9.0)),
        (Unknown(), None, Absent(9.0, 9.0, 1)),
        (Absent(1.0, 2.0, 2), None, Absent(1.0, 9.0, 3)),
        (Absent(1.0, 2.0, 2), batch(BatchState.PENDING), Seen(batch(BatchState.PENDING), 9.0)),
        (Seen(batch(BatchState.RUNNING), 1.0), batch(BatchState.RUNNING), Seen(batch(BatchState.RUNNING), 1.0)),
        (Seen(batch(BatchState.RUNNING), 1.0), batch(BatchState.RUNNING, 1), Seen(batch(BatchState.RUNNING, 1), 1.0)),
        (Seen(batch(BatchState.RUNNING), 1.0), batch(BatchState.ENDED), Seen(batch(BatchState.ENDED), 9.0)),
        (Seen(batch(BatchState.RUNNING), 1.0), None, Absent(9.0, 9.0, 1)),
    ],
)
def test_a_listing_is_folded_into_what_was_known(before: Batch, found: BatchJob | None, after: Batch) -> None:
    assert folded(before, found, 9.0) == after
    assert (folded(before, found, 9.0) is before) == (before == after)


# -- many cancellations ------------------------------------------------------------------------------------------------


class Connection:
    """What was asked of the batch system, and whether it answers."""

    def __init__(self) -> None:
        self.driver, self.asked, self.cut = self, list[list[str]](), False
        self.open = asyncio.Event()

    def cancel(self, jobs: Sequence[tuple[str, str]]) -> list[str]:
        return [number for _, number in jobs]

    async def batch(self, commands: list[str]) -> None:
        self.asked.append(commands)
        await self.open.wait()
        if self.cut:
            raise LinkLost("cut")


def test_cancellations_that_come_while_one_is_under_way_go_together_after_it() -> None:
    async def story() -> None:
        connection = Connection()
        cancellations = Cancellations(cast(Any, connection))
        first = asyncio.create_task(cancellations.cancel("a", "1"))
        while not connection.asked:
            await asyncio.sleep(0)
        rest = [asyncio.create_task(cancellations.cancel(name, number)) for name, number in (("b", "2"), ("c", "3"))]
        await asyncio.sleep(0)
        rest[0].cancel()  # who stops waiting takes no other with it
        connection.open.set()
        await first
        await rest[1]
        assert connection.asked == [["1"], ["2", "3"]]
        connection.cut = True
        with pytest.raises(LinkLost):
            await cancellations.cancel("d", "4")

    asyncio.run(story())


# -- a pilot that dies before it has a watchdog ------------------------------------------------------------------------


def entry(workdir: Path, name: str) -> Path:
    made = workdir / wire.SPOOL / name
    manifest = Manifest(
        protocol=wire.PROTOCOL, installation="g1", entry=name, vm="v", epoch=3, allocation="a", job="j",
        image=ImageManifest(()), image_digest="", program=Program(("true",)), resources=Resources(), owner="ann",
    )  # fmt: skip
    entries.prepare(made, wire.canonical(manifest))
    return made


def serve_apart(own: object) -> None:
    """Serve in a process of its own, which hears signals and forks as a pilot does; until it ends."""
    host = os.fork()
    if host == 0:
        try:
            warm.serve(cast(Any, own), POOL, 1.0, 7200.0)
        finally:
            os._exit(0)
    os.waitpid(host, 0)


def test_a_host_speaks_for_a_pilot_that_was_killed_as_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other, third = (entry(tmp_path, name) for name in ("own", "other", "third"))
    for each in (other, third):
        entries.offer(each, POOL)
    manifest = spool.read_json(own / wire.MANIFEST, Manifest)
    wishes = SimpleNamespace(look=lambda: None, stop=None)
    report = SimpleNamespace(hypervisor=None, started=now())
    host = SimpleNamespace(serves_on=True, manifest=manifest, entry=own, scratch=tmp_path, workdir=tmp_path,
                           wishes=wishes, report=report)  # fmt: skip
    monkeypatch.setattr(pilot, "played", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    serve_apart(host)
    [taken] = [each for each in (other, third) if (each / wire.OWNER).exists()]  # one such death is enough
    owner = spool.read_json(taken / wire.OWNER, OwnerRecord)
    record = spool.read_json(taken / wire.EXIT, ExitRecord)
    assert owner is not None and record is not None
    assert (owner.by, owner.host, owner.epoch) == ("pilot", "own", 3)
    assert (record.reason, record.claim, record.epoch, record.host) == (Reason.PILOT, owner.claim, 3, "own")


def test_a_host_whose_own_job_is_asked_to_end_takes_no_other(tmp_path: Path) -> None:
    own, other = entry(tmp_path, "own"), entry(tmp_path, "other")
    entries.offer(other, POOL)
    manifest = spool.read_json(own / wire.MANIFEST, Manifest)
    wishes = SimpleNamespace(stop=None)
    wishes.look = lambda: setattr(wishes, "stop", Reason.CANCELLED)  # the word came after its sentinel
    serve_apart(SimpleNamespace(serves_on=True, manifest=manifest, entry=own, scratch=tmp_path, workdir=tmp_path,
                                wishes=wishes, report=SimpleNamespace(hypervisor=None, started=now())))  # fmt: skip
    assert not (other / wire.OWNER).exists()


def test_an_entry_is_open_until_somebody_has_it(tmp_path: Path) -> None:
    made = entry(tmp_path, "one")
    mark = tmp_path / wire.OPEN / POOL / "one"
    entries.offer(made, POOL)
    assert mark.exists()
    entries.revoke(made, OwnerRecord("controller", "c", 3))
    assert not mark.exists()
    entries.offer(made, POOL)  # sent again, and late
    entries.offer(tmp_path / wire.SPOOL / "never", POOL)
    assert not mark.exists() and not mark.with_name("never").exists()
    entries.remove(made, lambda _: None, known="", force=True, discard=True)
    entries.offer(made, POOL)
    assert not mark.exists() and not made.exists()
