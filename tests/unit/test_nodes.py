"""What the batch systems say of their nodes: their own words, and what they come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridhypervisor.model.capacity import MOST_NODES, Capacity, NodeRow, NodeState, capacity
from gridhypervisor.model.records import Site, SiteKind
from gridhypervisor.model.wire import CommandResult
from gridhypervisor.sites.fork import ForkDriver
from gridhypervisor.sites.gridengine import GridEngineDriver
from gridhypervisor.sites.htcondor import HTCondorDriver
from gridhypervisor.sites.nodes import pbsnodes_rows
from gridhypervisor.sites.pbs import PbsDriver
from gridhypervisor.sites.slurm import SlurmDriver

GIB, MIB = 1 << 30, 1 << 20


def site(kind: SiteKind, **options: str) -> Site:
    return Site("site", "o", "p", kind, options=options)


def states(found: Capacity | None) -> dict[str, tuple[str, int | None, int | None]]:
    assert found is not None
    return {row.name: (str(row.state), row.cpus, row.free_cpus) for row in found.rows}


def sums(found: Capacity | None) -> tuple[int, int, int | None, int | None, int | None]:
    assert found is not None
    return found.nodes, found.idle, found.cpus, found.free_cpus, found.waiting


def said(text: str, code: int = 0, errors: str = "") -> CommandResult:
    return CommandResult(code, text, errors)


def test_of_very_many_nodes_the_first_are_listed_and_all_are_counted() -> None:
    found = capacity(NodeRow(f"n{i:05}", NodeState.IDLE, 4, 4) for i in range(3 * MOST_NODES))
    assert (len(found.rows), found.nodes, found.free_cpus) == (MOST_NODES, 3 * MOST_NODES, 12 * MOST_NODES)
    nothing = capacity([])
    assert (nothing.nodes, nothing.cpus, nothing.free_cpus) == (0, 0, 0)
    unknown = capacity([NodeRow("n1", None)])
    assert (unknown.nodes, unknown.cpus, unknown.free_cpus) == (1, None, None), "what nobody tells is not zero"


# -- Slurm 22.05 -------------------------------------------------------------------------------------------------------

SINFO = """\
n1|idle|0/2/0/2|4000|0|batch*|
n1|idle|0/2/0/2|4000|0|short|
n2|mixed|1/1/0/2|4000|448|batch*|
n3|allocated|2/0/0/2|4000|4000|batch*|
n4|down*|0/0/2/2|4000|0|batch*|
n5|drained|0/0/2/2|4000|0|batch*|
n6|idle*|0/2/0/2|4000|0|batch*|
n7|maint|0/0/2/2|4000|0|batch*|
n8|idle~|0/64/0/64|4000|0|short|
"""
NONE = said("Configuration data as of 1795000000\nNo reservations in the system\n")


def slurm(*results: CommandResult, **options: str) -> Capacity | None:
    return SlurmDriver(site(SiteKind.SLURM, **options)).capacity(results)


def test_slurms_nodes_are_those_of_the_partition_that_is_used() -> None:
    found = slurm(said(SINFO), said("7\n"), NONE)
    assert sums(found) == (7, 1, 6, 3, 7)
    assert states(found) == {
        "n1": ("idle", 2, 2), "n2": ("mixed", 2, 1), "n3": ("allocated", 2, 0), "n4": ("down", 2, 0),
        "n5": ("drained", 2, 0), "n6": ("down", 2, 0), "n7": ("drained", 2, 0),
    }  # fmt: skip
    assert found is not None and found.rows[1].free_memory == (4000 - 448) * MIB and found.maintenance is None
    short = slurm(said(SINFO), said("0\n"), NONE, partition="short")
    assert states(short) == {"n1": ("idle", 2, 2), "n8": ("idle", 64, 64)}, "one that is started when a job comes"
    both = slurm(said(SINFO), said("0\n"), NONE, partition="short,batch")
    assert both is not None and both.nodes == 8


def test_what_slurm_does_not_tell_is_not_known() -> None:
    away = said("", 1, "slurm_load_partitions: Unable to contact slurm controller (connect failure)")
    assert slurm(away, away, away) is None
    found = slurm(said(SINFO), said("0\n", errors="squeue: error: Invalid user"), said("", 1))
    assert found is not None and (found.waiting, found.maintenance) == (None, None)
    assert slurm(said("no node here\n"), said("0"), NONE) == capacity([], 0)


def test_slurms_next_maintenance_is_a_reservation_for_one() -> None:
    def reservation(name: str, start: int, end: int, flags: str) -> str:
        return f"ReservationName={name} StartTime={start} EndTime={end} Nodes=n[1-2] Flags={flags} State=INACTIVE\n"

    now = 1795000000
    later = reservation("upgrade", now + 3600, now + 7200, "MAINT,SPEC_NODES,ALL_NODES")
    for text, begins in (
        (later, 3600.0),
        (reservation("course", now + 60, now + 90, "SPEC_NODES") + later, 3600.0),
        (reservation("past", now - 90, now - 60, "MAINT") + later, 3600.0),
        (later + reservation("now", now - 90, now + 60, "IGNORE_JOBS,MAINT"), -90.0),
        (later.replace("Flags=", "NodeCnt="), None),
    ):
        found = slurm(said(SINFO), said("0\n"), said(f"Configuration data as of {now}\n{text}"))
        assert found is not None and found.maintenance == begins, text


# -- Grid Engine 8.1.9 -------------------------------------------------------------------------------------------------

QHOST = """\
HOSTNAME                ARCH         NCPU NSOC NCOR NTHR  LOAD  MEMTOT  MEMUSE  SWAPTO  SWAPUS
----------------------------------------------------------------------------------------------
global                  -               -    -    -    -     -       -       -       -       -
sge-a-n1                lx-amd64        4    1    2    2  4.24   23.5G    1.5G     0.0     0.0
   all.q                BIP   0/1/2         a
   long.q               BIP   0/0/4
