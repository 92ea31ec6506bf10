"""Decides when the tasks of an array become jobs, what job each becomes, and how the array has ended. Pure.

A gang is an array of members, which are made all at once: they may only start together.

A task is made when it may start soon: so a long array is cheap while most of it waits, and stands in nobody's way.
"""

from __future__ import annotations

from collections.abc import Mapping

from gridhypervisor.model.arrays import TaskArray, home_of, task, task_values
from gridhypervisor.model.commit import Birth, Tally
from gridhypervisor.model.records import Event, Group, Job, JobState, Vm, Wish

AHEAD = 256
"""Tasks of an array that wait for a site at a time; the next are made as these find one."""


def to_make(array: TaskArray, made: int, standing: Mapping[JobState, int]) -> int:
    """How many tasks are to be made now. `standing`: those that have been and have not ended, by state."""
    room = AHEAD - standing.get(JobState.PENDING, 0)
    if array.at_once is not None:
        room = min(room, array.at_once - sum(standing.values()))
    return max(0, min(room, len(array) - made))


def births(group: Group, array: TaskArray, count: int, number: int, now: float) -> list[Birth]:
    """The next so many tasks as jobs, the first of them with this number."""
    return [
        _birth(group, array, array[group.made + place], f"{number + place}", now)
        for place in range(min(count, len(array) - group.made))
    ]


def _birth(group: Group, array: TaskArray, number: int, job: str, now: float) -> Birth:
    assert group.spec is not None and group.image is not None, f"{group.id} is no array"
    values = task_values(
        array, number, array_id=group.id, job_id=f"j{job}", sweep=group.spec.param, arch=group.image.arch
    )
    spec = task(group.spec, values)
    made = Job(
        id=f"j{job}",
        owner=group.owner,
        project=group.project,
        name=f"{group.name}[{number}]",
        spec=spec,
        destination=home_of(group.spec, group.destination, values),
        folder=group.folder,
        image=group.image,
        image_digest=group.image_digest,
        created=now,
        group=group.id,
        member=str(number),
        version=1,
    )
    vm = Vm(f"v{job}", group.owner, group.project, made.id, version=1)
    event = Event(now, group.owner, group.project, made.id, "job", made.id, "", JobState.PENDING, message=group.id)
    return Birth(made, vm, event)


def verdict(tally: Tally, wish: Wish) -> JobState:
    """How an array ended of which no task is left to run."""
    if wish is not Wish.RUN:
        return JobState.CANCELLED
    failed = tally.states.get(JobState.FAILED, 0) + tally.states.get(JobState.CANCELLED, 0)
    return JobState.FAILED if failed else JobState.DONE
