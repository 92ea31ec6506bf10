"""Saving a guest whose program runs: to suspend it, to have something to fall back on, to go on in another batch job.

    FREEZE ─▶ FROZEN ─▶ stop ─▶ nothing more comes ─▶ memory ─▶ disks ─┬─ go on: ─▶ continue, THAW ─▶ kept
    the program stands still    the guest stands still                 └─ end: ─▶ kept ─▶ SUSPENDED

A guest that is paused stands still in the middle of that, for as long as its user wants. It may be saved from there.
What goes wrong before a checkpoint is kept gives nothing up: the guest goes on, and the status says why there is none.
Who wants the allocation to end comes first: a save that is under way then is given up. How a saved guest is taken up
again is in `takeup.py`, what the files are in `checkpoints.py`.
"""

from __future__ import annotations

import functools
import io
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gridhypervisor.agent import renewal
from gridhypervisor.agent.ending import Ending, now
from gridhypervisor.agent.handover import HandingOver
from gridhypervisor.agent.hypervisor import Ask, Saver
from gridhypervisor.agent.world import WorldError
from gridhypervisor.model import wire
from gridhypervisor.model.wire import Checkpoint, Manifest, OperationKind, Outcome, Phase, Reason, Saved, canonical

if TYPE_CHECKING:
    from gridhypervisor.agent.checkpoints import Writer
    from gridhypervisor.agent.equip import Equipment
    from gridhypervisor.agent.loop import Loop
    from gridhypervisor.agent.report import Report
    from gridhypervisor.agent.vm import Vm
    from gridhypervisor.agent.wishes import SaveWish, Wishes

_SETTLE = 60.0  # seconds for the program to stand still; it takes a fraction of one
_STOP = 30.0  # seconds for the hypervisor to stop the guest, or to let it go on
_AGAIN = 0.05  # seconds
_LOOK = 1.0  # seconds
PAUSED = "paused: its guest stands still in its place"


class NotSaved(Exception):
    """No checkpoint was made; the message says why. The guest may stand still."""


