"""Taking up a guest that was saved while its program ran, instead of booting one.

All is on the node and compared before the hypervisor sees a byte of it. The guest then goes on where it was saved, with
its program still standing still; it gets the time and its own randomness, and only then may the program go on. Where
that cannot be, the allocation ends with the reason `checkpoint`: whether an older one is taken, or the job begins
anew, is not a pilot's to decide.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gridhypervisor.agent import renewal
from gridhypervisor.agent.channel import Heard
from gridhypervisor.agent.checkpoints import HEARD, MEMORY, Damaged, Reader, SealedReader, sweep, wide_pipe
from gridhypervisor.agent.ending import Ending, now
from gridhypervisor.agent.hypervisor import Machine, Saver
from gridhypervisor.agent.instant import LOST, Beginning, Waiting
from gridhypervisor.agent.likeness import difference
from gridhypervisor.agent.verdict import stopped
from gridhypervisor.agent.vm import Vm
from gridhypervisor.agent.world import World
from gridhypervisor.model.wire import KEY, SEALED, Checkpoint, OperationKind, Reason, WireError, from_plain

_LIMIT = 60.0  # seconds in which a guest is taken up, and as many as its memory takes at this rate:
_RATE = 16 << 20  # bytes a second, packed, of a node that does much else
_RENEW = 60.0  # seconds for the guest's agent to answer


def refused(checkpoint: Checkpoint, why: str) -> Ending:
    """It cannot be taken up."""
    return Ending(
        Reason.CHECKPOINT, f"take up checkpoint {checkpoint.id}: {why}",
        "an older checkpoint may do, or a node like the one where it was made; else the job begins anew",
    )  # fmt: skip


def no_room(checkpoint: Checkpoint, error: OSError) -> Ending:
    return Ending(
        Reason.NODE_DISK, f"bring checkpoint {checkpoint.id} to the node: {error.strerror or error}",
        "free space on the node's scratch, or configure another scratch for the site",
    )  # fmt: skip


@dataclasses.dataclass
class TakingUp(Beginning):
    """How a guest that was saved begins."""

    checkpoint: Checkpoint | None = None
    reader: Reader | None = None
    heard: Heard | None = None

    @property
    def operation(self) -> tuple[OperationKind, int]:
        assert self.checkpoint is not None
        return OperationKind.RESUME, self.checkpoint.size

    def begin(self, vm: Vm, waiting: Waiting, run: Path, log: Callable[[str], None]) -> None:
        """From the hypervisor's start to the moment in which the program goes on.

        Raises:
            Ending: it cannot be taken up (checkpoint), or is to end.
        """
        assert self.saver is not None and self.checkpoint is not None and self.reader is not None
        assert self.heard is not None
        began, there, child = now(), 0.0, None
        source, into = wide_pipe()
        try:
            vm.recall(self.heard)
            vm.keep_still(True)
            waiting.apart(self.reader.fetch)
            child = self.reader.feed(MEMORY, into)
            os.close(into)
            limit = now() + _LIMIT + self.checkpoint.size / _RATE
            refusal = vm.ask(self.saver.read(source), waiting.until, limit)
            there = now()
            if not refusal:
                vm.say(renewal.line(time.time_ns(), os.urandom(renewal.RANDOMNESS)))
                if not waiting.until(lambda: vm.renewed is not None, now() + _RENEW):
                    refusal = f"the guest did not answer within {_RENEW:.0f} s"
                elif vm.renewed:
                    refusal = f"renew the guest's clock and randomness: {os.strerror(vm.renewed)}"
        except Ending as ending:
            if ending.reason not in LOST or vm.watchdog_lost:
                raise
            raise refused(self.checkpoint, ending.message) from ending
        except (ValueError, KeyError) as error:
            raise refused(self.checkpoint, f"its {HEARD} makes no sense: {error!r}") from error
        except Damaged as error:
            raise refused(self.checkpoint, str(error)) from error
        except OSError as error:
            raise no_room(self.checkpoint, error) from error
        finally:
            os.close(source)
            if child is None:
                os.close(into)
            else:
                child.wait()
        if refusal:
            raise refused(self.checkpoint, refusal)
        vm.keep_still(False)
        vm.say("THAW")
        log(f"checkpoint {self.checkpoint.id} is taken up in {there - began:.2f} s, renewed in {now() - there:.2f} s")


def prepare(
    checkpoint: Checkpoint, here: Mapping[str, object], machine: Machine, saver: Saver | None, world: World,
    folder: Path, run: Path, entry: Path, stop: Callable[[], bool], *, sealed: bool,
) -> TakingUp:  # fmt: skip
    """Bring all of a checkpoint to this node: the machine's disks are made anew, the entry has what was printed.
    `here`: what must be alike; `folder`: the account's checkpoints; `sealed`: it came with the entry.

    Raises:
        Ending: it cannot be taken up here (checkpoint), there is no room (node-disk), or somebody wants it to end.
    """
    began = now()
    if why := difference(checkpoint, dict(here)):
        raise refused(checkpoint, why)
    sweep(folder)
    disks = {disk.serial: disk.path for disk in machine.disks if not disk.readonly}
    if disks.keys() != checkpoint.disks.keys():
        raise refused(checkpoint, f"its disks are {sorted(checkpoint.disks)}, the machine's {sorted(disks)}")
    try:
        place = run / "checkpoint"
        reader = Reader(folder, checkpoint, place, world, stop) if not sealed else SealedReader(
            entry / SEALED, _key(entry), checkpoint, place, world, stop
        )  # fmt: skip
        reader.bring()
        reader.unpack(disks)
        reader.lay(entry)
        heard = from_plain(Heard, json.loads(reader.text(HEARD)))
    except (Damaged, WireError, ValueError) as error:
        raise refused(checkpoint, str(error)) from error
    except OSError as error:
        if stop():
            raise stopped(Reason.CANCELLED, "take up a checkpoint") from error
        raise no_room(checkpoint, error) from error
    resume = dataclasses.replace(machine, start="resume")
    boot = f"taken up from checkpoint {checkpoint.id}"
    return TakingUp(
        resume, boot, machine, saver, checkpoint=checkpoint, reader=reader, heard=heard, bringing=now() - began
    )  # fmt: skip


def _key(entry: Path) -> bytes:
    """What opens the copy that came with an entry. Raises: Damaged."""
    try:
        return bytes.fromhex((entry / KEY).read_text())
    except (OSError, ValueError) as error:
        raise Damaged(f"the key of its copy cannot be read: {error}") from error
