"""A pilot's life on a node: one run of a batch job. It keeps the real one's promises, and can be hurt as the real one.

The watchdog is part of it: what must hold although the pilot is stopped or killed (walltime, grant, a sentinel) is done
in its name. The guest's program is read from its command: `sleep SECONDS [EXIT-CODE]`; anything else runs one second.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gridhypervisor.model.wire import (
    WRAPPER,
    CpuUsage,
    ExitRecord,
    HypervisorKind,
    Manifest,
    NodeReport,
    Outcome,
    OutputFile,
    OwnerRecord,
    Phase,
    PhaseTime,
    Proven,
    Reason,
    Status,
)
from gridhypervisor.simulation.spool import Entry, Spool

NO_ENTRY = 66
"""Exit code of a pilot that finds no manifest: the entry was removed, or never made."""


@dataclass(frozen=True)
class Tempo:
    """Seconds that things take on a node."""

    start: float = 0.5  # from the batch job's start to the taking of the ownership
    prepare: float = 2.0
    boot: float = 8.0
    stage: float = 0.5  # in, and out
    shut_down: float = 1.0
    watchdog: float = 1.0  # until the watchdog has noticed and killed


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
    ) -> None:
        self.loop, self.spool, self.name, self.node, self.claim, self.tempo = loop, spool, name, node, claim, tempo
        self._guest, self._done = guest, done
        self.entry: Entry | None = None
        self.alive = True  # some process of it is left on the node
        self.cut = False  # the node reaches nobody
        self.paused = False  # SIGSTOP: the pilot, not its watchdog
        self._began = loop.time()
        self._sequence = 0
        self._phases: list[PhaseTime] = []
        self._in_guest = False
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
        self.entry = entry
        entry.on_cancel = lambda: self.stop(Reason.CANCELLED, "cancelled by the user")
        entry.on_grant = self._hear_grant
        self._walltime = self.loop.call_later(
            self.manifest.resources.walltime, lambda: self._finish(Outcome.STOPPED, Reason.WALLTIME, "walltime is over")
        )
        if entry.cancel:
            self._finish(Outcome.STOPPED, Reason.CANCELLED, "cancelled before it began")
            return
        tempo = self.tempo
        if self.manifest.probe:
            self._tick()
            self._enter(Phase.PREPARE)
            self._wait(tempo.prepare)
            yield
            self._finish(Outcome.COMPLETED, Reason.EXITED, "")
            return
        seconds, code = _program(self.manifest.program.command)
        lengths = (tempo.prepare, tempo.boot, tempo.stage, seconds, tempo.stage, tempo.shut_down)
        self._tick()
        for phase, length in zip(WRAPPER, lengths, strict=True):
            if phase is Phase.BOOT and self.manifest.grant:
                patience = self.loop.time() + self.manifest.grant
                while self.loop.time() >= self._granted:
                    if self.loop.time() >= patience:
                        self._finish(Outcome.FAILED, Reason.GRANT, "nobody answered")
                        return
                    self._wait(0.5)
                    yield
            self._enter(phase)
            self._wait(length)
            yield
        self._finish(Outcome.COMPLETED, Reason.EXITED, "", code)

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
        if self.cut or not self._phases:
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
            ),
        )

    def _tick(self) -> None:
        self._beat = self.loop.call_later(self.manifest.beat, self._tick)
        if not self.paused:
            self._say()

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
        self, outcome: Outcome, reason: Reason, message: str, code: int | None = None, by: str = "pilot"
    ) -> None:
        """The guest is gone for good; outputs, then the sentinel, then no process is left."""
        if not self.alive or self._ending is not None:
            return
        self._cancel_timers()
        self._guest_runs(False)
        at = self.loop.time() - self._began
        phases = tuple(PhaseTime(p.phase, p.start, at if p.end is None else p.end) for p in self._phases)
        outputs = _outputs(self.manifest) if outcome is Outcome.COMPLETED else {}
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
        self._step = self.loop.call_later(0.1, self._over, 0)

    def _printed(self) -> bytes:
        return f"{self.manifest.vm} on {self.node}\n".encode()

    def _over(self, code: int | None) -> None:
        if self.alive:
            self.alive = False
            self._cancel_timers()
            self._guest_runs(False)
            self._done(code)

    def _cancel_timers(self) -> None:
        for timer in (self._step, self._walltime, self._beat, self._expiry):
            if timer is not None:
                timer.cancel()

    # -- what others do to it --------------------------------------------------------------------------------------

    def stop(self, reason: Reason, message: str) -> None:
        """It stops the guest in its own time, if it is not stopped itself."""
        if self.paused or self.cut or not self.alive or self._ending is not None:
            return
        if self.entry is None:
            self._over(143)
            return
        outcome = Outcome.FAILED if reason is Reason.EVICTED else Outcome.STOPPED
        if self._step is not None:
            self._step.cancel()
        self._step = self.loop.call_later(self.tempo.shut_down, lambda: self._finish(outcome, reason, message))

    def end(self, message: str) -> None:
        """A bare TERM: a cancel, if one was asked for; else the site's own doing."""
        cancelled = self.entry is not None and self.entry.cancel
        self.stop(Reason.CANCELLED if cancelled else Reason.EVICTED, message)

    def kill(self) -> None:
        """SIGKILL to the pilot alone: its watchdog ends the guest and says so."""
        if self.entry is None:
            self._over(137)
        elif self._ending is None:
            if self._step is not None:
                self._step.cancel()
            self._script = None
            self._step = self.loop.call_later(
                self.tempo.watchdog, lambda: self._finish(Outcome.FAILED, Reason.PILOT, "killed", by="watchdog")
            )

    def destroy(self) -> None:
        """Every process at once: no last word."""
        self._over(None)

    def pause(self) -> None:
        if self.alive and not self.paused and self._ending is None:
            self.paused = True
            if self._step is not None:
                self._left = max(0.0, self._step.when() - self.loop.time())
                self._step.cancel()

    def resume(self) -> None:
        if self.paused:
            self.paused = False
            if self.alive and self._ending is None:
                if self.entry is not None and self.entry.cancel:
                    self.stop(Reason.CANCELLED, "cancelled by the user")
                else:
                    self._wait(self._left)


def _program(command: tuple[str, ...]) -> tuple[float, int]:
    if command[0] == "sleep":
        return float(command[1]), int(command[2]) if len(command) > 2 else 0
    return 1.0, 0


def _report(node: str) -> NodeReport:
    """Every simulated node is the same."""
    proven = (
        Proven(HypervisorKind.KVM, False, "kvm: this node has no /dev/kvm", "qemu 7.2.22"),
        Proven(HypervisorKind.TCG, True, "tcg: emulated", "qemu 7.2.22"),
    )
    return NodeReport(node, "6.1.0", "Simulated", 1, 8, 16 << 30, 8 << 30, "/sim", "/tmp", 100 << 30, proven)


def _outputs(manifest: Manifest) -> dict[str, bytes]:
    """One small file for each pattern of the job's."""
    return {
        pattern.replace("*", "result"): f"{manifest.job} {manifest.epoch} {pattern}\n".encode()
        for pattern in manifest.program.outputs
    }