class Freezer:
    """What may save one guest."""

    def __init__(
        self, manifest: Manifest, folder: Path, report: Report, wishes: Wishes, loop: Loop, log: Callable[[str], None],
        *, carried: bool,
    ) -> None:  # fmt: skip
        """`folder`: the account's checkpoints; `carried`: this node does not see it."""
        self._manifest, self._folder, self._carried = manifest, folder, carried
        self._report, self._wishes, self._loop, self._log = report, wishes, loop, log
        self._equipment: Equipment | None = None
        self._vm: Vm | None = None
        self._wish: SaveWish | None = None
        self._executed = manifest.restore.executed if manifest.restore else 0.0
        self._began = self._stood = 0.0
        self._handing: HandingOver | None = None  # to another batch job
        self._looked, self._due = 0.0, False
        self._paused: Standstill | None = None
        wishes.save = self.heed

    @property
    def wanted(self) -> bool:
        return self._wish is not None or self._nearly_over()

    @property
    def unsaved(self) -> str:
        """Why it could not be saved to go on in another batch job, if that was tried."""
        return self._handing.why if self._handing is not None else ""

    def begin(self, vm: Vm, equipment: Equipment) -> None:
        """The program runs from now on."""
        self._vm, self._equipment, self._began = vm, equipment, now()
        if self._manifest.handover is not None:
            self._handing = HandingOver(self._manifest.handover, self._wishes.limits, self._began, self._executed)
            self._wishes.limits = self._handing.program()
            self._wishes.warned = self.warn

    def warn(self, meaning: Reason, signal: str) -> bool:
        """The site has sent a signal. Whether the guest is to be saved, and not just to be stopped."""
        if self._handing is None or self._equipment is None or self._obstacle():
            return False
        if (self._handing.warning and self._handing.why) or not self._handing.in_time(
            meaning, self._size(self._equipment)
        ):
            return False
        self._handing.warn(meaning, signal)
        self._looked = 0.0
        return True

    def heed(self, wish: SaveWish) -> None:
        """Take in a wish, or say at once why it cannot be."""
        why = self._obstacle(wish.then)
        if why:
            self._say(Saved(wish.number, None, why, self._paused is not None))
        else:
            self._wish = wish

    def unpause(self) -> None:
        """Have the guest go on, if it is paused: with the time of now.

        Raises:
            Ending: it does not go on.
        """
        if self._paused is not None:
            still, self._paused = self._paused, None
            still.end(renew=True)
            self._stood += still.stood
            self._report.note = ""

    def _pause(self, wish: SaveWish) -> None:
        why = ""
        if wish.then == wire.SAVE_UNPAUSE:
            self.unpause()
        elif self._paused is None:
            still = self._standstill()
            try:
                still.begin(wish.number)
                self._paused, self._report.note = still, PAUSED
            except NotSaved as error:
                why = str(error)
                still.end()
        self._say(Saved(wish.number, None, why, self._paused is not None))

    def _standstill(self) -> Standstill:
        assert self._vm is not None and self._equipment is not None and self._equipment.saver is not None
        return Standstill(self._vm, self._equipment.saver, self._loop, self._wishes.stopped)

    def save(self) -> None:
        """Do what is wanted.

        Raises:
            Ending: the guest is suspended, or lost.
        """
        began, load = now(), self._report.load
        if self._handing is not None and self._nearly_over() and not (self._wish is not None and self._wish.end):
            wish = self._handing.wish()  # what else is wanted waits: if this succeeds, nothing else is needed
        else:
            assert self._wish is not None
            wish, self._wish = self._wish, None
        self._looked = 0.0
        if why := self._obstacle(wish.then):  # the program may have ended meanwhile
            return self._not_saved(wish, why)
        if wish.then in (wire.SAVE_PAUSE, wire.SAVE_UNPAUSE):
            return self._pause(wish)
        if wish.number == 0 and self._handing is not None and (why := self._handing.futile(now())):
            return self._not_saved(wish, why)
        try:
            checkpoint = self._save(wish)
        except (NotSaved, OSError, WorldError) as error:
            why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
            return self._not_saved(wish, why)
        steps = ", ".join(f"{step} {seconds:.2f}" for step, seconds in checkpoint.took.items())
        self._log(
            f"checkpoint {checkpoint.id}: {checkpoint.size >> 20} MiB, stood still {checkpoint.stood:.2f} s; {steps}"
        )
        self._report.timed(OperationKind.SAVE, checkpoint.held, now() - began, load)
        self._say(Saved(wish.number, checkpoint, paused=self._paused is not None))
        if wish.end:
            assert self._vm is not None
            self._vm.let_go()
            how = "suspended" if wish.reason is Reason.SUSPENDED else "saved"
            outcome = Outcome.FAILED if wish.reason is Reason.EVICTED else Outcome.STOPPED
            raise Ending(wish.reason, f"{how} as {checkpoint.id}: {wish.why}", "", outcome, checkpoint)

    def _not_saved(self, wish: SaveWish, why: str) -> None:
        """The guest runs on."""
        if wish.number or self._handing is None:
            return self._say(Saved(wish.number, None, why, self._paused is not None))
        self._log(f"the guest is not saved, to go on in another batch job: {why}")
        again = self._handing.failed(now(), why) and not self._handing.futile(now())
        ended = self._wishes.stopped() or self._vm is None or self._vm.exit is not None
        if not again and not ended:
            self._wishes.end(Reason.EVICTED if self._handing.reason is Reason.EVICTED else Reason.UNSAVED, why)

    def _nearly_over(self) -> bool:
        """Whether the guest is to be saved now, to go on in another batch job; looked at once a second."""
        if self._handing is None or self._equipment is None:
            return False
        moment = now()
        if moment >= self._looked + _LOOK:
            self._looked, self._due = moment, self._handing.due(moment, self._size(self._equipment))
        return self._due

    def _size(self, equipment: Equipment) -> int:
        """Bytes of the guest's memory, and of what is written on its disks."""
        return sum(disk.path.stat().st_blocks * 512 for disk in equipment.disks) + equipment.machine.memory

    def _say(self, saved: Saved) -> None:
        if saved.checkpoint is None:
            self._log(f"the guest is not saved: {saved.why}" if saved.why else f"paused: {saved.paused}")
        self._report.saved = saved
        self._report.write()

    def _obstacle(self, then: str = wire.SAVE_END) -> str:
        """Why the guest cannot be saved at this moment, or stand still, or empty."""
        used = self._report.hypervisor
        if self._report.phase is not Phase.EXECUTE or self._vm is None or self._equipment is None:
            return f"its program does not run now: it is at {self._report.phase}"
        if self._equipment.saver is None:
            return f"{used.kind if used else 'the hypervisor'} can neither save nor stop a guest"
        if self._carried and then not in (wire.SAVE_PAUSE, wire.SAVE_UNPAUSE):
            return "this node does not see the account's folder, where checkpoints are kept"
        if self._vm.exit is not None:
            return "its program has ended"
        if self._wishes.stopped():
            return f"its program is being stopped: {self._wishes.stop}"
        return ""

    def _save(self, wish: SaveWish) -> Checkpoint:
        """Raises: NotSaved, OSError, WorldError: no checkpoint was made, and the guest goes on. Ending: it is lost."""
        from gridhypervisor.agent import checkpoints
        from gridhypervisor.agent.effort import filled

        assert self._vm is not None and self._equipment is not None and self._equipment.saver is not None
        equipment = self._equipment
        size = self._size(equipment)
        if why := checkpoints.obstacle(self._folder, size):
            raise NotSaved(why)
        for name in checkpoints.sweep(self._folder):
            self._log(f"swept checkpoint {name}: nobody writes it any more")
        writer = checkpoints.Writer(
            self._folder, f"{self._manifest.entry}-{wish.number}", equipment.world, equipment.machine.cpus,
            self._wishes.stopped,
        )  # fmt: skip
        memory = equipment.machine.memory
        held = size - memory + filled(os.getpid(), memory)
        self._report.note = "the guest is being saved"
        self._report.write()
        still = self._paused or self._standstill()
        try:
            if still is self._paused:
                still.go_on_counting()
            else:
                still.begin(wish.number)
            return self._write(wish, writer, still, size, held)
        finally:
            self._report.note = PAUSED if self._paused is not None else ""
            writer.discard()
            if not (wish.end and writer.kept) and still is not self._paused:
                still.end()
                self._stood += still.stood

    def _write(self, wish: SaveWish, writer: Writer, still: Standstill, size: int, held: int) -> Checkpoint:
        from gridhypervisor.agent import checkpoints
        from gridhypervisor.agent.likeness import likeness

        assert self._vm is not None and self._equipment is not None
        vm, equipment, entry = self._vm, self._equipment, self._report.entry
        executed = self._executed + now() - self._began - self._stood - still.stood
        still.write(writer, equipment.machine.memory)
        for disk in equipment.disks:
            self._loop.apart(functools.partial(writer.disk, disk.serial, disk.path), vm.check)
        still.step("disks")
        heard = canonical(vm.heard())
        names = (wire.STDOUT, wire.STDERR, wire.CONSOLE)
        streams = {name: (entry / name).stat().st_size for name in names if (entry / name).exists()}
        stood = still.stood
        if not wish.end and still is not self._paused:
            still.end()
        owner, used = self._report.owner, self._report.hypervisor
        assert owner is not None and used is not None and equipment.saver is not None
        here = likeness(self._manifest, equipment.machine, used, equipment.world, equipment.saver)

        def keep() -> Checkpoint:
            for name, length in streams.items():  # which may grow meanwhile: what was there is what counts
                with (entry / name).open("rb") as source:
                    writer.plain(name, source, length)
            writer.plain(checkpoints.HEARD, io.BytesIO(heard), len(heard))
            parts = writer.parts()
            still.step("finish")
            checkpoint = Checkpoint(
                id=writer.name, entry=self._manifest.entry, epoch=owner.epoch, cpu=self._manifest.cpu, **here,
                disks={disk.serial: disk.path.stat().st_size for disk in equipment.disks},
                parts=parts, streams=streams, executed=executed, made=time.time(), stood=stood,
                took=still.took, guest=size, held=held,
            )  # fmt: skip
            writer.keep(checkpoint)
            return checkpoint

        return self._loop.apart(keep, vm.check)


