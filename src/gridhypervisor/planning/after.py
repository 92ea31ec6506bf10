"""Decides whether a job may begin that names others to run after. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from gridhypervisor.model.commit import Tally
from gridhypervisor.model.records import Group, Job, JobState

Found = Job | Group | tuple[Group, Tally] | None
"""What there is of a name: a job, a group, one that has ended with how its members did, or nothing."""


def what_of(found: Iterable[tuple[str, Found]]) -> tuple[str, str]:
    """Why the job is held, and why it can never run; empty: it is not, it can.

    Well means: the program, or every task's, ended with 0.
    """
    held = ""
    for name, what in found:
        match what:
            case None:
                return "", f"it was to run after {name}, which is there no more"
            case Job(state=JobState.DONE, exit_code=0):
                pass
            case Job(state=state, exit_code=code) if state.final:
                how = f"ended with exit code {code}" if state is JobState.DONE else f"is {state}"
                return "", f"it was to run after {name}, which {how}"
            case (group, _) if group.workflow and group.state is not JobState.DONE:
                return "", f"it was to run after {name}, which is {group.state}"
            case (group, tally) if not group.workflow and not (
                group.state is JobState.DONE and tally.well == group.made
            ):
                return "", f"it was to run after {name}, of which {tally.well} of {group.made} tasks ended well"
            case (_, _):
                pass
            case Job() | Group():
                held = held or f"it is to run after {name}, which has not ended"
    return held, ""
