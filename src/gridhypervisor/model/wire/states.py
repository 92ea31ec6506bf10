"""The closed sets of words: phases of a job's life, how a pilot ended and why."""

from __future__ import annotations

import enum


class Phase(enum.StrEnum):
    """GridWay's phases, in the order in which a job lives through them; the middle ones are the pilot's to time.

    `WAIT` is the controller's own queue, `QUEUE` the site's. `PREPARE` is what the pilot does on the node before the
    guest exists (unpack the bundle, verify and copy the image); with BOOT to SHUT_DOWN it makes up the *wrapper*. Only
    members of a gang live through `GATHER`.
    """

    WAIT = "wait"
    PROLOG = "prolog"
    QUEUE = "queue"
    PREPARE = "prepare"
    BOOT = "boot"
    STAGE_IN = "stage_in"
    GATHER = "gather"  # the guest is ready, and waits until all of its gang are
    EXECUTE = "execute"
    STAGE_OUT = "stage_out"
    SHUT_DOWN = "shut_down"
    EPILOG = "epilog"


WRAPPER = (Phase.PREPARE, Phase.BOOT, Phase.STAGE_IN, Phase.EXECUTE, Phase.STAGE_OUT, Phase.SHUT_DOWN)
"""The phases that the pilot times itself, on its own clock."""


class Outcome(enum.StrEnum):
    """How an allocation's pilot ended."""

    COMPLETED = "completed"  # the program ran to an end of its own; see exit_code
    STOPPED = "stopped"  # ended from outside: walltime, cancelled; outputs so far are in out/
    FAILED = "failed"  # the VM, the node or the site failed it; see reason
    YIELDED = "yielded"  # somebody else owns the allocation; nothing was run


class Reason(enum.StrEnum):
    """Why. Closed and total: every ending has exactly one."""

    EXITED = "exited"  # the program ended, with any exit code
    WALLTIME = "walltime"
    CANCELLED = "cancelled"
    FUTILE = "futile"  # it was to run after another job, which did not end well
    EVICTED = "evicted"  # the site ended the job by a signal, though nobody had asked and time was left
    NOT_OWNER = "not-owner"  # the allocation was revoked, or another run of this pilot has it
    MANIFEST = "manifest"  # the manifest cannot be read or is of another protocol version
    BUNDLE = "bundle"  # what travels is damaged, or cannot run on this node
    IMAGE = "image"  # the image's bytes are not those of its digest, or are absent
    BOOT = "boot"  # the guest did not report ready in time, or said that it cannot boot
    GUEST_PANIC = "guest-panic"
    GUEST_SILENT = "guest-silent"  # the guest stopped answering
    HYPERVISOR = "hypervisor"  # the hypervisor could not start, or died
    PILOT = "pilot"  # the pilot died or was stopped; said by the watchdog
    INPUT = "input"  # an input is missing or damaged at the site
    OUTPUT = "output"  # a declared output was not made, or could not be packed
    SCRATCH_FULL = "scratch-full"  # the guest's scratch disk is full: ask for more
    NODE_DISK = "node-disk"  # the node's scratch is full
    RELAY = "relay"  # the node did not reach the relay, which was to bring it everything; said by the controller
    LOST = "lost"  # the batch system says it ended and no sentinel came; said by the controller
    SUBMIT = "submit"  # the batch system refused the job; said by the controller
    BUSY = "busy"  # the batch system took no jobs just then; said by the controller
    GANG = "gang"  # another member of its gang failed, or was not ready in time; said by the controller
    GRANT = "grant"  # `on_silence: replace`, and the service was not heard from in time; said by pilot or watchdog
    SUSPENDED = "suspended"  # on request: its guest was saved, and goes on from there; see the record's checkpoint
    HAND_OVER = "hand-over"  # its batch job was nearly over: its guest was saved, and goes on in another
    UNSAVED = "unsaved"  # its batch job was over before its guest was saved, to go on in another
    CHECKPOINT = "checkpoint"  # the saved guest cannot be taken up: damaged, or of another hypervisor or processor
    LENDER = "lender"  # the site's lender does not allow it, or not now
    STAGING = "staging"  # inputs or results could not be moved; said by the controller
    WAITED = "waited"  # too long in the site's queue, and another site could take it; said by the controller
    SLOW = "slow"  # it ran far slower than predicted, and another site could take it; said by the controller
    MOVED = "moved"  # to a better place, or because somebody asked


RETRYABLE = frozenset(
    {
        Reason.EVICTED,
        Reason.BUNDLE,
        Reason.IMAGE,
        Reason.GUEST_SILENT,
        Reason.HYPERVISOR,
        Reason.PILOT,
        Reason.NODE_DISK,
        Reason.RELAY,
        Reason.LOST,
        Reason.SUBMIT,
        Reason.BUSY,
        Reason.GANG,
        Reason.GRANT,
        Reason.LENDER,
        Reason.CHECKPOINT,
        Reason.UNSAVED,
    }
)
"""Reasons that another node or another try may mend. What the program did, or the user asked, is never among them."""

MOVES = frozenset({Reason.WAITED, Reason.SLOW, Reason.MOVED})
"""Reasons for which an attempt ends so that the job may go on at another site: none is a failure of the job's."""