class Standstill:
    """A guest that stands still for a while. `stop`: whether to give up what it does so for."""

    def __init__(self, vm: Vm, saver: Saver, loop: Loop, stop: Callable[[], bool]) -> None:
        self._vm, self._saver, self._loop, self._stop = vm, saver, loop, stop
        self._since = now()
        self._frozen = False
        self._halted: float | None = None  # since when
        self._stood = 0.0
        self.took: dict[str, float] = {}  # seconds, by step

    @property
    def stood(self) -> float:
        """Seconds so far."""
        return self._stood if self._halted is None else now() - self._halted

    def go_on_counting(self) -> None:
        """What is done next begins now."""
        self.took, self._since = {}, now()

    def step(self, name: str) -> None:
        """What was done since the step before has this name."""
        moment = now()
        self.took[name], self._since = round(moment - self._since, 3), moment

    def begin(self, number: int) -> None:
        """Have the program stand still, then the guest, and take in all that it has said until then.

        Raises:
            NotSaved: it does not.
        """
        vm = self._vm
        vm.keep_still(True)  # a ping that is on its way is answered before this word is
        vm.frozen, self._frozen = None, True
        vm.say(f"FREEZE {number}")
        if not self._until(lambda: vm.frozen is not None and vm.frozen[0] == number, now() + _SETTLE):
            raise NotSaved(self._why(f"the guest did not answer within {_SETTLE:.0f} s"))
        if vm.frozen is None or not vm.frozen[1]:
            raise NotSaved("its program does not stand still: it waits for something in the guest's kernel")
        self.step("settle")
        self._halted = now()
        self._ask(self._saver.halt(), now() + _STOP)
        before = -1
        while vm.taken != before:
            before = vm.taken
            self._ask(self._saver.rounds(), now() + _STOP)
            vm.drain()
        if vm.exit is not None:
            raise NotSaved("its program has ended")

    def write(self, writer: Writer, length: int) -> None:
        """Write memory and devices.

        Raises:
            NotSaved, OSError: they could not be written.
        """
        from gridhypervisor.agent.checkpoints import MEMORY

        packing = writer.packing(MEMORY, length)
        try:
            self._ask(self._saver.write(packing.into), float("inf"))
        except NotSaved:
            self._vm.ask(self._saver.give_up(), self._live, now() + _STOP)
            if not self._stop():
                self._loop.apart(writer.parts, self._vm.check)  # which knows better why, if it ended first
            raise
        packing.close()
        self.step("memory")

    def end(self, *, renew: bool = False) -> None:
        """Let it go on, if it stands still; `renew`: with the time of now.

        Raises:
            Ending: it does not go on.
        """
        if self._halted is not None:
            limit = now() + _STOP
            while refusal := self._vm.ask(self._saver.proceed(), self._live, limit):
                if now() >= limit:
                    raise Ending(Reason.HYPERVISOR, f"let the guest go on after it was saved: {refusal}", "retry")
                self._live(lambda: False, now() + _AGAIN)
            self._stood, self._halted = now() - self._halted, None
            if renew:
                self._vm.renewed = None
                self._vm.say(renewal.line(time.time_ns(), os.urandom(renewal.RANDOMNESS)))
                self._live(lambda: self._vm.renewed is not None, limit)  # else its clock is behind, and it goes on
        if self._frozen:
            self._vm.say("THAW")
            self._vm.keep_still(False)
            self._frozen = False

    def _ask(self, questions: Sequence[Ask], limit: float) -> None:
        if refusal := self._vm.ask(questions, self._until, limit):
            raise NotSaved(self._why(refusal))

    def _why(self, otherwise: str) -> str:
        return "the job is to end" if self._stop() else otherwise

    def _until(self, done: Callable[[], bool], limit: float) -> bool:
        self._live(lambda: done() or self._stop(), limit)
        return done()

    def _live(self, done: Callable[[], bool], limit: float) -> bool:
        def look() -> bool:
            self._vm.check()
            return done()

        return self._loop.wait(look, limit)
