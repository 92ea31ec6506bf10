"""Checkpoints that leave their site: copies on the service's own machine, and guests that go on elsewhere by them.

A copy is made at the user's word (`ghv checkpoint copy`), of each checkpoint where the job's file says so, and of the
one from which a job is to go on where that asks for another site than the checkpoint's: then the job waits for it. With
a copy a job may go on anywhere; it does where its checkpoint is, as long as that site takes it. Where a copy cannot be
taken up is refused beforehand, as far as it is known (`unfit`); else the pilot refuses it, and it is not tried again.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec

from gridhypervisor.model.prediction import Expected
from gridhypervisor.model.records import (
    ActionKind,
    Allocation,
    CheckpointRecord,
    CheckpointState,
    CopyState,
    Job,
)
from gridhypervisor.model.wire import BASELINES, COMMON, HOST, ExitRecord, HypervisorKind, Reason, reaches
from gridhypervisor.planning.checkpoints import THERE, at_home, newest_first, onward, status_of, uncheckpointable
from gridhypervisor.planning.fate import Fate
from gridhypervisor.planning.keeping import NOT_YET
from gridhypervisor.planning.moves import left
from gridhypervisor.planning.processors import shown
from gridhypervisor.planning.sites import carried
from gridhypervisor.planning.suiting import Seeker
from gridhypervisor.planning.world import Case, Observed, Result, SiteFacts
from gridhypervisor.planning.world import Outcome as ActionOutcome

A = ActionKind

MOST_SENT = 3
"""Times that a copy may have changed by the time when it is sent; then it is not made again: the disk here is bad."""


def awaited(
    job: Job, allocations: Sequence[Allocation], checkpoints: Iterable[CheckpointRecord], sites: Container[str]
) -> CheckpointRecord | None:
    """The checkpoint of which a copy has to come before the job goes on: it asks for another site than has it."""
    found = onward(job, allocations, checkpoints, sites)
    if found is None or found.copy is CopyState.KEPT or job.spec.site in ("", found.site):
        return None
    return found


def unfit(kind: HypervisorKind, bundle: str, processor: str, cpu: str, facts: SiteFacts) -> str:
    """Why a guest that was saved elsewhere cannot be taken up at a site, as far as is known; empty: nothing is against
    it. `kind`, `bundle` (digest), `processor` (model): of the node where it was saved; empty where they count not.
    `cpu`: what it was shown."""
    site = facts.site
    if site is not None and carried(site):
        return "no guest can be taken up there: its nodes do not see the workdir (`control: tcp`)"
    if bundle and facts.bundle and bundle != facts.bundle:
        return f"its guest was saved with bundle {bundle[:12]}, and there is {facts.bundle[:12]}"
    if str(kind) in facts.lacks:
        return f"its guest was saved under {kind}, which does not work there"
    probed = site.probed if site is not None else None
    if kind is not HypervisorKind.KVM or probed is None:
        return ""
    if cpu in BASELINES and probed.baseline and not reaches(probed.baseline, cpu):
        return f"its guest was shown a processor of {cpu}, and there is {probed.baseline}"
    if cpu in ("", HOST) and processor and probed.processor and probed.processor != processor:
        words = f"its guest was saved on {processor}, and there is {probed.processor}"
        return f"{words} (one whose file says `cpu: {COMMON}`, or a baseline, goes to both)"
    return ""


def misfit(checkpoint: CheckpointRecord, facts: SiteFacts) -> str:
    """The same of a checkpoint. Of the nodes of its own site its pilot knows better, but for the bundle."""
    made = checkpoint.checkpoint
    bundle, model = made.bundle.removeprefix("world-"), _model(made.processor)
    if facts.name == checkpoint.site:
        facts = SiteFacts(facts.name, up=facts.up, bundle=facts.bundle)
    return unfit(HypervisorKind(made.kind), bundle, model, made.cpu, facts)


def lost(case: Case, sites: Mapping[str, SiteFacts]) -> str:
    """Why a job that is to go on from a checkpoint would begin anew instead, as far as is known; empty: nothing is
    against it."""
    found = onward(case.job, case.allocations, case.checkpoints, sites)
    if found is None:
        return ""
    copy = found.copy is CopyState.KEPT
    whys = [misfit(found, facts) for name, facts in sites.items() if copy or name == found.site]
    return whys[0] if whys and all(whys) else ""


def _model(processor: str) -> str:
    """The model's name, of the lines that a checkpoint has of its processor; empty where it has none."""
    for line in processor.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return ""


