"""The pilot: the payload of a batch job. It runs one VM from its manifest to its sentinel.

It takes the allocation's `owner` before anything else that others could see; who comes second runs nothing. Then one
phase after another, each a method below; whatever ends the allocation raises `Ending`, and `exit.json` says so, once,
last. What a guest is made of and how the parts work is in the modules beside; this one says in which order, and what a
signal, a wish of the controller or the walltime means at each moment.

    PREPARE ─▶ BOOT ─▶ STAGE_IN ─▶ EXECUTE ─▶ STAGE_OUT ─▶ SHUT_DOWN ─▶ exit.json
       └─────────┴─────────┘ stop: ends here   │stop: TERM to the program, then on as usual, STOPPED at the end

Where the manifest asks for a probe, there is PREPARE alone: it looks at the node (`survey.py`), and boots nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gridhypervisor.agent import channel, processes, scratchdisk, spool
from gridhypervisor.agent.ending import Ending, instead, leave_in_any_case, leave_sentinel, now, settle
from gridhypervisor.agent.grant import Grant
from gridhypervisor.agent.limits import Limits
from gridhypervisor.agent.loop import Loop
from gridhypervisor.agent.node import MARGIN, Node, remove
from gridhypervisor.agent.report import Report, cpu_seconds, process_start, where
from gridhypervisor.agent.verdict import stopped, verdict
from gridhypervisor.agent.watchdog import Watchdog
from gridhypervisor.agent.world import World, WorldError
from gridhypervisor.model import wire
from gridhypervisor.model.wire import (
    CpuUsage,
    ExitRecord,
    HypervisorKind,
    Manifest,
    Outcome,
    OutputFile,
    OwnerRecord,
    Phase,
    Reason,
)

if TYPE_CHECKING:
    from gridhypervisor.agent.hypervisor import Machine
    from gridhypervisor.agent.inotify import Inotify
    from gridhypervisor.agent.vm import Vm

_POLL = 2.0  # seconds between looks into control/, which on a network file system nothing else announces
_POWER_OFF = 10.0  # seconds for the guest to power off; it takes a fraction of one
_STAGE_LIMIT = 120.0  # seconds for the guest to make the job's folder the user's
_SILENT_AFTER = 60.0  # seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the VM of an entry; 0 when the program ran to its end or somebody else owns the entry, else 1."""
    words = list(sys.argv[1:] if argv is None else argv)
    given = dict(zip(words[::2], words[1::2], strict=False))
    if len(words) != 4 or given.keys() != {"--entry", "--scratch"}:
        sys.stderr.write("usage: pilot --entry FOLDER (in the spool) --scratch FOLDER (on the node's own disk)\n")
        return 64
    os.umask(0o077)
    return play(Path(given["--entry"]).absolute(), Path(given["--scratch"]).absolute(), process_start())


def play(
    entry: Path, scratch: Path, started: float, *, claim: str = "", refused: Ending | None = None, carrying: float = 0.0
) -> int:
    """Run the VM of an entry; like `main`. A courier gives `claim`, by which it owns the entry, `refused`, why no guest
    may be started, and how many seconds of the walltime it needs itself."""
    watchdog = Watchdog()
    try:
        return Pilot(entry, scratch, watchdog, started, claim, refused, carrying).run()
    finally:
        watchdog.dismiss()


