"""What sites and nodes publish: one table of attributes, the words of `requirements` and `rank`.

A *place* is a site, or a node of one; a node's row repeats what its site publishes. What is not known of a place is
undefined there, never zero: an expression that turns on it then does not match.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Type(enum.Enum):
    """What a value may be, in a user's words. NUMBER: whole here and fractional there. NOTHING: undefined or error."""

    BOOL = "true or false"
    INT = "a whole number"
    REAL = "a number"
    NUMBER = "a whole number or a fraction"
    STRING = "text"
    LIST = "a list"
    NOTHING = "nothing"

    @property
    def numeric(self) -> bool:
        """Whether it can be reckoned with; true counts as 1, false as 0."""
        return self in (Type.BOOL, Type.INT, Type.REAL, Type.NUMBER)

    @property
    def coded(self) -> bool:
        """Whether a column of it holds numbers that stand for values in a table."""
        return self in (Type.STRING, Type.LIST)


class Nothing(enum.Enum):
    """The two values of the ClassAd language that are no value."""

    UNDEFINED = "undefined"
    ERROR = "error"


Scalar = bool | int | float | str | tuple[str, ...] | Nothing
"""A place's value of one attribute."""


class Of(enum.Enum):
    SITE = "site"  # the same in the rows of all its nodes
    NODE = "node"  # in a site's own row: of the best node that one job may get there
    JOB = "job"  # differs from job to job: given with the question, see `given` in `match`


@dataclass(frozen=True)
class Attribute:
    name: str
    type: Type
    unit: str
    of: Of
    meaning: str
    source: str  # what says so


def _table() -> Iterable[Attribute]:
    s, n, j = Of.SITE, Of.NODE, Of.JOB
    text, whole, real, yes, several = Type.STRING, Type.INT, Type.REAL, Type.BOOL, Type.LIST
    listing, probe, own = "the batch system", "the probe of a node", "this installation"
    ran = "jobs that ran there, and its probe"
    for name, kind, unit, of, meaning, source in (
        ("Site", text, "", s, "the site's name", "its configuration"),
        ("Host", text, "", s, "the front-end's name, as ssh knows it; not known of this machine", "its configuration"),
        ("BatchSystem", text, "", s, "fork, slurm, gridengine, htcondor or pbs", "its configuration"),
        ("Queue", text, "", s, "the partition or queue that jobs go to", "its configuration"),
        ("Up", yes, "", s, "whether the site answers", own),
        ("Draining", yes, "", s, "whether its user wants no new work there", own),
        ("Health", text, "", s, "up, busy, draining, login or silent", own),
        ("Nodes", whole, "", s, "nodes that the queue has", listing),
        ("FreeNodes", whole, "", s, "nodes with nothing on them", listing),
        ("SiteCpus", whole, "", s, "cores of all nodes together", listing),
        ("SiteFreeCpus", whole, "", s, "cores of all nodes together that are free", listing),
        ("QueueLength", whole, "jobs", s, "jobs that wait there, anybody's", listing),
        ("QueueWait", real, "s", s, "how long a job submitted now is predicted to wait", own),
        ("QueueWaitMeasured", real, "s", s, "how long our latest jobs there waited, in the middle", own),
        ("MaxWalltime", whole, "s", s, "the longest walltime that a job may ask for", listing),
        ("MaintenanceIn", whole, "s", s, "until the next maintenance begins; negative while it lasts", listing),
        ("MaxJobs", whole, "jobs", s, "our jobs that may be there at once, queued and running", "its configuration"),
        ("Jobs", whole, "jobs", s, "our jobs that are there", own),
        ("FreePlaces", whole, "jobs", s, "MaxJobs less Jobs", own),
        ("CachedImages", whole, "MiB", s, "size of the images in the account's cache", own),
        ("Failures", whole, "", s, "failed attempts there in the past day", own),
        ("Node", text, "", n, "the node's name; not known in a site's own row", listing),
        ("NodeState", text, "", n, "idle, mixed, allocated, down or drained", listing),
        ("Cpus", whole, "", n, "cores of the node", listing),
        ("FreeCpus", whole, "", n, "cores of the node that are free", listing),
        ("Memory", whole, "MiB", n, "memory of the node", listing),
        ("FreeMemory", whole, "MiB", n, "memory of the node that is free", listing),
        ("Disk", whole, "MiB", n, "size of the node's scratch folder", probe),
        ("FreeDisk", whole, "MiB", n, "what is free of it", probe),
        ("Arch", text, "", n, "the processor's architecture, as `uname -m` says it", probe),
        ("OpSys", text, "", n, "the operating system: Linux", probe),
        ("Kernel", text, "", n, "the kernel's release", probe),
        ("CpuModel", text, "", n, "the processor's model", probe),
        ("CpuMHz", whole, "MHz", n, "the processor's clock", probe),
        ("Hypervisors", several, "", n, "those that have run a guest there: of kvm, uml and tcg", probe),
        ("Acceleration", text, "", n, "the fastest of them", probe),
        ("KvmRate", real, "", n, "speed of a guest under KVM; 1 is the node's own", ran),
        ("UmlRate", real, "", n, "the same under User-Mode Linux, as measured", ran),
        ("TcgRate", real, "", n, "the same under QEMU's emulator, as measured", ran),
        ("ImageCached", yes, "", j, "whether all of the job's image is in the account's cache", own),
        ("ImageMissing", whole, "MiB", j, "what of the job's image is not there yet", own),
        ("ReadyTime", real, "s", j, "how long until its guest is predicted to be ready, but for the queue", own),
    ):
        yield Attribute(name, kind, unit, of, meaning, source)


