"""What an entry needs before its submission: image layers in the account's cache, the manifest, the inputs.

What is there already is not sent again: what was seen there is remembered as long as the connection lasts. What runs
found damaged is put anew.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from gridhypervisor.execution import restarts
from gridhypervisor.execution.collect import BULK
from gridhypervisor.execution.connection import CALL, Connection
from gridhypervisor.execution.copies import Copies, Unsound
from gridhypervisor.execution.logs import Logs
from gridhypervisor.execution.ports import Inputs, Layers, StagedInput
from gridhypervisor.model.errors import InputError, LinkError, LinkLost
from gridhypervisor.model.records import Allocation, Job
from gridhypervisor.model.spec import parse_duration, parse_size
from gridhypervisor.model.wire import (
    CACHE,
    INPUTS,
    PROTOCOL,
    SPOOL,
    TICKET,
    Checkpoint,
    Input,
    Manifest,
    Op,
    Program,
    Reason,
    Resources,
    Ticket,
    canonical,
    to_plain,
)
from gridhypervisor.planning.gangs import environment, hostname
from gridhypervisor.planning.grants import beat_of, grant_of
from gridhypervisor.planning.segments import handover, walltime_of
from gridhypervisor.planning.sites import carried
from gridhypervisor.planning.world import Case


class Damaged(Exception):
    """What was to be placed at the site is not what it should be."""

    def __init__(self, reason: Reason, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.reason, self.hint = reason, hint


class Prolog:
    """Over one connection, for all entries. `progress` is told of each what is being done for it."""

    def __init__(
        self, connection: Connection, layers: Layers, inputs: Inputs, logs: Logs, copies: Copies,
        progress: Callable[[str, str], None],
    ) -> None:  # fmt: skip
        self._copies = copies
        self._connection, self._link, self._site = connection, connection.link, connection.site.name
        self._layers, self._inputs, self._logs, self._progress = layers, inputs, logs, progress
        self._mended: set[str] = set()  # entries for whose sake layers were placed anew
        self._present: set[str] = set()  # paths in the account's cache that were seen there
        self._placing: dict[str, asyncio.Future[None]] = {}  # what is on its way to the cache

    async def prepare(self, a: Allocation, case: Case) -> None:
        """Bring everything there.

        Raises:
            Damaged: a layer, or the copy of a checkpoint, here already.
            InputError: one of the inputs.
            LinkLost, LinkError: the site; LinkLost also where the bundle has to be placed anew, which is done when the
                relay is started again.
        """
        await self._mend(a, case)
        job, entry = case.job, a.pilot_job
        for layer in job.image.layers:
            data, chunks = self._layers.paths(layer)
            await self._place(chunks, f"{CACHE}/{layer.digest}.chunks", {"sha256": layer.digest}, entry)
            known = {"chunks": f"{CACHE}/{layer.digest}.chunks", "chunk_size": layer.chunk_size}
            await self._place(data, f"{CACHE}/{layer.digest}", known, entry)
        # A successor is told with its word where it goes on; its manifest is the same before and after.
        restore = next((c.checkpoint for c in case.checkpoints if c.id == a.restore and not a.ahead), None)
        inputs: list[StagedInput] = []
        left: list[StagedInput] = []
        if restore is None and not a.ahead:  # a guest that is taken up has them on its disk
            self._progress(entry, "reading the inputs")
            planned = await self._inputs.plan(job, lambda words: self._progress(entry, words))
            left = await asyncio.to_thread(restarts.newest, self._logs, a) if job.spec.restart_files else []
            names = {i.described.path for i in left}
            inputs = [*(i for i in planned if i.described.path not in names), *left]
        described = tuple(i.described for i in inputs)
        manifest = self._manifest(a, job, described, restarted=bool(left), restore=restore)
        await self._connection.ask(Op.PREPARE, {"entry": entry, "manifest": to_plain(manifest)})
        if job.probe or manifest.nics:
            await self._let_in(entry)
        if restore is not None and a.copied:
            try:
                await self._copies.send(self._link, restore, entry, lambda words: self._progress(entry, words))
            except Unsound as error:
                raise Damaged(Reason.CHECKPOINT, str(error)) from error
        for i in inputs:
            path = f"{SPOOL}/{entry}/{INPUTS}/{i.described.path}"
            self._progress(entry, f"input {i.described.path}")
            proof = {"sha256": i.described.sha256}
            try:
                await self._link.upload(i.local, path, proof, mode=i.described.mode, timeout=BULK)
            except LinkError as error:
                if error.kind in ("digest", "missing"):
                    raise InputError(f"{error}", "leave inputs alone until the job has taken them") from error
                raise
        self._progress(entry, "")

    async def _let_in(self, entry: str) -> None:
        """Give the pilot of a probe what it needs to try the gate, and one with private networks what others know it
        by. A courier's has it from the courier."""
        connection = self._connection
        if connection.tickets is None or carried(connection.site):
            return
        data = canonical(to_plain(Ticket(str(connection.gate), connection.tickets.entry(entry))))
        put = {"path": f"{SPOOL}/{entry}/{TICKET}", "offset": 0, "size": len(data), "last": True, "mode": 0o600}
        await self._link.call(Op.PUT, {**put, "sha256": hashlib.sha256(data).hexdigest()}, data, timeout=CALL)

    async def _mend(self, a: Allocation, case: Case) -> None:
        """Put anew what earlier attempts found damaged at this site."""
        for earlier in case.allocations:
            reason = earlier.exit.reason if earlier.exit is not None else earlier.why
            if earlier.site != a.site or earlier.epoch >= a.epoch:
                continue
            if reason is Reason.BUNDLE and (earlier.times.submitting or 0.0) > self._connection.since:
                self._connection.damaged.set()
                raise LinkLost("the bundle is placed anew")
            if reason is Reason.IMAGE and earlier.epoch == a.epoch - 1 and a.pilot_job not in self._mended:
                paths = [f"{CACHE}/{layer.digest}{end}" for layer in case.job.image.layers for end in ("", ".chunks")]
                await self._connection.ask(Op.EVICT, {"paths": paths}, timeout=4 * CALL)
                self._present.difference_update(paths)
                self._mended.add(a.pilot_job)

    async def _place(self, local: Path, path: str, proof: Mapping[str, object], entry: str) -> None:
        """Put a content-addressed file into the account's cache, once, however many jobs ask for it."""
        while (under_way := self._placing.get(path)) is not None:
            await asyncio.wait({under_way})
        if path in self._present:
            return
        self._placing[path] = asyncio.get_running_loop().create_future()
        try:
            reply = await self._connection.ask(Op.HAVE, {"paths": [path]})
            if reply["sizes"].get(path) is None:
                self._progress(entry, f"image layer {path.rpartition('/')[2][:12]} to {self._site}")
                try:
                    await self._link.upload(local, path, proof, mode=0o600, timeout=BULK)
                except LinkError as error:
                    if error.kind == "digest":
                        hint = "see `ghv image verify`; if it is damaged, build or import the image again"
                        raise Damaged(Reason.IMAGE, f"{error}; the copy here is {local}", hint) from error
                    raise
            self._present.add(path)
        finally:
            self._placing.pop(path).set_result(None)

    def _manifest(
        self, a: Allocation, job: Job, inputs: tuple[Input, ...], *, restarted: bool, restore: Checkpoint | None
    ) -> Manifest:
        spec, resources = job.spec, job.spec.resources
        names = {**spec.environment, **environment(job)}
        if spec.restart_files:
            names["GHV_RESTARTED"] = str(int(restarted))
        if "GW_RESTARTED" in names:
            names["GW_RESTARTED"] = str(int(restarted))
        return Manifest(
            protocol=PROTOCOL,
            installation=self._connection.installation,
            entry=a.pilot_job,
            vm=a.vm,
            epoch=a.epoch,
            allocation=a.id,
            job=a.job,
            image=job.image,
            image_digest=job.image_digest,
            program=Program(spec.command, names, inputs, spec.outputs, spec.restart_files),
            resources=Resources(
                resources.cpus,
                parse_size(resources.memory),
                parse_size(resources.scratch),
                walltime_of(spec, a),
            ),
            network=spec.network,
            boot_timeout=parse_duration(spec.boot_timeout),
            beat=beat_of(job),
            grant=grant_of(job),
            hypervisor=spec.hypervisor,
            cpu=a.cpu,
            instant=spec.instant,
            hold=spec.gang is not None,
            hostname=hostname(job),
            owner=job.owner,
            restore=restore,
            checkpoints=spec.checkpoint_interval is not None,
            handover=handover(spec, a),
            successor=a.ahead,
            sealed=a.copied,
            probe=job.probe,
            service=job.service,
        )
