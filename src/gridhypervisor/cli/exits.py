"""What `ghv` exits with. The numbers are published in docs/cli.md and stay what they are.

A job whose program ran to its end gives the program's own code, whatever it is. So a code alone may be ambiguous;
`ghv show JOB` (with `-o json`: `job.state`, `job.reason`, `job.exit_code`) is not.
"""

from __future__ import annotations

import enum
from typing import assert_never

from gridhypervisor.model.states import JobState
from gridhypervisor.model.views import JobView, Problem
from gridhypervisor.model.wire import Reason


class Exit(enum.IntEnum):
    """`sysexits.h` where it has a word for it; 124 and 130 as `timeout` and shells have them."""

    OK = 0
    USAGE = 64  # the command line is wrong
    INVALID = 65  # a job file, a recipe or a request is wrong
    MISSING = 66  # what was named is not there: a file, an input, an image, a job, a site
    UNAVAILABLE = 69  # the service cannot be reached or started, or cannot do it now
    INTERNAL = 70  # a fault in GridHypervisor
    NO_RESULTS = 73  # a declared output was not made, or could not be taken out of the guest
    TRANSFER = 74  # inputs or results could not be moved to or from the site
    INFRASTRUCTURE = 75  # the site, the node or the hypervisor failed, retries included; worth trying again
    GUEST = 76  # the virtual machine failed: boot, kernel panic, silence, scratch disk full
    REFUSED = 77  # not permitted
    CONFLICT = 78  # the object's state does not allow it, or that of what a job was to run after
    WALLTIME = 124  # the job was stopped at its walltime
    CANCELLED = 130  # the job was cancelled, or ghv interrupted


def of_job(job: JobView) -> int:
    """The exit code for a job that has ended."""
    if job.state is JobState.DONE and job.exit_code is not None:
        return job.exit_code
    if job.state is JobState.CANCELLED:
        return Exit.CANCELLED
    return of_reason(job.reason, job.exit_code)


def of_reason(reason: Reason | None, exit_code: int | None) -> int:
    match reason:
        case None:
            return Exit.INTERNAL
        case Reason.EXITED:
            return Exit.INTERNAL if exit_code is None else exit_code
        case Reason.WALLTIME:
            return Exit.WALLTIME
        case Reason.CANCELLED:
            return Exit.CANCELLED
        case Reason.MANIFEST:
            return Exit.INTERNAL
        case Reason.WAITED | Reason.SLOW | Reason.MOVED | Reason.SUSPENDED | Reason.HAND_OVER:
            return Exit.INTERNAL  # an attempt may end so, and its job goes on
        case Reason.INPUT:
            return Exit.MISSING
        case Reason.FUTILE:
            return Exit.CONFLICT
        case Reason.OUTPUT:
            return Exit.NO_RESULTS
        case Reason.STAGING:
            return Exit.TRANSFER
        case Reason.BOOT | Reason.GUEST_PANIC | Reason.GUEST_SILENT | Reason.SCRATCH_FULL:
            return Exit.GUEST
        case (
            Reason.EVICTED
            | Reason.NOT_OWNER
            | Reason.BUNDLE
            | Reason.IMAGE
            | Reason.HYPERVISOR
            | Reason.PILOT
            | Reason.NODE_DISK
            | Reason.RELAY
            | Reason.LOST
            | Reason.SUBMIT
            | Reason.BUSY
            | Reason.GANG
            | Reason.GRANT
            | Reason.LENDER
            | Reason.CHECKPOINT
            | Reason.UNSAVED
        ):
            return Exit.INFRASTRUCTURE
    assert_never(reason)


def of_problem(problem: Problem) -> int:
    """The exit code for an answer of the service that is an error."""
    return {
        "not-found": Exit.MISSING,
        "invalid": Exit.INVALID,
        "conflict": Exit.CONFLICT,
        "refused": Exit.REFUSED,
        "unavailable": Exit.UNAVAILABLE,
    }.get(problem.code, Exit.INTERNAL)