def wanting(case: Case, sites: Mapping[str, SiteFacts], now: float, refused: Iterable[str] = ()) -> Seeker:
    """The job as one that wants a site, with what its checkpoint makes of that."""
    away = left(case, now)[0]
    job, found = at_home(case, sites), None
    if case.checkpoints:
        found = onward(case.job, case.allocations, case.checkpoints, sites)
    if found is None or found.copy is not CopyState.KEPT:
        return Seeker(job, frozenset(refused), away)
    home = sites.get(found.site)
    stays = found.state is CheckpointState.KEPT and found.site not in away and found.site not in job.excluded
    if not job.spec.site and stays and home is not None and home.open and home.alive < home.max_jobs:
        return Seeker(replace(job, spec=msgspec.structs.replace(job.spec, site=found.site)), frozenset(refused), away)
    whys = ((name, misfit(found, facts)) for name, facts in sites.items())
    return Seeker(job, frozenset(refused), away, frozenset((name, why) for name, why in whys if why))


def saves(case: Case, facts: SiteFacts | None) -> bool:
    """Whether a running job that is sent to another site takes its guest along, as far as is known; else it begins anew
    there. `facts`: of its present site. Files that it keeps for such cases (`restart_files`) come first."""
    a = case.current
    if a is None or case.job.spec.restart_files or uncheckpointable(case, facts) is not None:
        return False
    status = status_of(case.sight(a))
    return status is not None and status.hypervisor is not None


def unwelcome(case: Case, here: SiteFacts | None, there: SiteFacts) -> str:
    """Why the guest of a running job cannot go on at another site, as far as is known."""
    status = status_of(case.sight(case.newest))
    if status is None or status.hypervisor is None:
        return ""
    probed = here.site.probed if here is not None and here.site is not None else None
    processor, cpu = probed.processor if probed is not None else "", case.newest.cpu
    return unfit(status.hypervisor.kind, here.bundle if here is not None else "", processor, cpu, there)


