"""What a run comes to, once the program has ended and its outputs are back: a pure decision."""

from __future__ import annotations

from collections.abc import Sequence

from gridhypervisor.agent.channel import Exit
from gridhypervisor.agent.ending import Ending
from gridhypervisor.model.wire import Manifest, Outcome, Reason

SCRATCH_FULL = 1 << 20
"""Bytes: with fewer left on the guest's scratch disk, it was full for the program."""


def verdict(
    manifest: Manifest, ended: Exit, *, stop: Reason | None, trouble: Ending | None, unmatched: Sequence[str]
) -> Ending:
    """How the allocation ended. `stop`: why somebody wanted it to end; `trouble`: what went wrong with the outputs;
    `unmatched`: the patterns that matched nothing. What explains most comes first."""
    missing = ", ".join(map(repr, unmatched))
    missing = f"bring out the outputs: nothing matched {missing}" if missing else ""
    if stop is Reason.WALLTIME:
        return Ending(stop, "run the program: the walltime is over", "ask for a longer walltime", Outcome.STOPPED)
    if stop is not None:
        return Ending(stop, "run the program: stopped on request", "", Outcome.STOPPED)
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
    if ended.out_of_memory:
        short = f"run the program: the guest's memory of {manifest.resources.memory >> 20} MiB was not enough"
        missing = f"{short}; {missing}" if missing else short
    return Ending(Reason.EXITED, missing, "ask for more memory" if ended.out_of_memory else "", Outcome.COMPLETED)