sge-a-n2                lx-amd64        2    1    2    2     -   23.5G       -     0.0       -
   all.q                BIP   0/0/2         au
sge-a-n3                lx-amd64        2    1    2    2  0.01   23.5G    1.5G     0.0     0.0
   all.q                BIP   0/2/2         d
sge-a-n4                lx-amd64        2    1    2    2  0.01   23.5G    1.5G     0.0     0.0
   all.q                BIP   0/2/2
submit1                 lx-amd64        8    1    2    2  0.01   23.5G    1.5G     0.0     0.0
"""


def gridengine(*results: CommandResult, **options: str) -> Capacity | None:
    return GridEngineDriver(site(SiteKind.GRIDENGINE, **options), "/w", "d").capacity(results)


def test_grid_engines_nodes_are_those_of_its_queues() -> None:
    found = gridengine(said(QHOST), said("5\n"))
    assert states(found) == {
        "sge-a-n1": ("mixed", 4, 3), "sge-a-n2": ("down", 2, 0), "sge-a-n3": ("drained", 2, 0),
        "sge-a-n4": ("allocated", 2, 0),
    }  # fmt: skip
    assert sums(found) == (4, 0, 6, 3, 3), "two lines of what waits are the table's head"
    assert found is not None and found.rows[0].free_memory == 22 * GIB
    long = gridengine(said(QHOST), said("0\n"), queue="long.q@@big")
    assert states(long) == {"sge-a-n1": ("mixed", 4, 3)} and sums(long)[-1] == 0
    every = gridengine(said(QHOST), said("0\n"), queue="*.q")
    assert every is not None and every.nodes == 4
    assert gridengine(said("", 1, "error: unable to contact qmaster"), said("", 1)) is None


def test_grid_engines_captured_hosts_have_no_queues_without_asking_for_them() -> None:
    text = (Path(__file__).parent / "gridengine/qhost.txt").read_text()
    assert gridengine(said(text), said("0")) == capacity([], 0)


# -- HTCondor 23.9 -----------------------------------------------------------------------------------------------------

SLOTS = """\
slot1@node1.example.org Unclaimed true 64 60 256000 250000
slot1@node2.example.org Claimed undefined 4 4 8000 8000
slot2@node2.example.org Unclaimed undefined 4 4 8000 8000
slot1@node3.example.org Drained true 8 8 16000 16000
slot1@node4.example.org Unclaimed true 2 0 4000 100
"""


def condor(*results: CommandResult, **options: str) -> Capacity | None:
    return HTCondorDriver(site(SiteKind.HTCONDOR, **options)).capacity(results)


def test_htcondors_machines_are_the_sums_of_their_slots() -> None:
    found = condor(said(SLOTS), said("3\n4\n"))
    assert states(found) == {
        "node1.example.org": ("mixed", 64, 60), "node2.example.org": ("mixed", 8, 4),
        "node3.example.org": ("drained", 8, 0), "node4.example.org": ("allocated", 2, 0),
    }  # fmt: skip
    assert sums(found) == (4, 0, 74, 64, 7)
    assert found is not None and found.rows[1].free_memory == 8000 * MIB
    hidden = condor(said(SLOTS), said("", 1, "Error: communication error"))
    assert hidden is not None and hidden.waiting is None
    assert condor(said("", 1), said("3")) is None


def test_htcondor_is_asked_for_the_machines_that_a_job_may_get() -> None:
    [machines, _] = HTCondorDriver(site(SiteKind.HTCONDOR, constraint="HasGlass || Big")).survey()
    assert machines.argv[2] == 'SlotType =!= "Dynamic" && (HasGlass || Big)'


# -- PBS: Torque 6, and Slurm's wrappers -------------------------------------------------------------------------------

PBSNODES = """\
node7
     state = free
     np = 8
     properties = fast
     ntype = cluster
     jobs = 0-2,6/1234.server,4/1235[7].server
     status = rectime=1405958542,jobs=1234.server 1235[7].server,state=free,ncpus=8,physmem=6122160kb,availmem=9kb

