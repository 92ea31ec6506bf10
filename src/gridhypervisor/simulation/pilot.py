"""A pilot's life on a node: one run of a batch job. It keeps the real one's promises, and can be hurt as the real one.

The watchdog is part of it: what must hold although the pilot is stopped or killed (walltime, grant, a sentinel) is done
in its name. The guest's program is read from its command: `sleep SECONDS [EXIT-CODE]`; anything else runs one second.
That of a service runs until it is stopped, unless it is such a sleep; `refuse` is one that is never ready.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gridhypervisor.execution.copies import unseal
from gridhypervisor.model.batch import Warm
from gridhypervisor.model.wire import (
    KEY,
    SAVE_END,
    SAVE_GO_ON,
    SAVE_HAND_OVER,
    SAVE_PAUSE,
    SAVE_UNPAUSE,
    SEALED,
    STDOUT,
    WRAPPER,
    Checkpoint,
    CpuUsage,
    Effort,
    ExitRecord,
    HypervisorKind,
    HypervisorUsed,
    Manifest,
    NodeReport,
    Outcome,
    OutputFile,
    OwnerRecord,
    Part,
    Phase,
    PhaseTime,
    Proven,
    Reason,
    Saved,
    Status,
    bound_to,
    from_plain,
    suits,
)
from gridhypervisor.simulation.spool import MEMORY, Entry, Kept, Spool, contents

NO_ENTRY = 66
"""Exit code of a pilot that finds no manifest: the entry was removed, or never made."""


REFUSE = "refuse"
"""The command of a service that is never ready."""


@dataclass(frozen=True)
class Tempo:
    """Seconds that things take on a node."""

    start: float = 0.5  # from the batch job's start to the taking of the ownership
    prepare: float = 2.0
    boot: float = 8.0
    stage: float = 0.5  # in, and out
    shut_down: float = 1.0
    save: float = 1.5
    reserve: float = 5.0  # before the end of a batch job, when a guest that goes on in another is saved
    watchdog: float = 1.0  # until the watchdog has noticed and killed
    serve: float = 1.0  # until a service is ready
    talks: bool = True  # False: a pilot whose guest needs no grant says nothing until its end; no word decides anything


@dataclass(frozen=True)
class Serving:
    """How a pilot serves others when its own job has ended well."""

    warm: Warm
    until: float  # the end of its batch job, in the loop's time


class Pilot:
    """`done(code)` tells the batch system of the end of its last process; None: ended by force."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        spool: Spool,
        name: str,
        node: str,
        claim: str,
        tempo: Tempo,
        guest: Callable[[str, int], None],
        done: Callable[[int | None], None],
        serving: Serving | None = None,
    ) -> None:
        self.loop, self.spool, self.name, self.node, self.claim, self.tempo = loop, spool, name, node, claim, tempo
        self._guest, self._done, self._serving = guest, done, serving
        self.host, self._run = name, claim  # with which batch job it came, and in which run of that
        self.own: Entry | None = None
        self.served = 0  # entries of others
        self.entry: Entry | None = None
        self.alive = True  # some process of it is left on the node
        self.cut = False  # the node reaches nobody
        self.paused = False  # SIGSTOP: the pilot, not its watchdog
        self._began = loop.time()
        self._sequence = 0
        self._phases: list[PhaseTime] = []
        self.used: HypervisorUsed | None = None  # what it says of its guest: what runs it, how it fares, what it wants
        self.effort: Effort | None = None
        self.asks = ""
        self.serves = False  # of a service
        self._readiness: asyncio.TimerHandle | None = None
        self.cannot_save = ""  # why it refuses to
        self._saved: Saved | None = None
        self._saving: asyncio.TimerHandle | None = None
        self._saving_by: asyncio.TimerHandle | None = None
        self._left_still = 0.0  # of its program, while its guest stands still
        self._ran_before = 0.0  # seconds, in the attempts that led to the checkpoint that it went on from
        self._before = b""  # what these have printed
        self._in_guest = False
        self.members = ""  # of its gang, as its guest was told
        self._script: Iterator[None] | None = None
        self._step: asyncio.TimerHandle | None = None
        self._left = 0.0  # of the present phase, while paused
        self._walltime: asyncio.TimerHandle | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._sent: dict[int, float] = {}  # beats that may be answered, where the guest needs a grant
        self._granted = float("-inf")  # until when
        self._expiry: asyncio.TimerHandle | None = None
        self._ending: ExitRecord | None = None
        self._script = self._live()
        self._go()

    @property
    def manifest(self) -> Manifest:
        assert self.entry is not None and self.entry.manifest is not None
        return self.entry.manifest

    @property
    def executes(self) -> bool:
        """Whether its program runs."""
        return bool(self._phases) and self._phases[-1].phase is Phase.EXECUTE and self._ending is None

    @property
    def phase(self) -> Phase | None:
        """Where it is; None: it has not begun, or is over."""
        return self._phases[-1].phase if self.alive and self._ending is None and self._phases else None

    # -- its own life ----------------------------------------------------------------------------------------------

    def _go(self) -> None:
        """Take the next step of the script, unless the run is over."""
        if self.alive and self._script is not None:
            next(self._script, None)

    def _wait(self, seconds: float) -> None:
        self._step = self.loop.call_later(seconds, self._go)

    def _live(self) -> Iterator[None]:
        self._wait(self.tempo.start)
        yield
        while self.cut:  # no spool, no life: it waits for the file server
            self._wait(5.0)
            yield
        entry = self.spool.entries.get(self.name)
        if entry is None or entry.manifest is None:
            self._over(NO_ENTRY)
            return
        me = OwnerRecord("pilot", self.claim, entry.manifest.epoch, self.node)
        if self.spool.take_owner(entry, me) != me:
            self._over(0)
            return
        self.own = entry
        self._begin(entry)
        yield from self._play()

    def _begin(self, entry: Entry) -> None:
        """It owns this entry from now on."""
        self.entry, self.name = entry, entry.name
        entry.on_cancel = lambda: self._obey() if self.entry is entry else None
        entry.on_grant = lambda beat: self._hear_grant(beat) if self.entry is entry else None
        entry.on_save = lambda: self._mind_saves() if self.entry is entry else None

    def _play(self) -> Iterator[None]:
        """The life of the entry's VM."""
        entry = self.entry
        assert entry is not None
        self._walltime = self.loop.call_later(self.manifest.resources.walltime, self._overdue)
        if self.manifest.handover is not None:
            before = self.manifest.resources.walltime - self.tempo.reserve
            self._saving_by = self.loop.call_later(before, self._hand_over)
        if entry.cancel:
            self._finish(Outcome.STOPPED, self._wished(), "stopped before it began")
            return
        tempo = self.tempo
        if self.manifest.probe:
            self._tick()
            self._enter(Phase.PREPARE)
            self._wait(tempo.prepare)
            yield
            self._finish(Outcome.COMPLETED, Reason.EXITED, "")
            return
        service = self.manifest.service is not None
        seconds, code = _program(self.manifest.program.command, service=service)
        self._tick()
        restore = self.manifest.restore
        if self.manifest.successor:
            self._enter(Phase.PREPARE)
            self._wait(tempo.prepare)
            yield
            self._enter(Phase.GATHER)
            while entry.begin is None:
                self._wait(0.5)
                yield
            restore = from_plain(Checkpoint, json.loads(entry.begin))
        if restore is not None:
            found = self._brought(entry, restore) if self.manifest.sealed else self._there(restore)
            if isinstance(found, str):
                self._enter(Phase.PREPARE)
                self._wait(tempo.prepare)
                yield
                self._finish(Outcome.FAILED, Reason.CHECKPOINT, f"take up checkpoint {restore.id}: {found}")
                return
            self._ran_before, self._before = restore.executed, found
            seconds = max(0.0, seconds - restore.executed)
        lengths = (tempo.prepare, tempo.boot, tempo.stage, seconds, tempo.stage, tempo.shut_down)
        for phase, length in zip(WRAPPER, lengths, strict=True):
            if phase is Phase.BOOT and self.manifest.grant:
                patience = self.loop.time() + self.manifest.grant
                while self.loop.time() >= self._granted:
                    if self.loop.time() >= patience:
                        self._finish(Outcome.FAILED, Reason.GRANT, "nobody answered")
                        return
                    self._wait(0.5)
                    yield
            if phase is Phase.EXECUTE and self.manifest.hold:
                self._enter(Phase.GATHER)
                while entry.begin is None:
                    self._wait(0.5)
                    yield
                self.members = entry.begin
            self._enter(phase)
            if phase is Phase.EXECUTE and service and self.manifest.program.command[0] != REFUSE:
                self._readiness = self.loop.call_later(tempo.serve, self._ready)
            handover = self.manifest.handover
            left = max(1.0, handover.walltime - self._ran_before) if handover is not None else length
            if phase is Phase.EXECUTE and left < length:
                self._wait(left)
                yield
                self._finish(Outcome.STOPPED, Reason.WALLTIME, "walltime is over")
                return
            self._wait(length)
            yield
        self._finish(Outcome.COMPLETED, Reason.EXITED, "", code)

    def _ready(self) -> None:
        if self.executes and not self.paused:
            self.serves = True
            self._say()

    def _there(self, restore: Checkpoint) -> bytes | str:
        """What was printed before a checkpoint at this site; or why it cannot be taken up."""
        kept = self.spool.kept.get(restore.id)
        if kept is None:
            return "it is not there"
        if kept.damaged or kept.checkpoint != restore:
            return "it is damaged: memory.zst is not what it was"
        return kept.printed

    def _brought(self, entry: Entry, restore: Checkpoint) -> bytes | str:
        """The same of a copy that came with the entry, of which each frame is opened."""
        parts = {}
        for part in restore.parts:
            try:
                key = bytes.fromhex(entry.files[KEY].data.decode())
                frame = entry.files[f"{SEALED}/{part.name}"].data  # they are all short enough for one
                parts[part.name] = unseal(key, frame, bound_to(restore.id, part.name, part.size, 0))
            except (KeyError, ValueError) as error:
                return f"the copy of its {part.name} cannot be opened: {error}"
            if hashlib.sha256(parts[part.name]).hexdigest() != part.sha256:
                return f"its {part.name} is damaged"
        return parts[STDOUT]

    def _enter(self, phase: Phase) -> None:
        at = self.loop.time() - self._began
        if self._phases:
            last = self._phases.pop()
            self._phases.append(PhaseTime(last.phase, last.start, at))
        self._phases.append(PhaseTime(phase, at))
        if phase is Phase.BOOT:
            self._guest_runs(True)
        self._say()

    def _say(self) -> None:
        assert self.entry is not None
        if self.cut or not self._phases or self._mute:
            return
        self._sequence += 1
        self._sent[self._sequence] = self.loop.time()
        self.spool.say(
            self.entry,
            Status(
                self.name,
                self.manifest.epoch,
                self.claim,
                self._sequence,
                self._phases[-1].phase,
                tuple(self._phases),
                self.loop.time() - self._began,
                self.node,
                hypervisor=self.used,
                effort=self.effort,
                asks=self.asks,
                serves=self.serves,
                saved=self._saved,
            ),
        )

    # -- saving ----------------------------------------------------------------------------------------------------

    def _mind_saves(self) -> None:
        """Do what the newest wish in control/ says, once, if that can be."""
        entry = self.entry
        if entry is None or self.paused or self.cut or not self.alive or self._ending is not None or entry.cancel:
            return
        done = self._saved.number if self._saved is not None else 0
        wanted = min((number for number in entry.saves if number > done), default=None)
        if wanted is None or self._saving is not None or not self._phases:
            return
        if entry.saves[wanted] in (SAVE_PAUSE, SAVE_UNPAUSE):
            self._stand_still(wanted, entry.saves[wanted] == SAVE_PAUSE)
            return
        why = self.cannot_save or ("" if self.executes else f"the guest is not there to be saved: {self.phase}")
        if not why:
            self._saving = self.loop.call_later(self.tempo.save, self._save, wanted, entry.saves[wanted])
        else:
            self._answer(Saved(wanted, None, why))

    def _stand_still(self, number: int, still: bool) -> None:
        """Have the guest stand still, or go on."""
        was = self._saved is not None and self._saved.paused
        why = self.cannot_save or ("" if self.executes else f"its program does not run now: it is at {self.phase}")
        if not why and still and not was and self._step is not None:
            self._left_still = self._step.when() - self.loop.time()
            self._step.cancel()
        elif not why and was and not still:
            self._wait(self._left_still)
        self._answer(Saved(number, None, why, was if why else still))

    def _save(self, number: int, then: str, reason: Reason = Reason.SUSPENDED) -> None:
        self._saving = None
        if self.paused or self.cut or self.entry is None or self.entry.cancel:
            return  # a wish that still stands is minded with the next beat
        if not self.executes:
            self._answer(Saved(number, None, "the program ended meanwhile"))
            return
        printed = self._printed()
        executed = self._ran_before + self.loop.time() - self._began - self._phases[-1].start
        name, m = f"{self.name}-{number}", self.manifest
        checkpoint = Checkpoint(
            id=name,
            entry=self.name,
            epoch=m.epoch,
            image=m.image_digest,
            kind=HypervisorKind.TCG,
            program="qemu 7.2.22",
            bundle="0" * 64,
            layout=("-m", str(m.resources.memory >> 20)),
            processor="",
            memory=m.resources.memory,
            disks={"scratch": m.resources.scratch},
            parts=(_part(MEMORY, contents(name), m.resources.memory), _part(STDOUT, printed, len(printed))),
            streams={"stdout": len(printed)},
            executed=executed,
        )
        self.spool.kept[name] = Kept(checkpoint, printed)
        self.spool.write(self.entry, "stdout", printed)
        self._answer(Saved(number, checkpoint))
        if then != SAVE_GO_ON:
            reason = Reason.HAND_OVER if then == SAVE_HAND_OVER else reason
            outcome = Outcome.FAILED if reason is Reason.EVICTED else Outcome.STOPPED
            self._finish(outcome, reason, "", checkpoint=checkpoint)

    def _hand_over(self, reason: Reason = Reason.HAND_OVER) -> bool:
        """Its batch job is nearly over, or the site ends it: whether its guest is saved."""
        handover = self.entry is not None and self.manifest.handover is not None
        if not handover or self.paused or self.cut or self.cannot_save or not self.executes:
            return False
        if self._saving is not None:
            self._saving.cancel()
        then = SAVE_END if reason is Reason.EVICTED else SAVE_HAND_OVER
        self._saving = self.loop.call_later(self.tempo.save, self._save, 0, then, reason)
        return True

    def _overdue(self) -> None:
        """The watchdog's part, mostly."""
        if self.manifest.handover is not None:
            self._finish(Outcome.FAILED, Reason.UNSAVED, "its batch job is over", by="watchdog")
        else:
            self._finish(Outcome.STOPPED, Reason.WALLTIME, "walltime is over")

    def _answer(self, saved: Saved) -> None:
        self._saved = saved
        self._say()

    def _tick(self) -> None:
        if not self._mute:
            self._beat = self.loop.call_later(self.manifest.beat, self._tick)
        if not self.paused:
            self._say()
            self._mind_saves()

    @property
    def _mute(self) -> bool:
        return not self.tempo.talks and not self.manifest.grant

    def _hear_grant(self, beat: int) -> None:
        if self.alive and not self.paused and not self.cut and beat in self._sent and self.manifest.grant:
            self._granted = max(self._granted, self._sent[beat] + self.manifest.grant)
            self._mind_grant()

    def _mind_grant(self) -> None:
        """The watchdog's part: it is there although the pilot be stopped or killed."""
        if self._expiry is not None:
            self._expiry.cancel()
        if self._in_guest and self.manifest.grant:
            told = "nobody was heard from"
            self._expiry = self.loop.call_at(
                self._granted, lambda: self._finish(Outcome.FAILED, Reason.GRANT, told, by="watchdog")
            )

    def _guest_runs(self, runs: bool) -> None:
        if runs != self._in_guest:
            self._in_guest = runs
            if self.entry is not None:
                self.entry.guest = runs
                if runs and self.spool.entries.get(self.name) is not self.entry:
                    self.spool.harm.append(f"a guest of {self.name} began after its removal")
            self._guest(self.manifest.vm, 1 if runs else -1)
            self._mind_grant()

    # -- ends ------------------------------------------------------------------------------------------------------

    def _finish(
        self,
        outcome: Outcome,
        reason: Reason,
        message: str,
        code: int | None = None,
        by: str = "pilot",
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """The guest is gone for good; outputs, then the sentinel, then no process is left."""
        if not self.alive or self._ending is not None:
            return
        self._cancel_timers()
        self._guest_runs(False)
        at = self.loop.time() - self._began
        phases = tuple(PhaseTime(p.phase, p.start, at if p.end is None else p.end) for p in self._phases)
        program = self.manifest.program
        left = program.outputs if outcome is Outcome.COMPLETED else program.restart if reason is Reason.MOVED else ()
        outputs = _outputs(self.manifest, left)
        self._ending = ExitRecord(
            self.name,
            self.manifest.epoch,
            self.claim,
            outcome,
            reason,
            message,
            exit_code=code,
            phases=phases,
            elapsed=at,
            usage=CpuUsage(0.5, max(0.0, at - 3.0)),
            outputs=tuple(
                OutputFile(path, len(data), 0o644, hashlib.sha256(data).hexdigest()) for path, data in outputs.items()
            ),
            node=self.node,
            streams={"stdout": len(self._printed())},
            by=by,
            checkpoint=checkpoint,
            host=self.host if self.name != self.host else "",
            report=_report(self.node) if outcome is Outcome.COMPLETED and self.manifest.probe else None,
        )
        self._write(outputs)

    def _write(self, outputs: dict[str, bytes]) -> None:
        assert self.entry is not None and self._ending is not None
        if self.cut:
            self._step = self.loop.call_later(5.0, self._write, outputs)
            return
        if self.spool.entries.get(self.name) is not self.entry:
            self._over(1)  # it was removed: there is nowhere to write to
            return
        for path, data in outputs.items():
            self.spool.write(self.entry, f"out/{path}", data)
        self.spool.write(self.entry, "stdout", self._printed())
        self.spool.leave(self.entry, self._ending)
        self._step = self.loop.call_later(0.1, self._rest)

    # -- other entries, in the same batch job ----------------------------------------------------------------------

    def _rest(self) -> None:
        """Its sentinel is left. Serve others, if all is well; see `agent/warm.py`."""
        assert self.entry is not None and self._ending is not None
        served = self.entry is not self.own
        asked = self.own is not None and self.own.cancel if not served else False
        well = self._ending.outcome is Outcome.COMPLETED or (served and self._ending.reason is Reason.CANCELLED)
        if self._serving is None or asked or not well or self._ending.by != "pilot":
            self._over(0)
            return
        worked = max(1.0, self.loop.time() - self._began)
        self._look(self.loop.time() + min(self._serving.warm.idle, worked))

    def _look(self, patience: float) -> None:
        """Take an entry that is open, or wait for one until then."""
        assert self._serving is not None
        if not (self.paused or self.cut):
            for name in list(self.spool.open.get(self._serving.warm.pool, ())):
                if self._take(self.spool.entries[name]):
                    return
        if self.loop.time() >= patience and not self.paused:
            self._over(0)
        else:
            self._step = self.loop.call_later(0.3, self._look, patience)

    def _take(self, entry: Entry) -> bool:
        assert self._serving is not None and self.own is not None and entry.manifest is not None
        own, left = self.own.manifest, self._serving.until - self.loop.time()
        if own is None or not suits(own, "", entry.manifest, left):
            return False
        claim = f"{self._run}.{self.served + 1}"
        me = OwnerRecord("pilot", claim, entry.manifest.epoch, self.node, host=self.host)
        if self.spool.take_owner(entry, me) != me:
            return False
        self.claim, self._began, self._sequence, self._phases = claim, self.loop.time(), 0, []
        self._ending, self.used, self.effort, self.asks, self.members, self.serves = None, None, None, "", "", False
        self._saved, self._ran_before, self._before = None, 0.0, b""
        self.served += 1
        self._begin(entry)
        self._script = self._play()
        self._step = self.loop.call_later(self.tempo.stage, self._go)
        return True

    def _printed(self) -> bytes:
        if self._phases and self._phases[-1].phase is Phase.GATHER and self.manifest.successor:
            return b""  # no guest has been here
        return self._before + f"{self.manifest.vm} on {self.node}\n".encode()

    def _over(self, code: int | None) -> None:
        if self.alive:
            self.alive = False
            self._cancel_timers()
            self._guest_runs(False)
            self._done(code)

    def _cancel_timers(self) -> None:
        timers = (self._step, self._walltime, self._saving_by, self._beat, self._expiry, self._saving, self._readiness)
        for timer in timers:
            if timer is not None:
                timer.cancel()

    # -- what others do to it --------------------------------------------------------------------------------------

    def stop(self, reason: Reason, message: str) -> None:
        """It stops the guest in its own time, if it is not stopped itself."""
        if self._rests:
            self._over(143)
            return
        if self.paused or self.cut or not self.alive or self._ending is not None:
            return
        if self.entry is None:
            self._over(143)
            return
        outcome = Outcome.FAILED if reason is Reason.EVICTED else Outcome.STOPPED
        if self._step is not None:
            self._step.cancel()
        self._step = self.loop.call_later(self.tempo.shut_down, lambda: self._finish(outcome, reason, message))

    def _wished(self) -> Reason:
        moved = self.entry is not None and self.entry.why.startswith(Reason.MOVED)
        return Reason.MOVED if moved else Reason.CANCELLED

    def _obey(self) -> None:
        """The wish in control/: a program that has ended has ended, where the job was only to go elsewhere."""
        ended = bool(self._phases) and self._phases[-1].phase in (Phase.STAGE_OUT, Phase.SHUT_DOWN)
        if not (ended and self._wished() is Reason.MOVED):
            self.stop(self._wished(), "stopped on request")

    def end(self, message: str) -> None:
        """A bare TERM: a cancel, if one was asked for; else the site's own doing."""
        cancelled = self.entry is not None and self.entry.cancel
        if not cancelled and self._hand_over(Reason.EVICTED):
            return
        self.stop(Reason.CANCELLED if cancelled else Reason.EVICTED, message)

    def kill(self) -> None:
        """SIGKILL to the pilot alone: its watchdog ends the guest and says so."""
        if self.entry is None or self._rests:
            self._over(137)
        elif self._ending is None:
            for timer in (self._step, self._saving):
                if timer is not None:
                    timer.cancel()
            self._script = None
            self._step = self.loop.call_later(
                self.tempo.watchdog, lambda: self._finish(Outcome.FAILED, Reason.PILOT, "killed", by="watchdog")
            )

    def destroy(self) -> None:
        """Every process at once: no last word."""
        self._over(None)

    @property
    def _rests(self) -> bool:
        """Its last entry is done with, and it waits for another. Of its own, whoever ends it ends no guest."""
        return self.alive and self._ending is not None and self.entry is not None and self.entry.exit is not None

    def pause(self) -> None:
        if self._rests:
            self.paused = True
        if self.alive and not self.paused and self._ending is None:
            self.paused = True
            if self._step is not None:
                self._left = max(0.0, self._step.when() - self.loop.time())
                self._step.cancel()

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            if self._rests:
                return
            if self.alive and self._ending is None:
                self._wait(self._left)
                if self.entry is not None and self.entry.cancel:
                    self._obey()
                self._mind_saves()


def _program(command: tuple[str, ...], *, service: bool) -> tuple[float, int]:
    if command[0] == "sleep":
        return float(command[1]), int(command[2]) if len(command) > 2 else 0
    return (1e9 if service else 1.0), 0


def _report(node: str) -> NodeReport:
    """Every simulated node is the same."""
    proven = (
        Proven(HypervisorKind.KVM, False, "kvm: this node has no /dev/kvm", "qemu 7.2.22"),
        Proven(HypervisorKind.TCG, True, "tcg: emulated", "qemu 7.2.22"),
    )
    return NodeReport(node, "6.1.0", "Simulated", 1, 8, 16 << 30, 8 << 30, "/sim", "/tmp", 100 << 30, proven)


def _outputs(manifest: Manifest, patterns: Sequence[str]) -> dict[str, bytes]:
    """One small file for each pattern."""
    return {
        pattern.replace("*", "result"): f"{manifest.job} {manifest.epoch} {pattern}\n".encode() for pattern in patterns
    }


def _part(name: str, data: bytes, length: int) -> Part:
    return Part(name, len(data), hashlib.sha256(data).hexdigest(), length)