class Travel(Fate):
    """The rules."""

    copying = ""  # what the copies that are to be made wait for, in words

    def travel(self) -> None:
        """Have copies made that are to be, and removed when nobody needs them; take down what came of it."""
        if not self.checkpoints:
            return
        self.ask_for_copies()
        words, self.waiting = self.waiting, ""
        allocations = self.by_entry()
        asked: set[str] = set()  # of one entry at a time one is copied
        for c in newest_first(self.checkpoints.values()):
            a = allocations[c.entry]
            sight = self.case.sight(a)
            useless = c.state not in THERE or (c.copy is CopyState.WANTED and c.state is CheckpointState.REFUSED)
            if c.copy is not CopyState.NONE and useless:
                self.erase(c, a, sight)
            elif c.copy is CopyState.WANTED and c.site in self.sites and c.entry not in asked:
                asked.add(c.entry)
                self.bring(c, a, sight)
        self.copying, self.waiting = self.waiting, words

    def by_entry(self) -> dict[str, Allocation]:
        known = (*self.case.allocations, *self.records.values())
        return {a.pilot_job: a for a in known if isinstance(a, Allocation)}

    def ask_for_copies(self) -> None:
        """Of a job whose checkpoints are to be copied: of the newest one, when the one before it is here."""
        if not self.job.spec.copy_checkpoints or self.job.state.final:
            return
        there = newest_first(c for c in self.checkpoints.values() if c.state is CheckpointState.KEPT)
        if there and there[0].copy is CopyState.NONE and not any(c.copy is CopyState.WANTED for c in there):
            self.change_copy(there[0], CopyState.WANTED, "")

    def bring(self, c: CheckpointRecord, a: Allocation, sight: Observed) -> None:
        outcome = sight.outcomes.get(A.COPY)
        told = outcome if outcome is not None and outcome.copied == c.id else None
        if told is not None and told.result is Result.OK:
            self.change_copy(c, CopyState.KEPT, "")
            return
        if told is not None and told.result is Result.REFUSED:
            self.change(c, CheckpointState.REFUSED, told.message)
            return
        if told is not None and told.reason is Reason.STAGING and f"{NOT_YET}{told.message}" != c.note:
            # There is no room for it here, mostly: its user can mend that.
            self.change_copy(c, CopyState.WANTED, f"{NOT_YET}{told.message}")
        self.want(a, sight, A.COPY, after=outcome.at if outcome is not None else 0.0, checkpoints=(c.id,))

    def erase(self, c: CheckpointRecord, a: Allocation, sight: Observed) -> None:
        if A.COPY in sight.busy:
            return  # it is being stopped, and its end wakes the planner
        outcome = sight.outcomes.get(A.ERASE)
        if outcome is not None and outcome.result is Result.OK and outcome.copied == c.id:
            self.change_copy(c, CopyState.NONE, "")
            return
        self.want(a, sight, A.ERASE, after=outcome.at if outcome is not None else 0.0, checkpoints=(c.id,))

    def awaits_copy(self) -> bool:
        """Whether the job, which has no attempt, cannot go on before a copy of its checkpoint has come."""
        while (useless := self.fits_nowhere()) is not None:
            self.change_copy(useless, CopyState.REFUSED, "no site can take it up")
        found = awaited(self.job, tuple(self.by_entry().values()), self.checkpoints.values(), self.sites)
        if found is None:
            return False
        if found.copy is CopyState.NONE:
            self.change_copy(found, CopyState.WANTED, f"to go on at {self.job.spec.site}")
        why = f": {self.copying}" if self.copying else ""
        self.waiting = f"checkpoint {found.id} is copied from {found.site}, to go on at {self.job.spec.site}{why}"
        return True

    def fits_nowhere(self) -> CheckpointRecord | None:
        """The checkpoint from which it would go on by a copy that no site is known to be able to take up: to wait for
        one would be in vain."""
        found = self.onward()
        if found is None or found.copy is not CopyState.KEPT or not self.sites:
            return None
        return found if all(misfit(found, facts) for facts in self.sites.values()) else None

    def attempt(self, site: str, words: str, expected: Expected | None, *, ahead: bool = False) -> Allocation:
        """What its guest is shown, and whether it comes by a copy, is written down with it."""
        found, current = self.onward(), self.case.current
        a = super().attempt(site, words, expected, ahead=ahead)
        if ahead and current is not None:
            a = replace(a, cpu=current.cpu)  # of whose guest it will be
        elif found is None:
            a = replace(a, cpu=shown(self.job, self.sites.values()))
        else:
            copied = not (found.site == site and found.state is CheckpointState.KEPT)
            a = replace(a, cpu=found.checkpoint.cpu, copied=copied)
        self.put(a)
        return a

    def unsound(self, a: Allocation, outcome: ActionOutcome) -> None:
        """The copy that was to be sent along is not what it was: it is made again, or another way is found. Nothing was
        submitted."""
        if (used := self.checkpoints.get(a.restore)) is not None:
            sent = sum(x.restore == used.id and x.copied and x.times.submitting is None for x in self.case.allocations)
            again = used.state is CheckpointState.KEPT and used.site in self.sites and sent < MOST_SENT
            self.change_copy(used, CopyState.WANTED if again else CopyState.REFUSED, outcome.message)
        self.withdraw(a, f"{outcome.message}; it goes on {self.whence()}")

    def finish(self, a: Allocation, exit: ExitRecord) -> None:
        """One that was saved to go on at another site asks for that from now on."""
        super().finish(a, exit)
        if exit.checkpoint is not None and a.saving is not None and a.saving.to and not self.job.wish.ends:
            spec = msgspec.structs.replace(self.job.spec, site=a.saving.to)
            self.job = replace(self.job, spec=spec, version=self.case.job.version + 1)
            self.put(self.job)
