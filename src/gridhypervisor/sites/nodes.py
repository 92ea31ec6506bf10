"""What the batch systems' listings of their nodes say: text in, rows out. Which command shows what, the drivers know.

A node takes work unless its state says otherwise; cores that one which takes none has left are not free.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gridhypervisor.model.capacity import NodeRow, NodeState, state_of
from gridhypervisor.model.wire import CommandResult

# -- Slurm -------------------------------------------------------------------------------------------------------------

SINFO = ("NodeList:|", "StateLong:|", "CPUsState:|", "Memory:|", "AllocMem:|", "Partition:|")
"""The columns that are read."""

RESERVATIONS = """export SLURM_TIME_FORMAT=%s
scontrol show config | { read -r words && echo "$words"; } && exec scontrol --oneliner show reservation"""
"""First `Configuration data as of` now, then the reservations: seconds since the epoch, all on Slurm's own clock."""

NODE_STATES = {
    **dict.fromkeys(("down", "fail", "failing", "error", "unknown", "future", "inval", "powered_down", "powering_down"),
                    NodeState.DOWN),
    **dict.fromkeys(("drain", "drained", "draining", "maint", "reserved", "blocked"), NodeState.DRAINED),
}  # fmt: skip
"""Of those that take no work. Another word is of one that does, if it stands alone; see `_sinfo_row`."""


def sinfo_rows(text: str, wanted: set[str]) -> list[NodeRow]:
    """The nodes of these partitions, or of the default one; each once, however many partitions it is in."""
    rows: dict[str, NodeRow] = {}
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != len(SINFO) + 1:
            continue
        *own, partition, _ = fields
        if partition.rstrip("*") in wanted if wanted else partition.endswith("*"):
            row = _sinfo_row(*own)
            rows[row.name] = row
    return list(rows.values())


def _sinfo_row(name: str, word: str, cores: str, memory: str, taken: str) -> NodeRow:
    """A node as sinfo shows it. A mark behind its state (`*`: it does not answer) says that it takes no work just now,
    but for those of power saving: such a node is started when a job comes."""
    base = word.rstrip("*~#!%$@^-+&")
    marks = word[len(base) :]
    _, idle, _, total = (_digits(each) for each in cores.split("/"))
    state = NODE_STATES.get(base)
    if state is None:
        state = NodeState.DOWN if "*" in marks else NodeState.DRAINED if set(marks) & set("$@^%") else None
    if state is None:
        state = state_of(total, idle)
    size = _digits(memory) << 20
    free = max(0, size - (_digits(taken) << 20))
    return NodeRow(name, state, total, idle if state.takes else 0, size, free if state.takes else 0)


def maintenance(result: CommandResult) -> float | None:
    """Seconds until the first reservation for maintenance begins; negative where it has begun."""
    first, _, rest = result.stdout.partition("\n")
    as_of = re.search(r"(\d+)\s*$", first)
    if result.code != 0 or as_of is None:
        return None
    now, found = int(as_of[1]), []
    for line in rest.splitlines():
        fields = dict(word.partition("=")[::2] for word in line.split())
        begins, ends = fields.get("StartTime", ""), fields.get("EndTime", "")
        if "MAINT" in fields.get("Flags", "").split(",") and begins.isdigit() and ends.isdigit() and int(ends) > now:
            found.append(float(int(begins) - now))
    return min(found, default=None)


# -- Grid Engine -------------------------------------------------------------------------------------------------------


def qhost_rows(text: str, wanted: set[str]) -> Iterator[NodeRow]:
    """The nodes of an answer of `qhost -q` that have one of these queues, or any. A queue that any letter stands for
    begins no jobs now; one with `a`, for its load, soon may."""
    column: dict[str, int] = {}
    host: list[str] = []
    queues: list[tuple[str, int, int, str]] = []  # name, slots taken and in all, letters of its state

    def node() -> Iterator[NodeRow]:
        ours = [each for each in queues if each[0] in wanted or not wanted]
        if not ours:
            return
        total = sum(slots for _, _, slots, _ in ours)
        cpus = int(host[column["NCPU"]]) if host[column["NCPU"]].isdigit() else total
        taken = sum(used for _, used, _, _ in queues)  # what other queues have given away is not free either
        open_ = sum(slots - used for _, used, slots, letters in ours if not letters)
        cpus = min(cpus, total)
        free = max(0, min(cpus - taken, open_))
        size, used = (qhost_bytes(host[column[key]]) for key in ("MEMTOT", "MEMUSE"))
        state = state_of(cpus, free)
        if all("u" in letters for *_, letters in ours):
            state = NodeState.DOWN
        elif all(set(letters) - set("aA") for *_, letters in ours):
            state = NodeState.DRAINED
        room = max(0, size - used) if size is not None and used is not None else None
        yield NodeRow(host[0], state, cpus, free if state.takes else 0, size, room if state.takes else 0)

    for line in text.splitlines():
        words = line.split()
        if line.startswith("HOSTNAME"):
            column = {word: number for number, word in enumerate(words)}
        elif column and len(words) == len(column) and not line[0].isspace():
            if host:
                yield from node()
            host, queues = words, []
        elif host and line[:1].isspace() and (slots := re.search(r" (\d+)/(\d+)/(\d+)(?: +(\S+))?", line)):
            queues.append((words[0], int(slots[1]) + int(slots[2]), int(slots[3]), slots[4] or ""))
    if host:
        yield from node()


