"""Figure 7: an array of VM jobs on a real Slurm, against the same guests in a plain `sbatch --array`.

The bare array's script is what a careful user would write: it makes the disks of its task, starts the same QEMU with
the same flags on the same kernel, initrd and image, has the guest run the program, and takes what that printed out.
It finds QEMU, image and initrd on the node. The VM jobs do all that theirs do: they are asked for one by one, and over
when their results are home. One node with this machine's cores runs either; which comes first alternates.
"""

from __future__ import annotations

import os
import shlex
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.cluster import NODE, client, join
from benchmarks.lab import LONGEST, Lab, open_lab
from benchmarks.report import Report, figure
from gridhypervisor.agent import channel
from gridhypervisor.agent.hypervisor import Descriptors
from gridhypervisor.agent.machine import compose
from gridhypervisor.agent.qemu import Qemu
from gridhypervisor.agent.scratchdisk import OPTIONS, OUT_MARGIN
from gridhypervisor.agent.world import World
from gridhypervisor.images.repository import Repository
from gridhypervisor.model import wire
from gridhypervisor.model.spec import JobSpec, ResourcesSpec
from gridhypervisor.model.states import JobState
from gridhypervisor.model.views import JobRequest
from testsites import SlurmSite
from testsites.site import UID

IMAGE, JOBS, RUNS = "tiny", 100, 6
"""Six pairs are the fewest of which an interval can be stated; they take half an hour where guests are emulated."""
MEMORY, SCRATCH = 256 << 20, 256 << 20
LOOK = 0.2
"""Seconds between two looks at the results, which cost the machine next to nothing."""
ASKERS = 16
"""Threads that ask for jobs."""
PROGRAM = "i=0; while [ $i -lt 50000 ]; do i=$((i + 1)); done; echo this is task {}"
ENDS = {
    "monitor": "null", "console": "file,path=console",
    "ctl": "pipe,path=ctl", "out": "file,path=stdout", "err": "file,path=stderr",
}  # fmt: skip
"""Where the guest's ports end in a bare task; in the order of `Descriptors`."""
BARE = """\
#!/bin/sh
set -eu
here=/tmp/bare-$SLURM_ARRAY_TASK_ID
mkdir "$here"
trap 'cd /; rm -rf "$here"' EXIT
cd "$here"
mkdir tree tree/upper tree/work tree/scratch tree/scratch/job
cat >tree/job <<JOB
{job}
JOB
{busybox} truncate -s {scratch} scratch
{busybox} truncate -s {out} out
{mke2fs} -d tree scratch
{busybox} mkfifo ctl.in ctl.out
exec 3<>ctl.in 4<>ctl.out
{qemu} >qemu.log 2>&1 3>&- 4>&- &
while read -r word code _ <&4; do
    case $word in
    READY) echo STAGE >&3 ;;
    STAGED) echo RUN end >&3 ;;
    EXIT) echo POWEROFF >&3; break ;;
    esac
done
wait
[ "$code" = 0 ]
mv stdout {results}/$SLURM_ARRAY_TASK_ID
"""


def bare_script(lab: Lab, site: SlurmSite, kind: wire.HypervisorKind) -> str:
    """The batch script, with what it finds on the node made: one initrd, and a folder for results."""
    root, node = site.root, site.root / NODE
    [bundle] = (site.home / ".ghv/bundle").iterdir()
    world = World(node / f"world-{bundle.name}", bundle / "guest.cpio")
    image = Repository(lab.data / "images").show(IMAGE)
    program = wire.Program(("sh", "-c", PROGRAM.format("$SLURM_ARRAY_TASK_ID")))
    manifest = wire.Manifest(
        protocol=wire.PROTOCOL, installation="bench", entry="bare", vm="v", epoch=1, allocation="a", job="j",
        image=image.manifest, image_digest=image.digest, program=program,
        resources=wire.Resources(memory=MEMORY, scratch=SCRATCH),
    )  # fmt: skip
    made, results = site.home / "bare", site.home / "results"
    for folder in (made, results):
        folder.mkdir()
        os.chown(folder, UID, UID)
    machine = compose(manifest, {x.digest: node / "cache" / x.digest for x in image.manifest.layers}, made, world)
    (made / "initrd").chmod(0o644)
    command = Qemu(world, kind).command(machine, Descriptors())
    numbers = Descriptors()
    ends = dict(zip((numbers.monitor, numbers.console, *numbers.channels), ENDS.items(), strict=True))
    chardevs = {f"socket,id={name},fd={number}": f"{end},id={name}" for number, (name, end) in ends.items()}

    def there(word: str) -> str:
        """As the node sees it; the task's own disks lie where it runs."""
        word = chardevs.get(word, word)
        for disk in ("scratch", "out"):
            word = word.replace(str(made / disk), disk)
        return shlex.quote(word.replace(str(root), ""))

    settings = [f"{name}={there(value)}" for name, value in command.environment.items()]
    quoted = channel.job_file(program, user=image.manifest.user, path=image.manifest.path)
    # The shell that writes it fills in the task's number, and nothing else.
    job = quoted.replace("\\", "\\\\").replace("`", "\\`").replace("$", "\\$").replace("\\$SLURM", "$SLURM")
    return BARE.format(
        job=job, busybox=str(bundle / "busybox").replace(str(root), ""), scratch=SCRATCH, out=SCRATCH + OUT_MARGIN,
        mke2fs=" ".join(map(there, [*world.argv("mke2fs"), *OPTIONS])),
        qemu=" ".join([*settings, *map(there, command.argv)]),
        results=str(results).replace(str(root), ""),
    )  # fmt: skip