ATTRIBUTES: dict[str, Attribute] = {attribute.name: attribute for attribute in _table()}
_BY_LOWER = {name.lower(): attribute for name, attribute in ATTRIBUTES.items()}

GRIDWAY: dict[str, str] = {
    "HOSTNAME": "Host ?: Site",
    "ARCH": "Arch",
    "OS_NAME": "OpSys",
    "OS_VERSION": "Kernel",
    "CPU_MODEL": "CpuModel",
    "CPU_MHZ": "CpuMHz",
    "CPU_FREE": "FreeCpus * 100",  # GridWay's information drivers publish per cent of one core
    "CPU_SMP": "Cpus",
    "NODECOUNT": "Nodes",
    "SIZE_MEM_MB": "Memory",
    "FREE_MEM_MB": "FreeMemory",
    "SIZE_DISK_MB": "Disk",
    "FREE_DISK_MB": "FreeDisk",
    "LRMS_NAME": "BatchSystem",
    "LRMS_TYPE": "BatchSystem",
    "QUEUE_NAME": "Queue",
    "QUEUE_NODECOUNT": "SiteCpus",  # slots, not machines
    "QUEUE_FREENODECOUNT": "SiteFreeCpus",
    "QUEUE_MAXTIME": "MaxWalltime / 60",  # minutes
    "QUEUE_MAXCOUNT": "Cpus",  # of one job, and one job is on one node
    "QUEUE_MAXRUNNINGJOBS": "MaxJobs",
    "QUEUE_MAXJOBSINQUEUE": "MaxJobs",
}
"""GridWay's variables, each with the ClassAd expression that says the same here."""

GRIDWAY_ONLY = ("FORK_NAME", "QUEUE_MAXCPUTIME", "QUEUE_STATUS", "QUEUE_DISPATCHTYPE", "QUEUE_PRIORITY")
"""GridWay's variables that have no equivalent here."""


def attribute(name: str) -> Attribute | None:
    """The attribute of that name, in whatever case, as in all ClassAds; None: nobody publishes it."""
    return _BY_LOWER.get(name.lower())


def nearest(word: str, known: Iterable[str]) -> str:
    """What was probably meant, in words for the end of a message; empty if nothing is near."""
    by_lower = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_lower, 1, cutoff=0.5)
    return f"did you mean {by_lower[near[0]]}?" if near else ""