# -- PBS ---------------------------------------------------------------------------------------------------------------


def pbsnodes_rows(text: str) -> list[NodeRow]:
    """The nodes of `pbsnodes -a`, Torque's or Slurm's."""
    return [_pbs_row(block) for block in re.split(r"\n\s*\n", text.strip("\n")) if " state = " in block]


def _pbs_row(block: str) -> NodeRow:
    """One node of `pbsnodes -a`."""
    name, _, rest = block.partition("\n")
    fields = dict(re.findall(r"^\s+(\S+) = (.*)$", rest, re.MULTILINE))
    words, cpus = set(fields.get("state", "").split(",")), _whole(fields.get("np"))
    memory = _memory(rest)
    taken = _taken(fields.get("jobs", ""))
    # Slurm's wrapper calls every node free that has a core left, and does not tell which are taken.
    told = re.search(r"slurmstate=(\w+)", rest)
    free: int | None = None
    if words & {"down", "state-unknown"}:
        state: NodeState | None = NodeState.DOWN
    elif words & {"offline", "reserve"}:
        state = NodeState.DRAINED
    elif words & {"job-exclusive", "busy"}:
        state, free = NodeState.ALLOCATED, 0
    elif told is not None and told[1] != "idle":
        state = NodeState.MIXED
    else:
        free = max(0, cpus - taken) if cpus is not None else None
        state = state_of(cpus, free) if cpus is not None and free is not None else None
    usable = state is None or state.takes
    return NodeRow(name.strip(), state, cpus, free if usable else 0, memory)


def _taken(jobs: str) -> int:
    """How many cores jobs have, from `0/12.server, 1/12.server` or `0-3,6/12.server`."""
    count = 0
    for first, last in re.findall(r"(?<![\w.\[/])(\d+)(?:-(\d+))?(?=[,/])", jobs):
        count += int(last or first) - int(first) + 1
    return count


def _memory(text: str) -> int | None:
    """Slurm's wrapper knows no physmem. Torque's availmem counts what is swapped out, too."""
    for key in ("physmem", "availmem"):
        if found := re.search(rf"[=,]{key}=(\d+)(kb|mb|gb)", text):
            return int(found[1]) << {"kb": 10, "mb": 20, "gb": 30}[found[2]]
    return None


def qstat_waiting(text: str, wanted: str) -> int | None:
    """Jobs that wait, as `qstat -q` counts them, in this queue or ("") in all."""
    found = re.findall(r"^(\S+) +\S+ +\S+ +\S+ +\S+ +\d+ +(\d+) +\S+ +[ED] [RS] *$", text, re.MULTILINE)
    counts = [int(count) for name, count in found if wanted in ("", name)]
    return sum(counts) if counts else None


# -- HTCondor ----------------------------------------------------------------------------------------------------------

SLOT = ("Name", "State", "PartitionableSlot", "TotalSlotCpus", "Cpus", "TotalSlotMemory", "Memory")
"""The attributes that are read."""


def condor_rows(text: str) -> list[NodeRow]:
    """The machines of `condor_status`, each with all of its slots."""
    machines: dict[str, list[NodeRow]] = {}
    for line in text.splitlines():
        if len(words := line.split()) == len(SLOT):
            machines.setdefault(words[0].partition("@")[2] or words[0], []).append(_slot(*words))
    return [_machine(name, slots) for name, slots in machines.items()]


def _slot(name: str, word: str, parted: str, cpus: str, left: str, memory: str, left_memory: str) -> NodeRow:
    """A slot as condor_status shows it. One that is parted out tells what of it is left; any other is taken whole."""
    state = NodeState.DRAINED if word in ("Drained", "Owner", "Preempting") else None
    total, size = (int(each) if each.isdigit() else 0 for each in (cpus, memory))
    free, room = (int(each) if each.isdigit() else 0 for each in (left, left_memory))
    if state is not None or (parted != "true" and word != "Unclaimed"):
        free = room = 0
    return NodeRow(name, state, total, free, size << 20, room << 20)


def _machine(name: str, slots: Sequence[NodeRow]) -> NodeRow:
    """All slots of a machine together."""
    cpus, free = sum(slot.cpus or 0 for slot in slots), sum(slot.free_cpus or 0 for slot in slots)
    drained = all(slot.state is NodeState.DRAINED for slot in slots)
    state = NodeState.DRAINED if drained else state_of(cpus, free)
    sizes = (sum(slot.memory or 0 for slot in slots), sum(slot.free_memory or 0 for slot in slots))
    return NodeRow(name, state, cpus, free, *sizes)


# -- what they have in common ------------------------------------------------------------------------------------------


def _digits(text: str) -> int:
    """A number behind which may be a plus; 0 of what is none."""
    return _whole(text.rstrip("+")) or 0


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def qhost_bytes(text: str) -> int | None:
    """A size as qhost prints it: `23.5G`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")) if found else None
