"""Makes jobs of files: a job's YAML, or a template of GridWay's with what it cannot do here told. Text in, spec out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import PurePath

import msgspec

from gridhypervisor.model import gridway
from gridhypervisor.model.expressions import ExpressionError, rank_of_gridway, requirements_of_gridway
from gridhypervisor.model.gridwayjob import Extras, to_job
from gridhypervisor.model.spec import LEAST_INTERVAL, GangSpec, JobSpec, MovesSpec, problems
from gridhypervisor.model.yamlspec import Problem, SpecError, load

NOT_YET = {
    "checkpoint_url": "restart files, and checkpoints of its guest, go to the service's own machine",
}
"""What of a template is passed over, by its field in `Extras`, and what is so instead."""


def template_job(path: str, text: str, image: str) -> tuple[JobSpec, list[Problem]]:
    """The job of a template, and warnings of what does not apply. The files that it names are in its folder.

    Raises:
        SpecError: it is no template, or none that can be run; names every problem with its line.
    """
    template = gridway.parse(path, text)
    made = to_job(template, image)
    extras = made.extras
    folder = PurePath(path).parent
    spec = msgspec.structs.replace(
        made.spec,
        requirements=_translated(template, "requirements", extras.requirements, requirements_of_gridway),
        rank=_translated(template, "rank", extras.rank, rank_of_gridway),
        deadline=f"{extras.deadline}s" if extras.deadline else None,
        after=extras.after,
        gang=GangSpec(extras.gang) if extras.gang > 1 else None,
        restart_files=extras.restart_files if extras.gang <= 1 else (),
        checkpoint_interval=_interval(extras),
        copy_checkpoints=bool(extras.checkpoint_url) and extras.gang <= 1,
        stdout=_beside(folder, extras.stdout),
        stderr=_beside(folder, extras.stderr),
        destinations={name: _beside(folder, place) for name, place in extras.destinations},
        moves=MovesSpec(
            wait=_seconds(extras.suspension_timeout),
            rate=min(extras.cpuload_threshold, 100) / 100 if extras.cpuload_threshold is not None else None,
            look=_seconds(extras.rescheduling_interval),
            settled=_seconds(extras.rescheduling_threshold),
        ),
    )
    ignored = [template.problem(field, "is passed over", NOT_YET[field]) for field in _given(extras)]
    if extras.checkpoint_interval and extras.gang > 1:
        ignored.append(template.problem("checkpoint_interval", "is passed over", "members of a gang are not saved"))
    if extras.restart_files and extras.gang > 1:
        ignored.append(template.problem("restart_files", "is passed over", "the members of a gang begin anew together"))
    return spec, [*made.warnings, *ignored]


@lru_cache(256)  # thousands of nodes may have the same file
def node_job(path: str, text: str, image: str) -> JobSpec:
    """The job of a workflow's node: a template if the file's name ends with .jt.

    Raises:
        SpecError: it describes none, or an array or a gang; names every problem with its line.
    """
    if path.endswith(".jt"):
        if not image:
            raise SpecError(
                [Problem(path, 0, 0, "", "a template does not say which image to boot", "give it: --image")]
            )
        spec = template_job(path, text, image)[0]
    else:
        spec = load(path, text, JobSpec, problems)
    if spec.array or spec.gang is not None:
        what = "array" if spec.array else "gang"
        raise SpecError([Problem(path, 0, 0, what, "a node is one job", "make each task a node, or run it apart")])
    return spec


def _translated(template: gridway.Template, field: str, text: str, translate: Callable[[str], str]) -> str:
    """An expression in GridWay's language as a ClassAd; empty, where there is none."""
    try:
        return translate(text) if text else ""
    except ExpressionError as error:
        raise SpecError([template.problem(field, str(error))]) from error


def _given(extras: Extras) -> Iterator[str]:
    return (field for field in NOT_YET if getattr(extras, field))


def _interval(extras: Extras) -> str | None:
    """How often its guest is saved; a template may ask for more than that is good for."""
    return (
        f"{max(LEAST_INTERVAL, extras.checkpoint_interval)}s"
        if extras.checkpoint_interval and extras.gang <= 1
        else None
    )


def _seconds(count: int | None) -> str | None:
    return f"{count}s" if count is not None else None


def _beside(folder: PurePath, place: str) -> str:
    return str(folder / place) if place else ""
