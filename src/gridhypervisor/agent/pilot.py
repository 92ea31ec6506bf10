"""The pilot: the payload of a batch job. It runs one VM from its manifest to its sentinel.

It takes the allocation's `owner` before anything else that others could see; who comes second runs nothing. Then one
phase after another, each a method below; whatever ends the allocation raises `Ending`, and `exit.json` says so, once,
last. What a guest is made of and how the parts work is in the modules beside; this one says in which order, and what a
signal, a wish of the controller or the walltime means at each moment.

    PREPARE ─▶ BOOT ─▶ STAGE_IN (─▶ GATHER) ─▶ EXECUTE ─▶ STAGE_OUT ─▶ SHUT_DOWN ─▶ exit.json
       └─▶ GATHER ─▶ PREPARE ─▶ BOOT ─▶ EXECUTE …: a successor, which waits for the attempt before it to be saved
       └─────────┴─────────┴────────────┘ stop: ends here  │stop: TERM to the program, then as usual, STOPPED at the end

Where the manifest asks for a probe, there is PREPARE alone: it looks at the node (`survey.py`), and boots nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gridhypervisor.agent import processes, spool
from gridhypervisor.agent.channel import both
from gridhypervisor.agent.ending import Ending, instead, leave_in_any_case, leave_sentinel, now, settle
from gridhypervisor.agent.equip import Equipment, Equipper
from gridhypervisor.agent.freeze import Freezer
from gridhypervisor.agent.grant import Grant
from gridhypervisor.agent.instant import NotRestored, Waiting
from gridhypervisor.agent.limits import Limits
from gridhypervisor.agent.loop import Loop
from gridhypervisor.agent.node import Node, remove
from gridhypervisor.agent.report import Report, cpu_seconds, process_start, where
from gridhypervisor.agent.verdict import stopped, verdict
from gridhypervisor.agent.watchdog import Watchdog
from gridhypervisor.agent.wishes import Wishes
from gridhypervisor.agent.world import World, WorldError
from gridhypervisor.model import wire
from gridhypervisor.model.wire import (
    CpuUsage,
    ExitRecord,
    HypervisorKind,
    Manifest,
    OperationKind,
    Outcome,
    OutputFile,
    OwnerRecord,
    Phase,
    Reason,
)

if TYPE_CHECKING:
    from gridhypervisor.agent.effort import Meter
    from gridhypervisor.agent.instant import Beginning
    from gridhypervisor.agent.network.attachment import Attachment
    from gridhypervisor.agent.serving import Serving
    from gridhypervisor.agent.vm import Vm

_WARM = {"--pool", "--idle", "--lasts"}  # what lets it serve others afterwards; see `warm`
_POWER_OFF = 10.0  # seconds for the guest to power off; it takes a fraction of one
_STAGE_LIMIT = 120.0  # seconds for the guest to make the job's folder the user's
_SILENT_AFTER = 60.0  # seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the VM of an entry; 0 when the program ran to its end or somebody else owns the entry, else 1."""
    words = list(sys.argv[1:] if argv is None else argv)
    given = dict(zip(words[::2], words[1::2], strict=False))
    warm = given.keys() - {"--entry", "--scratch"}
    if len(words) != 2 * len(given) or given.keys() - warm != {"--entry", "--scratch"} or warm not in (set(), _WARM):
        sys.stderr.write(
            "usage: pilot --entry FOLDER (in the spool) --scratch FOLDER (on the node's own disk) "
            "[--pool NAME --idle SECONDS --lasts SECONDS]\n"
        )
        return 64
    os.umask(0o077)
    pilot = played(Path(given["--entry"]).absolute(), Path(given["--scratch"]).absolute(), process_start())
    if warm:
        from gridhypervisor.agent import warm as others  # not before: its own guest's start waits for imports

        others.serve(pilot, given["--pool"], float(given["--idle"]), float(given["--lasts"]))
    return pilot.code


def play(
    entry: Path, scratch: Path, started: float, *, claim: str = "", refused: Ending | None = None, carrying: float = 0.0
) -> int:
    """Run the VM of an entry; like `main`. A courier gives `claim`, by which it owns the entry, `refused`, why no guest
    may be started, and how many seconds of the walltime it needs itself."""
    return played(entry, scratch, started, claim=claim, refused=refused, carrying=carrying).code