class Pilot:
    """One run of one pilot."""

    def __init__(
        self, entry: Path, scratch: Path, watchdog: Watchdog, started: float, claim: str = "",
        refused: Ending | None = None, carrying: float = 0.0,
    ) -> None:  # fmt: skip
        """See `play`."""
        self.entry = entry
        self.claim = claim or f"{os.uname().nodename}:{os.getpid()}:{os.urandom(8).hex()}"
        self.refused, self.carrying = refused, carrying
        self.workdir = entry.parent.parent
        self.scratch = scratch
        self.watchdog = watchdog
        self.report = Report(entry, started)
        self.loop = Loop()
        self.stop: Reason | None = None  # why the allocation is to end, once somebody said so
        self.stop_said_at = float("inf")
        self.run_folder: Path | None = None
        self.vm: Vm | None = None
        self.interrupted: Reason | None = None  # why the program was stopped, where it had not ended before
        self.files: dict[str, OutputFile] = {}
        self.trouble: Ending | None = None  # with the outputs
        self.unmatched: list[str] = []  # patterns that matched nothing
        self.wishes: Inotify | None = None
        self.grant: Grant | None = None  # None: the guest needs none

    def run(self) -> int:
        """Run it all; the process's exit code."""
        self.log(f"pilot {os.getpid()} on {os.uname().nodename}: {self.entry}")
        try:
            self.manifest = self._read_manifest()
            self.limits = Limits.of(self.manifest, self.report.started, self.carrying)
            if self.manifest.grant:
                self.report.grant = self.grant = Grant(self.manifest.grant)
            self._hear_signals()
            owner = OwnerRecord("pilot", self.claim, self.manifest.epoch, os.uname().nodename)
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
        machine, vm = self._prepare()
        self._boot(vm, machine)
        self._stage_in(vm)
        self._execute(vm)
        self._stage_out(vm)
        self._shut_down(vm)
        assert vm.exit is not None
        # A program that ended by itself has ended, though the time ran out or the site lost patience after that.
        stop = self.stop if self.stop is Reason.CANCELLED else self.interrupted
        ending = verdict(
            self.manifest, vm.exit, stop=stop, trouble=self.trouble, unmatched=self.unmatched, cut=sorted(vm.cut)
        )
        return self._record(ending)

    def _listen(self) -> None:
        """Arm the watchdog, make the folder of this run, and hear wishes and the time from now on."""
        owner = self.report.owner
        assert owner is not None
        duty = {
            "entry": str(self.entry), "claim": owner.claim, "epoch": owner.epoch, "node": owner.node,
            "started": self.report.started, "deadline": self.limits.deadline,
        }  # fmt: skip
        self.watchdog.arm(**duty, run="")
        self.node = Node(self.scratch)
        self.run_folder, self.lock = self.node.enter(self.manifest.entry)
        self.watchdog.arm(**duty, run=str(self.run_folder))
        with contextlib.suppress(OSError):
            (self.entry / wire.CONTROL).mkdir(mode=0o700, exist_ok=True)
        # Not all pilots at once: they may share a file server.
        self.loop.every(_POLL * (0.8 + 0.4 * os.urandom(1)[0] / 255), self._look)
        self.loop.every(self.manifest.beat, self._beat)
        self.report.write()
        self._look()

    def _hear_wishes(self) -> None:
        """Hear from now on at once what this machine writes into control/, and look at what is there."""
        from gridhypervisor.agent import inotify  # not before the guest runs, or while layers are fetched

        with contextlib.suppress(OSError):
            self.wishes = inotify.Inotify()
            self.wishes.add(self.entry / wire.CONTROL, inotify.CREATE | inotify.MOVED_TO)
            self.loop.read(self.wishes, self._announced)
        self._look()

    def _hear_signals(self) -> None:
        def stop(name: str) -> Callable[[], None]:
            return lambda: self._wish(None, name)

        # Some sites send USR1 or USR2 as a warning that the time is nearly over, and TERM when it is.
        names = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
        self.loop.signals({number: stop(number.name) for number in names} | {signal.SIGHUP: lambda: None})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, names)  # a courier's pilot has those wait that came before

    def _prepare(self) -> tuple[Machine, Vm]:
        """Everything that the VM needs, verified, on the node."""
        manifest, run = self.manifest, self.run_folder
        assert run is not None
        self._heed_lender()
        for name in self.node.sweep():
            self.log(f"swept {name}: its pilot is gone")
        image = manifest.image
        job = channel.job_file(manifest.program, user=image.user, path=image.path)
        paths = {layer.digest: self.node.has(layer) for layer in image.layers}
        missing = [layer for layer in image.layers if paths[layer.digest] is None]

        def work() -> tuple[Machine, wire.HypervisorUsed, Callable[[], Vm]]:
            world = World.from_environment()
            self.node.make_room(MARGIN)
            for layer in missing:
                self.log(f"verify and copy layer {layer.digest[:12]} ({layer.role}, {layer.size} bytes)")
                paths[layer.digest] = self.node.fetch(layer, self.workdir / wire.CACHE, self._stopped)
            made = scratchdisk.make_scratch(
                world, run, size=manifest.resources.scratch, job_file=job, inputs=manifest.program.inputs,
                source=self.entry / wire.INPUTS, stop=self._stopped,
            )  # fmt: skip
            try:  # the file system is made meanwhile, so here is the time for everything that can wait until now
                from gridhypervisor.agent.machine import compose
                from gridhypervisor.agent.probe import settle
                from gridhypervisor.agent.vm import Vm

                processes.be_subreaper()
                there = {digest: path for digest, path in paths.items() if path is not None}
                hypervisor, used = settle(manifest, there, run, world, self.node.root, self.watchdog)
                machine = compose(manifest, there, run, world, hypervisor.modules())
                log = run / "hypervisor.log"
                return machine, used, lambda: Vm(self.loop, self.watchdog, hypervisor, self.entry, log)
            finally:
                made()

        try:
            if missing or manifest.program.inputs:
                self._hear_wishes()
                machine, used, make_vm = self.loop.apart(work, self._check_stop)
            else:
                machine, used, make_vm = work()
        except WorldError as error:
            raise Ending(Reason.BUNDLE, f"prepare the node: {error}", "upload the bundle again, or retry") from error
        self.report.hypervisor = used
        self.log(f"hypervisor: {used.program}, {used.kind}: {used.why}")
        if used.kind is HypervisorKind.TCG and manifest.hypervisor != HypervisorKind.TCG:
            self.log("this guest is EMULATED, 5 to 30 times slower")
            sys.stderr.write(f"ghv: emulating on {os.uname().nodename}: {used.why}\n")
        self._check_stop()
        return machine, make_vm()

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
            report = self.loop.apart(work, self._check_stop)
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

    def _boot(self, vm: Vm, machine: Machine) -> None:
        if self.grant is not None:
            self._await_grant(self.grant)
        self.report.enter(Phase.BOOT, self.report.note)
        self.vm = vm
        vm.start(machine)
        self.log("hypervisor started")
        if self.wishes is None:
            self._hear_wishes()
        if not self._await(lambda: vm.ready, now() + self.manifest.boot_timeout):
            raise Ending(
                Reason.BOOT,
                f"boot the guest: not ready after {self.manifest.boot_timeout} s; its console ends with: "
                f"{vm.console_tail(3)}",
                "see console.log; a longer boot timeout helps where the node is only slow",
            )
        self.report.ready()

    def _await_grant(self, grant: Grant) -> None:
        """No guest before somebody has said that it may run: the allocation may have been given up long ago."""
        if self.wishes is None:
            self._hear_wishes()
        self.report.note = "waiting for the service's word that its guest may run"
        self.loop.wait(lambda: self._stopped() or now() < grant.until, now() + grant.seconds)
        self._check_stop()
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

    def _execute(self, vm: Vm) -> None:
        """Run the program to its end, or stop it when somebody wishes so."""
        self.report.enter(Phase.EXECUTE)
        vm.run(os.urandom(16).hex())
        debug = self.manifest.debug
        vm.watch_silence(float(debug.get("silent_after", _SILENT_AFTER)), min(self.manifest.beat, 10))

        def ended() -> bool:
            vm.check()
            return vm.exit is not None and vm.streams_ended

        self.loop.wait(lambda: ended() or self._stopped())
        if vm.exit is None and self.stop is not None:
            self.interrupted = self.stop
            grace = min(self.manifest.stop_grace, max(1.0, (self.limits.hard - now()) / 2))
            self.log(f"stop the program ({self.stop}), {grace:.0f} s of grace")
            self.report.note = f"stopping the program: {self.stop}"
            vm.say(f"STOP {grace:.0f}")
            if not self.loop.wait(ended, min(self.limits.hard - 1.0, now() + grace + 10.0)):
                self.log(f"the guest does not say that the program has ended: {vm.words}")
                raise Ending(
                    self.stop,
                    "stop the program: the guest did not say in time that it ended, so its outputs could not be taken",
                    "see console.log",
                    stopped(self.stop, "").outcome,
                )

    def _stage_out(self, vm: Vm) -> None:
        """Bring the outputs from the guest into the entry, those of a stopped or failed program too."""
        self.report.enter(Phase.STAGE_OUT)
        patterns = self.manifest.program.outputs
        if not patterns:
            return
        vm.pack(len(patterns))

        def packed() -> bool:
            vm.check()
            return vm.packed

        self.loop.wait(packed, self.limits.hard)
        if not vm.packed:
            raise stopped(Reason.WALLTIME, "pack the outputs")
        self.unmatched = [patterns[index] for index in sorted(vm.missing)]
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

        try:
            self.loop.apart(unpack, lambda: None)
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

    def _stopped(self) -> bool:
        return self.stop is not None

    def _check_stop(self) -> None:
        if self.stop is not None:
            raise stopped(self.stop, "prepare the program's run")

    def _await(self, done: Callable[[], bool], limit: float) -> bool:
        """Wait for the guest, while it lives and nobody wants it to stop."""

        def look() -> bool:
            assert self.vm is not None
            self._check_stop()
            self.vm.check()
            return done()

        return self.loop.wait(look, limit)

    def _wish(self, reason: Reason | None, what: str) -> None:
        """Somebody wants the allocation to end; None: by a bare signal."""
        if self.stop is None or (self.stop is Reason.EVICTED and reason is Reason.CANCELLED):
            self.stop = reason or self.limits.meaning(now(), cancelled=self._cancelled())
            self.log(f"{what}: stop, reason {self.stop}")

    def _cancelled(self) -> bool:
        return wire.CANCEL in self._left_in_control()

    def _left_in_control(self) -> list[str]:
        # A listing asks the file server, where a look at one name may be answered from the memory of its absence.
        with contextlib.suppress(OSError):
            return os.listdir(self.entry / wire.CONTROL)
        return []

    def _announced(self) -> None:
        assert self.wishes is not None
        self.wishes.read()
        self._look()

    def _look(self) -> None:
        """Look for wishes and answers, and at the time."""
        if self.grant is not None and self.grant.heard(self._left_in_control()):
            self.watchdog.grant(self.grant.until, self.grant.seconds)
        if self.stop is None and now() >= self.limits.soft:
            self._wish(Reason.WALLTIME, "the walltime is nearly over")
        elif self.stop in (None, Reason.EVICTED) and self._cancelled():
            self._wish(Reason.CANCELLED, "control/cancel")

    def _beat(self) -> None:
        if self.vm is not None and not self.vm.ready:
            self.report.note = f"waiting for the guest's word, {self.report.elapsed:.0f} s"
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
            outputs=tuple(self.files.values()), hypervisor=self.report.hypervisor, node=owner.node,
        )  # fmt: skip

    def _leave(self, record: ExitRecord) -> int:
        """Nothing runs any more; then the sentinel; then nothing is left behind."""
        if self.vm is not None and self.vm.running:
            self.report.enter(Phase.SHUT_DOWN)
            self.vm.kill()
            vm, limit = self.vm, now() + 10.0
            while vm.running and now() < limit:
                with contextlib.suppress(Ending):  # of what it said last
                    self.loop.wait(lambda: not vm.running, limit)
        if self.run_folder is not None:
            remove(self.run_folder)
        usage = CpuUsage(
            pilot=cpu_seconds() + (self.vm.watchdog_cpu if self.vm else 0.0),
            hypervisor=self.vm.cpu if self.vm else 0.0,
            program=self.vm.exit.cpu if self.vm and self.vm.exit else None,
        )
        record = dataclasses.replace(record, phases=self.report.finish(), elapsed=self.report.elapsed, usage=usage)
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
        return 0 if record.outcome is Outcome.COMPLETED and failure is None else 1
