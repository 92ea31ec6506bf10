"""What a run comes to, once the program has ended and its outputs are back: a pure decision."""

from __future__ import annotations

from collections.abc import Sequence

from gridhypervisor.agent.channel import Exit
from gridhypervisor.agent.ending import Ending
from gridhypervisor.model.wire import Manifest, Outcome, Reason

SCRATCH_FULL = 1 << 20
"""Bytes: with fewer left on the guest's scratch disk, it was full for the program."""

STREAM_LIMIT = 1 << 30
"""Bytes of stdout and of stderr that are kept: a program that prints without end must not fill the spool."""


def verdict(
    manifest: Manifest, ended: Exit, *, stop: Reason | None, trouble: Ending | None, unmatched: Sequence[str],
    cut: Sequence[str] = (),
) -> Ending:  # fmt: skip
    """How the allocation ended. `stop`: why somebody wanted it to end; `trouble`: what went wrong with the outputs;
    `unmatched`: the patterns that matched nothing; `cut`: the streams of which only the beginning was kept. What
    explains most comes first."""
    missing = ", ".join(map(repr, unmatched))
    missing = f"bring out the outputs: nothing matched {missing}" if missing else ""
    if stop is not None:
        return stopped(stop, "run the program")
    if ended.code != 0 and ended.free < SCRATCH_FULL:
        return Ending(
            Reason.SCRATCH_FULL,
            f"run the program: it ended with code {ended.code}, and the guest's scratch disk of "
            f"{manifest.resources.scratch >> 20} MiB is full",
            "ask for more scratch",
        )
    if trouble is not None:
        return trouble
    if missing and ended.code == 0:
        return Ending(
            Reason.OUTPUT, missing, "mend the pattern, or the program; the outputs that were made are brought home"
        )
    words, hints = [missing], []
    if ended.out_of_memory:
        words.insert(0, f"run the program: the guest's memory of {manifest.resources.memory >> 20} MiB was not enough")
        hints.append("ask for more memory")
    if cut:
        words.append(f"keep what the program printed: only the first {STREAM_LIMIT >> 20} MiB of {' and '.join(cut)}")
        hints.append("let it write to a file that it declares as output")
    return Ending(Reason.EXITED, "; ".join(filter(None, words)), "; ".join(hints), Outcome.COMPLETED)


def stopped(reason: Reason, what: str) -> Ending:
    """The allocation was ended from outside, for this reason, while it did `what`."""
    match reason:
        case Reason.WALLTIME:
            return Ending(reason, f"{what}: the walltime is over", "ask for a longer walltime", Outcome.STOPPED)
        case Reason.UNSAVED:
            return Ending(
                reason,
                f"{what}: its batch job was over before its guest was saved",
                "see pilot.log; it goes on from its last checkpoint, or begins anew, where its retries allow",
            )
        case Reason.EVICTED:
            return Ending(
                reason,
                f"{what}: the site ended the batch job by a signal, though nobody had asked and time was left",
                "retry; ask the site's administrators whether jobs are preempted there, or the node was shut down",
            )
        case _:
            return Ending(reason, f"{what}: stopped on request", "", Outcome.STOPPED)