def played(
    entry: Path, scratch: Path, started: float, *, claim: str = "", refused: Ending | None = None,
    carrying: float = 0.0, host: str = "",
) -> Pilot:  # fmt: skip
    """Like `play`; what there is to know of the pilot afterwards. `host`: with whose batch job it came, by `claim`."""
    watchdog = Watchdog()
    try:
        pilot = Pilot(entry, scratch, watchdog, started, claim, refused, carrying, host)
        pilot.code = pilot.run()
        return pilot
    finally:
        watchdog.dismiss()


class Pilot:
    """One run of one pilot."""

    def __init__(
        self, entry: Path, scratch: Path, watchdog: Watchdog, started: float, claim: str = "",
        refused: Ending | None = None, carrying: float = 0.0, host: str = "",
    ) -> None:  # fmt: skip
        """See `play`, `played`."""
        self.entry = entry
        self.claim = claim or f"{os.uname().nodename}:{os.getpid()}:{os.urandom(8).hex()}"
        self.refused, self.carried, self.carrying, self.host = refused, bool(claim) and not host, carrying, host
        self.code = 1  # its exit code, when it has ended
        self.serves_on = False  # nothing speaks against other guests on this node, in this batch job
        self.workdir = entry.parent.parent
        self.scratch = scratch
        self.watchdog = watchdog
        self.report = Report(entry, started)
        self.loop = Loop()
        self.run_folder: Path | None = None
        self.vm: Vm | None = None
        self.beginning: Beginning | None = None
        self.interrupted: Reason | None = None  # why the program was stopped, where it had not ended before
        self.files: dict[str, OutputFile] = {}
        self.trouble: Ending | None = None  # with the outputs
        self.unmatched: list[str] = []  # patterns that matched nothing
        self.meter: Meter | None = None  # of the guest, while its program runs
        self.attachment: Attachment | None = None  # of the guest to private networks

    def run(self) -> int:
        """Run it all; the process's exit code."""
        self.log(f"pilot {os.getpid()} on {os.uname().nodename}: {self.entry}")
        try:
            self.manifest = self._read_manifest()
            self.limits = Limits.of(self.manifest, self.report.started, self.carrying)
            self.report.grant = grant = Grant(self.manifest.grant) if self.manifest.grant else None
            self.wishes = Wishes(self.entry, self.limits, grant, self.watchdog, self.loop, self.log)
            self.wishes.hold = self.manifest.hold or self.manifest.successor
            self.wishes.hear_signals()
            owner = OwnerRecord("pilot", self.claim, self.manifest.epoch, os.uname().nodename, host=self.host)
            standing = spool.take_owner(self.entry, owner)
        except Ending as ending:
            return self._refuse(ending)
        except (OSError, wire.WireError) as error:
            self.log(f"take ownership of {self.entry}: {error}; nothing is run")
            return 1
        if standing.claim != owner.claim:
            self.log(f"yield: {standing.by} {standing.claim} owns the entry {standing.why}".rstrip())
            return 0
        self.report.owner = owner
        try:
            record = self._live()
        except Ending as ending:
            record = self._record(ending)
        except Exception as error:
            # A defect of ours, or a site that does what no site should: the job must still learn of its end.
            self.log(f"defect: {error!r} at {where(error)}")
            record = self._record(
                Ending(Reason.PILOT, f"run the pilot: {error!r} at {where(error)}", "retry, and report pilot.log")
            )
        return self._leave(record)

    def log(self, text: str) -> None:
        """A line in pilot.log, with the seconds since the start. That it cannot be written ends nothing."""
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {self.report.elapsed:9.3f} {text}\n"
        with contextlib.suppress(OSError), (self.entry / wire.PILOT_LOG).open("a") as file:
            file.write(line)

    # --- the phases -------------------------------------------------------------------------------------------------

    def _live(self) -> ExitRecord:
        """The VM's life; the record of its end, unless `Ending` is raised."""
        self._listen()
        if self.manifest.probe:
            return self._survey()
        equipment = self._prepare()
        vm = self._boot(equipment)
        if not vm.runs:  # else it was taken up where its program ran
            self._stage_in(vm)
            self._gather(vm)
        self._execute(vm, equipment)
        self._stage_out(vm)
        self._shut_down(vm)
        assert vm.exit is not None
        # A program that ended by itself has ended, though after that the time ran out, the site lost patience, or it
        # was to go elsewhere.
        stop = self.wishes.stop if self.wishes.stop is Reason.CANCELLED else self.interrupted
        ending = verdict(
            self.manifest, vm.exit, stop=stop, trouble=self.trouble, unmatched=self.unmatched, cut=sorted(vm.cut)
        )
        if ending.reason is Reason.UNSAVED and self.freezer.unsaved:
            ending.message += f": {self.freezer.unsaved}"
        return self._record(ending)

    def _listen(self) -> None:
        """Arm the watchdog, make the folder of this run, and hear wishes and the time from now on."""
        owner = self.report.owner
        assert owner is not None
        duty = {
            "entry": str(self.entry), "claim": owner.claim, "epoch": owner.epoch, "node": owner.node,
            "host": owner.host, "started": self.report.started, "deadline": self.limits.deadline,
            "late": self.limits.late,
        }  # fmt: skip
        self.watchdog.arm(**duty, run="")
        self.node = Node(self.scratch)
        self.run_folder, self.lock = self.node.enter(self.manifest.entry)
        self.watchdog.arm(**duty, run=str(self.run_folder))
        self.wishes.hear()
        self.loop.every(self.manifest.beat, self._beat)
        self.loop.every(1.0, self.report.look)
        self.report.write()
        self.wishes.look()

    def _prepare(self) -> Equipment:
        """Everything that the VM needs, on the node, and how it begins."""
        self._heed_lender()
        for name in self.node.sweep():
            self.log(f"swept {name}: its pilot is gone")
        if self.manifest.successor:
            self._succeed()
        manifest, run, load = self.manifest, self.run_folder, self.report.load
        assert run is not None
        # Where a courier carries, what is kept in the entry's folder ends with the job.
        snapshots = (self.node.root if self.carried else self.workdir) / wire.SNAPSHOTS
        checkpoints = self.workdir / wire.CHECKPOINTS
        equipper = Equipper(manifest, self.entry, self.workdir / wire.CACHE, snapshots, checkpoints, self.node, run)
        self.freezer = Freezer(
            manifest, checkpoints, self.report, self.wishes, self.loop, self.log, carried=self.carried
        )  # fmt: skip

        def work() -> Equipment:
            return equipper.equip(self.watchdog, self.loop, self.wishes.stopped, self.log)

        try:
            if manifest.program.inputs or equipper.lacks:
                self.wishes.hear_at_once()
                equipment = self.loop.apart(work, self.wishes.check)
            else:
                equipment = work()
        except WorldError as error:
            raise Ending(Reason.BUNDLE, f"prepare the node: {error}", "upload the bundle again, or retry") from error
        used, self.beginning = equipment.used, equipment.beginning
        self.report.hypervisor = used
        self.log(f"hypervisor: {used.program}, {used.kind}: {used.why}")
        self.log(f"boot: {used.boot}")
        if used.kind is HypervisorKind.TCG and manifest.hypervisor != HypervisorKind.TCG:
            self.log("this guest is EMULATED, 5 to 30 times slower")
            sys.stderr.write(f"ghv: emulating on {os.uname().nodename}: {used.why}\n")
        self.report.timed(
            OperationKind.PREPARE, sum(each.size for each in manifest.program.inputs),
            self.report.elapsed - equipper.copying - equipment.beginning.bringing, load,
        )  # fmt: skip
        if equipper.copied:
            self.report.timed(OperationKind.COPY, equipper.copied, equipper.copying, load)
        self.wishes.check()
        return equipment

    def _succeed(self) -> None:
        """Have all here that can be, then wait until the attempt before is over, and be told from where to go on."""
        from gridhypervisor.agent.succession import fetch, told

        self.wishes.hear_at_once()
        cache = self.workdir / wire.CACHE
        self.loop.apart(
            lambda: fetch(self.manifest, self.node, cache, self.wishes.stopped, self.log), self.wishes.check
        )
        self.report.enter(Phase.GATHER, "ready: it waits until the guest is saved that it goes on with")
        self.wishes.look()

        def ready() -> bool:
            self.wishes.check()
            return self.wishes.word is not None

        self.loop.wait(ready)
        assert self.wishes.word is not None
        self.manifest = told(self.manifest, self.wishes.word)
        self.report.enter(Phase.PREPARE)

    def _survey(self) -> ExitRecord:
        """Look at the node instead of booting anything."""
        from gridhypervisor.agent.survey import survey

        self._heed_lender()
        run, memory = self.run_folder, self.node.root
        assert run is not None

        def work() -> wire.NodeReport:
            processes.be_subreaper()
            return survey(World.from_environment(), run, memory, self.watchdog, self.entry, self.scratch)

        try:
            report = self.loop.apart(work, self.wishes.check)
        except WorldError as error:
            raise Ending(Reason.BUNDLE, f"look at the node: {error}", "upload the bundle again, or retry") from error
        return dataclasses.replace(self._record(Ending(Reason.EXITED, "", outcome=Outcome.COMPLETED)), report=report)

    def _heed_lender(self) -> None:
        """What the relay let in may have waited too long in the queue, or have come past the relay."""
        if self.refused is not None:
            raise self.refused
        if not (os.path.lexists("/etc/ghv") or os.path.lexists(f"{self.workdir}.lender.toml")):
            return  # nobody limits the account, which is all that most pilots need to know
        from gridhypervisor.agent.lender import forbidden

        if no := forbidden(self.workdir, self.manifest):
            raise Ending(Reason.LENDER, f"start the guest on {os.uname().nodename}: {no[0]}", no[1])

    def _boot(self, equipment: Equipment) -> Vm:
        begin, make_vm, run = equipment.beginning, equipment.make_vm, self.run_folder
        assert run is not None
        if self.wishes.grant is not None:
            self._await_grant(self.wishes.grant)
        self.report.enter(Phase.BOOT, self.report.note)
        began, load = now(), self.report.load
        limit = began + self.manifest.boot_timeout
        vm = self.vm = make_vm()
        vm.start(begin.machine, begin.descriptors, self._attach())
        self.log("hypervisor started")
        self.wishes.hear_at_once()
        waiting = Waiting(
            lambda done, latest: self._await(done, min(latest, limit)),
            lambda work: self.loop.apart(work, self.wishes.check),
        )
        try:
            begin.begin(vm, waiting, run, self.log)
        except NotRestored as error:
            vm = self._boot_instead(vm, begin, make_vm, error)
            limit = now() + self.manifest.boot_timeout
        if not self._await(lambda: vm.ready, limit):
            raise Ending(
                Reason.BOOT,
                f"boot the guest: not ready after {self.manifest.boot_timeout} s; its console ends with: "
                f"{vm.console_tail(3)}",
                "see console.log; a longer boot timeout helps where the node is only slow",
            )
        self.report.ready()
        if not begin.failed:
            self.report.timed(*begin.operation, now() - began + begin.bringing, load)
        return vm

    def _boot_instead(self, vm: Vm, begin: Beginning, make_vm: Callable[[], Vm], error: NotRestored) -> Vm:
        """Boot the guest that could not be taken up, when nothing is left of that. Nothing has run in it."""
        self._end_hypervisor(vm)
        if vm.running:
            raise Ending(Reason.HYPERVISOR, f"end a guest that was not taken up ({error}): it does not end", "retry")
        vm.close()
        used = self.report.hypervisor
        assert used is not None
        boot = begin.instead(error)
        self.report.hypervisor = dataclasses.replace(used, boot=boot)
        self.log(f"boot: {boot}")
        other = self.vm = make_vm()
        other.start(begin.machine, cards=self.attachment.cards if self.attachment is not None else ())
        return other

    def _attach(self) -> list[int]:
        """Have frames of the guest's cards carried from now on; the hypervisor's ends of them."""
        if not self.manifest.nics:
            return []
        from gridhypervisor.agent.network.attachment import Attachment  # most guests have no network

        made = Attachment(self.manifest, self.entry, self.node.runs, self.loop, self.log)
        self.attachment = self.report.attachment = made
        made.start()
        self.wishes.table = made.learn
        self.wishes.look()
        return made.cards

    def _await_grant(self, grant: Grant) -> None:
        """No guest before somebody has said that it may run: the allocation may have been given up long ago."""
        self.wishes.hear_at_once()
        self.report.note = "waiting for the service's word that its guest may run"
        self.loop.wait(lambda: self.wishes.stopped() or now() < grant.until, now() + grant.seconds)
        self.wishes.check()
        if now() >= grant.until:
            raise Ending(
                Reason.GRANT,
                f"boot the guest: the service has not answered for {grant.seconds:.0f} s, and with "
                "`on_silence: replace` no guest starts without its word",
                "see that the service runs and reaches the site; a longer `silence` bears longer interruptions",
            )
        self.report.note = ""

    def _stage_in(self, vm: Vm) -> None:
        self.report.enter(Phase.STAGE_IN)
        vm.say("STAGE")
        if not self._await(lambda: vm.staged, now() + _STAGE_LIMIT):
            raise Ending(Reason.GUEST_SILENT, "stage in: the guest did not answer", "see console.log; retry")
        self._watch_silence(vm)

    def _watch_silence(self, vm: Vm) -> None:
        silent_after = float(self.manifest.debug.get("silent_after", _SILENT_AFTER))
        vm.watch_silence(silent_after, min(self.manifest.beat, 10))

    def _gather(self, vm: Vm) -> None:
        """Wait, of a gang, until the guests of all are ready; then tell this one who they are."""
        if not self.manifest.hold:
            return
        self.report.enter(Phase.GATHER, "its guest is ready, and waits for those of its gang")
        wishes = self.wishes
        wishes.look()
        self._await(lambda: wishes.word is not None)
        for member in (wishes.word or "").splitlines():
            vm.say(f"MEMBER {member}")

    def _execute(self, vm: Vm, equipment: Equipment) -> None:
        """Run the program to its end, or stop it, or save it, when somebody wishes so."""
        self.report.enter(Phase.EXECUTE)
        if vm.runs:
            self._watch_silence(vm)
        else:
            vm.run(os.urandom(16).hex())
        self.freezer.begin(vm, equipment)
        serving = self._serve(vm)
        self._measure()

        def ended() -> bool:
            vm.check()
            if vm.asks and not self.report.asks:
                self.log(f"the program asks to be moved: {vm.asks}")
                self._beat()
            if serving is not None:
                serving.look()
            return vm.exit is not None and vm.streams_ended

        while not ended() and not self.wishes.stopped():
            if self.freezer.wanted:
                self.freezer.save()
            self.loop.wait(lambda: ended() or self.wishes.stopped() or self.freezer.wanted)
        self.meter, stop = None, self.wishes.stop
        if vm.exit is None and stop is not None:
            self.interrupted = stop
            grace = min(self.manifest.stop_grace, max(1.0, (self.limits.hard - now()) / 2))
            self.log(f"stop the program ({stop}), {grace:.0f} s of grace")
            self.report.note = f"stopping the program: {stop}"
            self.freezer.unpause()
            vm.say(f"STOP {grace:.0f}")
            if not self.loop.wait(ended, min(self.limits.hard - 1.0, now() + grace + 10.0)):
                self.log(f"the guest does not say that the program has ended: {vm.words}")
                raise Ending(
                    stop,
                    "stop the program: the guest did not say in time that it ended, so its outputs could not be taken",
                    "see console.log",
                    stopped(stop, "").outcome,
                )

    def _serve(self, vm: Vm) -> Serving | None:
        """Of a service: see when it is ready, and run commands in its guest that its user asks for."""
        if self.manifest.service is None:
            return None
        from gridhypervisor.agent.executions import Executions  # not before the guest runs
        from gridhypervisor.agent.serving import Serving

        Executions(self.entry, vm, self.wishes, self.loop, self.log)
        return Serving(self.manifest.service.ready, vm, self.loop, self.report, self.log)

    def _measure(self) -> None:
        """From now on, until the program ends: what its guest gets of the node's processors."""
        from gridhypervisor.agent import effort  # not before the program runs

        self.meter = effort.Meter(self.watchdog.pid)
        self.loop.every(effort.LOOK, lambda: self.meter.look() if self.meter is not None else None)

    def _stage_out(self, vm: Vm) -> None:
        """Bring the outputs from the guest into the entry, those of a stopped or failed program too."""
        self.report.enter(Phase.STAGE_OUT)
        program = self.manifest.program
        what, patterns = "outputs", program.outputs
        if self.interrupted is Reason.MOVED:  # of what begins anew elsewhere nobody wants the outputs
            what, patterns = "restart", program.restart
        elif self.interrupted in (Reason.EVICTED, Reason.UNSAVED) and program.restart:  # perhaps it does
            what, patterns = "both", both(program)
        if not patterns:
            return
        vm.pack(len(patterns), what)

        def packed() -> bool:
            vm.check()
            return vm.packed

        self.loop.wait(packed, self.limits.hard)
        if not vm.packed:
            raise stopped(Reason.WALLTIME, "pack the outputs")
        self.unmatched = [patterns[index] for index in sorted(vm.missing)] if what == "outputs" else []
        if vm.pack_failure:
            self.trouble = Ending(
                Reason.OUTPUT, f"pack the outputs in the guest: {vm.pack_failure}", "ask for more scratch"
            )
        assert self.run_folder is not None
        disk, out = self.run_folder / "out", self.entry / wire.OUTPUTS

        def in_time() -> None:
            if now() > self.limits.hard:
                raise stopped(Reason.WALLTIME, "bring out the outputs")

        def unpack() -> None:
            from gridhypervisor.agent.outputs import Outputs  # not before the guest runs: its start waits for imports

            out.mkdir(mode=0o700, exist_ok=True)
            unpacked = Outputs(out, patterns, in_time)
            self.files = unpacked.files
            try:
                unpacked.unpack(disk)
            finally:
                self.trouble = self.trouble or unpacked.complaint

        whole = False
        try:
            self.loop.apart(unpack, lambda: None)
            whole = self.trouble is None
        except Ending as ending:
            if ending.reason is Reason.WALLTIME:
                raise
            self.trouble = self.trouble or ending
        except OSError as error:
            raise Ending(
                Reason.NODE_DISK,
                f"write the outputs to {out}: {error.strerror or error}",
                "free space or quota where the account's workdir is",
            ) from error
        finally:
            if not whole and what != "outputs":  # nobody is to go on from a part of them
                known = self.files.items()
                self.files = {path: file for path, file in known if not wire.declared(path, program.restart)}

    def _shut_down(self, vm: Vm) -> None:
        """End the guest: gracefully, then by the monitor, then by force; each within its bound."""
        self.report.enter(Phase.SHUT_DOWN)
        vm.say("POWEROFF")
        for limit, harder in ((_POWER_OFF, vm.quit), (5.0, vm.kill), (5.0, None)):
            if self.loop.wait(lambda: not vm.running, now() + limit):
                return
            if harder is not None:
                self.log("the guest does not end, force it")
                harder()

    # --- what may happen meanwhile ----------------------------------------------------------------------------------

    def _await(self, done: Callable[[], bool], limit: float | None = None) -> bool:
        """Wait for the guest, while it lives and nobody wants it to stop."""

        def look() -> bool:
            assert self.vm is not None
            self.wishes.check()
            self.vm.check()
            return done()

        return self.loop.wait(look, limit)

    def _beat(self) -> None:
        if self.vm is not None and not self.vm.ready:
            self.report.note = f"waiting for the guest's word, {self.report.elapsed:.0f} s"
        if self.vm is not None:
            self.report.asks = self.vm.asks
        if self.meter is not None:
            self.report.effort = self.meter.read()
        self.report.write()

    # --- the end ----------------------------------------------------------------------------------------------------

    def _read_manifest(self) -> Manifest:
        path = self.entry / wire.MANIFEST
        try:
            manifest = spool.read_json(path, Manifest)
        except (OSError, wire.WireError) as error:
            raise Ending(Reason.MANIFEST, f"read {path}: {error}", "submit again") from error
        if manifest is None:
            raise Ending(Reason.MANIFEST, f"read {path}: it is not there", "check the account's workdir")
        if manifest.protocol != wire.PROTOCOL:
            raise Ending(
                Reason.MANIFEST,
                f"read {path}: it speaks protocol {manifest.protocol}, this pilot {wire.PROTOCOL}",
                "the bundle is not the controller's: upload it again",
            )
        return manifest

    def _refuse(self, ending: Ending) -> int:
        """There is no manifest to act on: own the entry, so that nobody else acts on it, and say so if we do."""
        self.log(f"{ending.message}; {ending.hint}")
        owner = OwnerRecord("pilot", self.claim, 0, os.uname().nodename, "unreadable manifest")
        with contextlib.suppress(OSError, wire.WireError):
            if spool.take_owner(self.entry, owner).claim == owner.claim:
                leave_sentinel(self.entry, ExitRecord(
                    self.entry.name, 0, owner.claim, Outcome.FAILED, ending.reason, ending.message, ending.hint,
                    node=owner.node,
                ))  # fmt: skip
        return 1

    def _record(self, ending: Ending) -> ExitRecord:
        owner = self.report.owner
        assert owner is not None
        ended = self.vm.exit if self.vm else None
        return ExitRecord(
            entry=self.entry.name, epoch=owner.epoch, claim=owner.claim, outcome=ending.outcome, reason=ending.reason,
            message=ending.message, hint=ending.hint, exit_code=ended.code if ended else None,
            outputs=tuple(self.files.values()), hypervisor=self.report.hypervisor, node=owner.node, host=self.host,
            checkpoint=ending.checkpoint, timings=tuple(self.report.timings),
        )  # fmt: skip

    def _end_hypervisor(self, vm: Vm) -> None:
        """By force, and wait until it has ended."""
        vm.kill()
        limit = now() + 10.0
        while vm.running and now() < limit:
            with contextlib.suppress(Ending):  # of what it said last
                self.loop.wait(lambda: not vm.running, limit)

    def _leave(self, record: ExitRecord) -> int:
        """Nothing runs any more; then the sentinel; then nothing is left behind."""
        if self.vm is not None and self.vm.running:
            self.report.enter(Phase.SHUT_DOWN)
            self._end_hypervisor(self.vm)
        if self.attachment is not None:
            self.attachment.end()
        if self.beginning is not None:
            self.beginning.end(well=record.outcome is Outcome.COMPLETED)
            if record.hypervisor is not None:
                record = dataclasses.replace(record, hypervisor=self.beginning.told(record.hypervisor))
        if self.run_folder is not None:
            remove(self.run_folder)
        usage = CpuUsage(
            pilot=cpu_seconds() + (self.vm.watchdog_cpu if self.vm else 0.0),
            hypervisor=self.vm.cpu if self.vm else 0.0,
            program=self.vm.exit.cpu if self.vm and self.vm.exit else None,
        )
        record = dataclasses.replace(record, phases=self.report.finish(), elapsed=self.report.elapsed, usage=usage)
        if self.attachment is not None:
            record = dataclasses.replace(record, frames=self.attachment.counts)
        try:
            if self.vm is not None:
                self.vm.close()
            record = dataclasses.replace(record, streams=settle(self.entry))
        except OSError as error:
            record = instead(
                record, Reason.NODE_DISK, f"write what the guest printed into {self.entry}: {error.strerror}",
                "free space or quota where the account's workdir is",
            )  # fmt: skip
        self.log(f"{record.outcome}, {record.reason}: {record.message or 'the program ended'}")
        try:
            failure = leave_in_any_case(self.entry, record)
            if failure is not None:
                self.log(f"write the sentinel: {failure!r}, so it says less")
        except OSError as error:
            failure = error
            self.log(f"write the sentinel: {error}")
            sys.stderr.write(f"ghv: cannot write {self.entry / wire.EXIT}: {error}\n")
        # A job that another's batch job only serves may be asked to stop; for its own, the batch job may be ended next.
        unasked = self.wishes.stop is None or (bool(self.host) and self.wishes.stop in (Reason.CANCELLED, Reason.MOVED))
        well = record.outcome is Outcome.COMPLETED or record.reason is self.wishes.stop
        self.serves_on = unasked and well and failure is None
        return 0 if record.outcome is Outcome.COMPLETED and failure is None else 1
