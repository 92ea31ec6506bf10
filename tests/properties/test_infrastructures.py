"""Searches over specs and over histories of virtual infrastructures."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.execution.steps import Still
from gridhypervisor.model.infrafile import load
from gridhypervisor.model.infrastructure import (
    CountSpec,
    HttpSpec,
    InfrastructureSpec,
    LeaseSpec,
    PlacementSpec,
    ProbeSpec,
    RoleResources,
    RoleSpec,
)
from gridhypervisor.model.records import Blueprint, Group, InfrastructureState, JobState, RoleImage, Wish
from gridhypervisor.model.wire import ImageManifest
from gridhypervisor.planning.infrastructures import (
    Decision,
    Member,
    begun,
    births,
    changed,
    decide,
    differences,
    wanted,
)
from tests.simulation.scenarios import Story, an_infrastructure, an_infrastructure_that_is_undone
from tests.simulation.world import World, in_world

S = InfrastructureState

texts = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20).filter(lambda t: "${" not in t)
durations = st.integers(1, 5000).map(lambda n: f"{n}s")
sizes = st.integers(1, 64).map(lambda n: f"{n}Gi")
counts = st.one_of(st.integers(0, 5), st.builds(CountSpec, st.integers(2, 5), st.integers(0, 2), st.integers(5, 9)))
probes = st.one_of(
    st.none(),
    st.builds(ProbeSpec, tcp=st.integers(1, 65535), interval=durations, limit=durations, timeout=durations),
    st.builds(ProbeSpec, http=st.builds(HttpSpec, st.integers(1, 65535)), timeout=durations),
    st.builds(ProbeSpec, exec=st.lists(texts, min_size=1, max_size=3).map(tuple)),
)
NAMES = ("head", "worker", "node-a", "x")


@st.composite
def specs(draw: st.DrawFn) -> InfrastructureSpec:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    roles = {
        name: draw(
            st.builds(
                RoleSpec,
                image=texts.filter(bool),
                count=counts,
                command=st.lists(texts, max_size=3).map(tuple),
                environment=st.dictionaries(st.sampled_from(["A", "B_1"]), texts, max_size=2),
                resources=st.builds(RoleResources, st.integers(1, 8), sizes, sizes),
                hypervisor=st.sampled_from(["auto", "tcg"]),
                boot_timeout=durations,
                after=st.lists(st.sampled_from(names[:i]), unique=True).map(tuple) if i else st.just(()),
                ready=probes,
                repair=st.sampled_from(["none", "replace"]),
                placement=st.builds(PlacementSpec, st.just(""), st.sampled_from(["", "Memory > 1"]), st.just("")),
            )
        )
        for i, name in enumerate(names)
    }
    return InfrastructureSpec(
        "lab",
        roles,
        lease=LeaseSpec(draw(durations)),
        patience=draw(durations),
        on_failure=draw(st.sampled_from(["keep", "rollback", "retry"])),
    )


@given(specs())
def test_a_spec_that_is_written_down_is_read_as_it_was(spec: InfrastructureSpec) -> None:
    plain = msgspec.to_builtins(spec)
    assert load("lab.yaml", yaml.safe_dump(plain, allow_unicode=True)) == spec
    assert msgspec.json.decode(msgspec.json.encode(spec), type=InfrastructureSpec) == spec


def infrastructure(spec: InfrastructureSpec) -> Group:
    images = {name: RoleImage("0" * 64, ImageManifest(())) for name in spec.roles}
    blueprint = Blueprint(spec, images)
    return Group("i1", "me", "default", spec.name, "", "/", 0.0, blueprint=blueprint, standing=begun(blueprint, 0.0))


class Play:
    """An infrastructure over time, and VMs that do as fate wills."""

    def __init__(self, spec: InfrastructureSpec) -> None:
        self.group, self.members, self.now, self.number = infrastructure(spec), dict[str, Member](), 0.0, 0

    def step(self) -> Decision:
        """Decide once, and do what was decided."""
        decision = decide(self.group, list(self.members.values()), self.now)
        assert not (decision.births and decision.ends), "one thing after another: first what is committed"
        if decision.standing is not None:
            self.group = replace(self.group, standing=decision.standing)
        if decision.over is not None:
            self.group = replace(self.group, state=decision.over)
        for birth in births(self.group, decision.births, self.number, self.now):
            assert birth.job.member not in self.members, "a name is given twice"
            self.members[birth.job.member] = Member(birth.job.member, birth.job.id, JobState.PENDING, Wish.RUN, False)
        self.number += len(decision.births)
        for job, wish in decision.ends:
            [name] = [m.name for m in self.members.values() if m.job == job]
            self.members[name] = replace(self.members[name], wish=wish)
        return decision

    def settle(self) -> None:
        """Decide until nothing more follows."""
        before = None
        for _ in range(200):
            now = (self.group, dict(self.members))
            if now == before or self.group.state.final:
                return
            before = now
            self.step()
        raise AssertionError(f"it never comes to rest: {self.group.standing}")

    def obey(self) -> None:
        """The sites do all that is wished, and whoever may, becomes ready."""
        for name, m in list(self.members.items()):
            if m.wish is Wish.DELETE:
                del self.members[name]
            elif m.wish is Wish.CANCEL:
                self.members[name] = replace(m, state=JobState.CANCELLED, ready=False)
            elif not m.state.final:
                self.members[name] = replace(m, state=JobState.RUNNING, ready=True)


FATES = ("ready", "unknown", "lost", "failed", "late", "obey", "time", "cancel")


@given(specs(), st.lists(st.tuples(st.sampled_from(FATES), st.integers(0, 30)), max_size=12))
def test_whatever_befalls_its_vms_it_comes_to_rest_and_ends_with_none_left(
    spec: InfrastructureSpec, fates: list[tuple[str, int]]
) -> None:
    play = Play(spec)
    play.settle()
    for fate, which in fates:
        if play.group.state.final:
            break
        names = sorted(play.members)
        name = names[which % len(names)] if names else ""
        match fate:
            case "obey":
                play.obey()
            case "time":
                play.now += which * 10.0
            case "cancel" if which == 0:
                play.group = replace(play.group, wish=Wish.CANCEL)
            case "ready" if name and not play.members[name].state.final:
                play.members[name] = replace(play.members[name], state=JobState.RUNNING, ready=True)
            case "unknown" if name and play.members[name].state is JobState.RUNNING:
                play.members[name] = replace(play.members[name], ready=None)
            case "lost" if name and not play.members[name].state.final:
                play.members[name] = replace(play.members[name], state=JobState.PENDING, ready=False)
            case "failed" if name:
                play.members[name] = replace(play.members[name], state=JobState.FAILED, ready=False)
            case "late" if name and play.members[name].state is JobState.RUNNING:
                play.members[name] = replace(play.members[name], late=True, ready=False)
        play.settle()
        there = [m for m in play.members.values() if not m.state.final]
        if play.group.standing.state is S.READY:
            assert all(play.members[name].ready is not False for name in wanted(spec))
        if play.group.state.final:
            assert not there, "it is over, and a VM of it runs"
    play.group = replace(play.group, wish=Wish.CANCEL)
    for _ in range(5):
        play.settle()
        play.obey()
    play.settle()
    assert play.group.state.final and all(m.state.final for m in play.members.values())


@given(specs(), st.lists(st.integers(2, 5), min_size=4, max_size=4), st.booleans())
def test_a_change_leads_to_what_was_asked_for_and_spares_who_may_stay(
    old: InfrastructureSpec, numbers: list[int], drop: bool
) -> None:
    play = Play(old)
    for _ in range(10):
        play.settle()
        play.obey()
    play.settle()
    assert play.group.standing.state is S.READY and sorted(play.members) == sorted(wanted(old))
    roles = {name: role.scaled(count) for (name, role), count in zip(old.roles.items(), numbers, strict=False)}
    if drop and len(roles) > 1:
        roles.popitem()  # which no other comes after
    new = msgspec.structs.replace(old, roles=roles)
    assert differences(old, old) == ([], []) and not differences(old, new)[1]
    images = {name: RoleImage("0" * 64, ImageManifest(())) for name in new.roles}
    kept = {name: m.job for name, m in play.members.items() if name in wanted(new)}
    play.group = changed(play.group, Blueprint(new, images), play.now)
    for _ in range(10):
        play.settle()
        play.obey()
    play.settle()
    assert play.group.standing.state is S.READY and sorted(play.members) == sorted(wanted(new))
    assert kept == {name: play.members[name].job for name in kept}


class Death(set[str]):
    """Of the controller, when it takes a step for so many times. As a set of steps it holds that one, just then."""

    def __init__(self, step: str, times: int) -> None:
        super().__init__({step})
        self._step, self._times, self.taken = step, times, 0

    def __contains__(self, step: object) -> bool:
        self.taken += step == self._step
        return step == self._step and self.taken == self._times


STORIES = pytest.mark.parametrize(
    "story", [an_infrastructure, an_infrastructure_that_is_undone], ids=lambda story: story.__name__
)


def dies(story: Story, step: str, times: int = 1) -> tuple[int, int]:
    """How often it died at that step, and took it, in a story that must end well all the same."""
    death = Death(step, times)

    async def deadly(world: World) -> None:
        world.deadly = death
        await story(world)
        world.judge()

    return in_world(deadly).crashes, death.taken


@STORIES
def test_the_controller_dies_at_each_step_of_its_life(story: Story) -> None:
    """Whatever was committed is gone on with, and nothing is made twice or left."""
    died = {step: dies(story, step)[0] for step in sorted(in_world(story).reached)}
    assert len(died) >= 28 and sum(died.values()) >= len(died) - 2, "what happens may for once happen in another order"


@STORIES
@pytest.mark.parametrize("when", ["before", "after"])
def test_the_controller_dies_at_each_commit_of_its_own(story: Story, when: str) -> None:
    step = f"{when}-commit:{Still.GROUP}"
    _, taken = dies(story, step, 0)
    assert taken >= 5
    for times in range(1, taken + 1):
        assert dies(story, step, times)[0] <= 1