def bare(site: SlurmSite, script: str, jobs: int) -> float:
    """Seconds from `sbatch` until the last task's result is there."""
    results = site.home / "results"
    for old in results.iterdir():
        old.unlink()
    began = time.perf_counter()
    number = site.admin(
        "sbatch", "--parsable", f"--array=1-{jobs}", "--ntasks=1", "--cpus-per-task=1", f"--mem={_megabytes()}M",
        "--time=30", "--chdir=/tmp", "--output=/tmp/bare-%a.log", as_user=True, stdin=script,
    ).strip()  # fmt: skip

    deadline = time.monotonic() + LONGEST
    while len(os.listdir(results)) < jobs:
        said = [log for log in (site.root / "tmp").glob("bare-*.log") if log.stat().st_size]
        if said or time.monotonic() > deadline:
            words = said[0].read_text() if said else f"{LONGEST:.0f} s are over"
            raise RuntimeError(f"the bare array {number} has {len(os.listdir(results))} of {jobs} results: {words}")
        time.sleep(LOOK)
    took = time.perf_counter() - began
    for task in results.iterdir():
        if f"this is task {task.name}\n" not in task.read_text():
            raise RuntimeError(f"bare task {task.name} printed {task.read_text()!r}")
    site.wait_idle()
    return took


def _megabytes() -> int:
    """What the VM jobs ask of Slurm for one."""
    return (MEMORY >> 20) + 384


def through_ghv(lab: Lab, site: SlurmSite, kind: wire.HypervisorKind, jobs: int) -> tuple[float, list[float]]:
    """Seconds from the first request until all results are home; and the CPU seconds of ours for each job."""
    asking = client(lab)
    resources = ResourcesSpec(memory=str(MEMORY), scratch=str(SCRATCH))

    def ask(number: int) -> str:
        command = ("sh", "-c", PROGRAM.format(number))
        spec = JobSpec(IMAGE, command, resources=resources, hypervisor=kind.value, site=site.kind)
        return asking.submit(JobRequest(spec, str(lab.home), str(lab.home / f"task-{number}"))).id

    last = 0
    while page := asking.events(after=last):
        last = page[-1].sequence
    began = time.perf_counter()
    with ThreadPoolExecutor(ASKERS) as askers:
        wanted = set(askers.map(ask, range(1, jobs + 1)))
    left = set(wanted)
    for event in asking.watch_events(after=last):
        if event.kind == "job" and event.after in list(JobState) and JobState(event.after).final:
            left.discard(event.job)
        if not left:
            break
    took = time.perf_counter() - began
    cpu = []
    for job in sorted(wanted):
        found = asking.job(job)
        if found.job.state is not JobState.DONE or found.ledger is None:
            raise RuntimeError(f"{job} ended as {found.job.state}: {found.job.message}")
        cpu.append(sum(found.ledger.cpu[name] for name in ("pilot", "relay", "controller")))
    site.wait_idle()
    return took, cpu


def measure(runs: int | None) -> Report:
    ours: list[float] = []
    theirs: list[float] = []
    cpu: list[float] = []
    cores = os.cpu_count() or 1
    with open_lab() as lab, SlurmSite("slurm-bench", nodes=1, cpus=cores, memory=cores * _megabytes()) as site:
        kind = lab.qemu(IMAGE)
        used = join(lab, site, IMAGE, kind)
        script = bare_script(lab, site, kind)
        for run in range(runs or RUNS):
            if run % 2:
                theirs.append(bare(site, script, JOBS))
            took, spent = through_ghv(lab, site, kind, JOBS)
            ours.append(took)
            cpu += spent
            if not run % 2:
                theirs.append(bare(site, script, JOBS))
    return Report(
        f"An array of {JOBS} VM jobs on Slurm, against a bare QEMU in each task of `sbatch --array`",
        (
            figure("VM jobs, all results home", "s", ours),
            figure("bare array", "s", theirs),
            figure("ratio, pair by pair", "", [a / b for a, b in zip(ours, theirs, strict=True)],
                   "the interval's end at most 1.05"),
            figure("pilot, relay, controller", "CPU s a VM", cpu),
        ),
        hypervisor=used,
        enough=RUNS,
        notes=(f"{cores} tasks run at once, one a core. Bundle and image are on the node; no guest serves two jobs.",),
    )  # fmt: skip