node8
     state = down,job-exclusive
     np = 16
     ntype = cluster

node9
     state = job-exclusive
     np = 2
     jobs = 0/77.server, 1/77.server

node10
     state = offline
     np = 2

node11
     state = free
     np = 4

"""
WRAPPERS = """\
pbs-x-n1
    state = free
    np = 2
    ntype = cluster
    status = rectime=1795371785,state=free,slurmstate=idle,size=0kb:0kb,ncpus=2,availmem=4000mb,arch=x86_64

pbs-x-n2
    state = free
    np = 2
    ntype = cluster
    status = rectime=1795371785,state=free,slurmstate=mixed,size=0kb:0kb,ncpus=2,availmem=4000mb,arch=x86_64

"""
QUEUES = """\
Queue            Memory CPU Time Walltime Node  Run   Que   Lm  State
---------------- ------ -------- -------- ----  ----  ----  --  -----
batch              --      --    24:00:00   --    12     3 --   E R
long               --   168:00:0 120:00:0   --     0     4 10   E S
                                               ----  ----
                                                 12     7
"""


def pbs(*results: CommandResult, **options: str) -> Capacity | None:
    return PbsDriver(site(SiteKind.PBS, **options), "/w", "d").capacity(results)


def test_torques_nodes_and_what_jobs_have_of_them() -> None:
    found = pbs(said(PBSNODES), said(QUEUES))
    assert states(found) == {
        "node7": ("mixed", 8, 3), "node8": ("down", 16, 0), "node9": ("allocated", 2, 0), "node10": ("drained", 2, 0),
        "node11": ("idle", 4, 4),
    }  # fmt: skip
    assert sums(found) == (5, 1, 14, 7, 7)
    one = pbs(said(PBSNODES), said(QUEUES), queue="batch@server")
    assert one is not None and one.waiting == 3
    assert found is not None and {row.name: row.memory for row in found.rows}["node7"] == 6122160 << 10
    assert pbs(said("", 1, "pbsnodes: Unauthorized Request"), said(QUEUES)) is None


@pytest.mark.parametrize(
    ("jobs", "taken"),
    [("0/1.s", 1), ("0/1.s, 1/1.s", 2), ("0-3/1.s", 4), ("0-1,5/1[3].s,2/9.s", 4), ("0/12,1/13", 2)],
)
def test_torques_ways_to_say_which_cores_are_taken(jobs: str, taken: int) -> None:
    [row] = pbsnodes_rows(f"n1\n    state = free\n    np = 16\n    jobs = {jobs}\n")
    assert row.free_cpus == 16 - taken


def test_slurms_wrapper_does_not_tell_how_many_cores_are_left() -> None:
    found = pbs(said(WRAPPERS), said(QUEUES))
    assert states(found) == {"pbs-x-n1": ("idle", 2, 2), "pbs-x-n2": ("mixed", 2, None)}
    assert sums(found) == (2, 1, 4, 2, 7)


# -- this machine ------------------------------------------------------------------------------------------------------

MACHINE = "laptop\n4\nMemTotal:       16384 kB\nMemFree:         1024 kB\nMemAvailable:    8192 kB\n"


def fork(jobs: str, machine: str = MACHINE, slots: int = 0) -> Capacity | None:
    here = Site("here", "o", "p", SiteKind.FORK, slots=slots)
    return ForkDriver(here, "/w", "d").capacity([said(jobs), said(machine)])


def job(state: str, cpus: int = 1) -> str:
    return f'{{"id": "1", "name": "j", "state": "{state}", "reason": "", "code": null, "cpus": {cpus}}}\n'


def test_this_machine_has_what_its_queue_has_not_given_away() -> None:
    found = fork(job("RUNNING", 2) + job("ENDED", 4) + job("PENDING"))
    assert states(found) == {"laptop": ("mixed", 4, 2)} and sums(found)[-1] == 1
    assert found is not None and (found.rows[0].memory, found.rows[0].free_memory) == (16 << 20, 8 << 20)
    assert states(fork("")) == {"laptop": ("idle", 4, 4)}
    assert states(fork(job("RUNNING") * 2, slots=2)) == {"laptop": ("allocated", 4, 0)}, "there is no slot"
    assert states(fork(job("RUNNING", 9))) == {"laptop": ("allocated", 4, 0)}
    assert fork("", "laptop\nnobody knows\n") is None and fork("{") is None
