"""The closed sets of words of our own: what a job, an allocation, an effect and a site can be. Those that cross to a
site are in `wire.states`. Apart from the records, because every start of `ghv` waits for what it imports.
"""

from __future__ import annotations

import enum


class JobState(enum.StrEnum):
    """What a user sees. The first six are ways of being alive; the last three are ends."""

    PENDING = "pending"  # in our own queue: no site chosen yet
    PROLOG = "prolog"  # bundle, image and inputs go to the site
    QUEUED = "queued"  # in the site's queue
    RUNNING = "running"  # the pilot has it: see the phase
    EPILOG = "epilog"  # results come home
    SUSPENDED = "suspended"  # no site runs it or is to: it waits for its user's word to go on
    DONE = "done"  # the program ran to its end; see the exit code
    FAILED = "failed"  # see the reason, the message and the hint
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class Wish(enum.StrEnum):
    """What the user wants of a job. Between running and being suspended it goes to and fro; then it only grows."""

    RUN = "run"
    SUSPEND = "suspend"  # to stand still, and to keep what it has done
    CANCEL = "cancel"
    DELETE = "delete"

    @property
    def ends(self) -> bool:
        """Whether the job is to end."""
        return self in (Wish.CANCEL, Wish.DELETE)


class InfrastructureState(enum.StrEnum):
    """How a virtual infrastructure is; `records.Standing` has the diagram. The last three are ends."""

    CREATING = "creating"  # for the first time not all of its VMs are ready yet
    READY = "ready"  # all of them are
    CHANGING = "changing"  # it was changed: VMs are made, or ended
    DEGRADED = "degraded"  # one is missing, and it is left so, or another is on its way
    UNDOING = "undoing"  # its creation failed: what there is of it is ended
    ENDING = "ending"  # its lease is over, or its user wants it to end
    FAILED = "failed"  # its creation was undone
    EXPIRED = "expired"  # its lease is over
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (InfrastructureState.FAILED, InfrastructureState.EXPIRED, InfrastructureState.CANCELLED)

    @property
    def transient(self) -> bool:
        """Whether it has a deadline of its own, or ends as soon as the sites let it."""
        return not self.final and self not in (InfrastructureState.READY, InfrastructureState.DEGRADED)


class AllocationState(enum.StrEnum):
    PLANNED = "planned"  # the intent is written; the prolog may be under way; nothing was submitted
    SUBMITTING = "submitting"  # the intent to submit is written; whether the site has it is not known
    QUEUED = "queued"  # the batch system has it
    RUNNING = "running"  # a pilot took the ownership
    FENCING = "fencing"  # nobody lets its guest run any more: waiting until its last grant is surely over
    FENCED = "fenced"  # that is over: it can never run a guest again, whatever its silent site or node has of it
    ENDED = "ended"  # how it ended is known; results may still be at the site
    COLLECTED = "collected"  # the results are home
    REVOKING = "revoking"  # the controller is about to take the ownership
    REVOKED = "revoked"  # the controller took the ownership (or nothing was ever submitted): it can never run
    CLEANED = "cleaned"  # nothing of it is left at the site


class ActionKind(enum.StrEnum):
    """The effects that a plan may ask for. Each is idempotent and named after the entry that it acts on."""

    PROLOG = "prolog"  # bundle, image, inputs and manifest to the site
    SUBMIT = "submit"  # the pilot job to the batch system; once per allocation, ever
    REVOKE = "revoke"  # take the ownership, or learn who has it
    REQUEST_CANCEL = "request-cancel"  # ask the pilot to stop
    BATCH_CANCEL = "batch-cancel"  # ask the batch system to end the job
    BEGIN = "begin"  # tell the pilot that all of its gang are ready, and who they are
    SAVE = "save"  # have the pilot save its guest, to end then or to go on
    COPY = "copy"  # bring a copy of a checkpoint to the service's own machine
    ERASE = "erase"  # remove such a copy, and its key first
    LOOK = "look"  # at the entry, through the site's file system, after a given time
    COLLECT = "collect"  # results to the user's folder, logs to the service's
    CLEAN = "clean"  # remove the entry from the site, and checkpoints of it that nobody knows
    DISCARD = "discard"  # remove checkpoints from the site


class CheckpointState(enum.StrEnum):
    KEPT = "kept"  # it is at its site, and as good as when it was made for all that is known
    REFUSED = "refused"  # an attempt could not go on from it: it is not tried again unless its user says so
    DOOMED = "doomed"  # nobody needs it any more: it is removed as soon as its site answers
    GONE = "gone"  # it is not there any more


class CopyState(enum.StrEnum):
    """What there is of a checkpoint on the service's own machine."""

    NONE = "none"
    WANTED = "wanted"  # it is to be made, or is being made
    KEPT = "kept"  # it was whole, and what the checkpoint's record says, when it was made
    REFUSED = "refused"  # an attempt could not go on from it


class SiteHealth(enum.StrEnum):
    UP = "up"  # a relay of ours answers there
    CONNECTING = "connecting"  # for the first time, or after a change of its configuration
    UNREACHABLE = "unreachable"  # tried again by itself
    REFUSED = "refused"  # it answers, and cannot be used as it is configured; tried again by itself
    AUTH_NEEDED = "auth-needed"  # a person has to log in, or to mend how: not tried again before


class SiteKind(enum.StrEnum):
    FORK = "fork"
    SLURM = "slurm"
    HTCONDOR = "htcondor"
    GRIDENGINE = "gridengine"
    PBS = "pbs"
