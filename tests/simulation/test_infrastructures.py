"""Virtual infrastructures as their users see them, over simulated sites: all of it, or undone, whatever happens."""

from __future__ import annotations

import msgspec
import pytest

from gridhypervisor.model.batch import Limits
from gridhypervisor.model.infrafile import load
from gridhypervisor.model.infrastructure import InfrastructureSpec, RoleResources
from gridhypervisor.model.infraviews import InfrastructureRequest
from gridhypervisor.model.records import InfrastructureState, JobState, Wish
from gridhypervisor.model.views import ServiceError
from gridhypervisor.simulation.pilot import Pilot
from tests.simulation.scenarios import executing, infrastructure, members, pilots, standing
from tests.simulation.world import World, in_world

S = InfrastructureState


def role(name: str, text: str) -> InfrastructureSpec:
    """The usual one, with this role in the place of the one of its name."""
    other = load("lab.yaml", f"name: lab\nroles: {{{name}: {text}, head: {{image: image}}}}").roles[name]
    spec = infrastructure("")
    return msgspec.structs.replace(spec, roles={**spec.roles, name: other})


async def reaches(world: World, name: str, *states: S, bound: float = 1000.0) -> None:
    await world.until(lambda: standing(world, name) in states, bound, f"{name} is {' or '.join(states)}")


def guests(world: World) -> list[str]:
    """The VMs whose guests run, by name."""
    entries = {pilot.name.split("-")[1] for pilot in executing(world)}
    return sorted(world.records(job).job.member for job in entries)


def test_roles_come_up_in_their_order_and_are_ready_together() -> None:
    async def story(world: World) -> None:
        name = await world.apply(infrastructure(""))

        def in_order() -> bool:
            if any(member.startswith("worker") for member in members(world, name)):
                assert "head-0" in guests(world), "a worker was made before the head was ready"
            return standing(world, name) is S.READY

        await world.until(in_order, 1000.0, "all are ready")
        assert guests(world) == ["head-0", "worker-0", "worker-1"]
        view = await world.infrastructures.infrastructure("lab")
        assert [(vm.name, vm.ready) for vm in view.vms] == [("head-0", True), ("worker-0", True), ("worker-1", True)]
        assert all(vm.site and vm.node for vm in view.vms)
        await world.wish_group(name, Wish.DELETE)
        await world.settled()
        assert world.group(name) is None and not guests(world)

    in_world(story)


def test_half_of_the_sites_are_down_at_the_creation() -> None:
    async def story(world: World) -> None:
        world.sites["site0"].way.cut(10_000.0)
        name = await world.apply(infrastructure(""))
        await reaches(world, name, S.UNDOING)  # one site has room for two of the three
        await world.until(lambda: standing(world, name) is S.FAILED, 2000.0, "it is undone")
        found = world.group(name)
        assert found is not None
        assert "not all VMs were ready within 5m: worker-" in found.standing.why, found.standing
        assert not guests(world), "nothing of it is left running"

    in_world(story, nodes=2, places=2)


def test_what_is_kept_becomes_ready_when_it_can() -> None:
    async def story(world: World) -> None:
        world.sites["site0"].way.cut(600.0)
        spec = msgspec.structs.replace(infrastructure(""), on_failure="keep")
        name = await world.apply(spec)
        await reaches(world, name, S.DEGRADED)
        assert len(guests(world)) == 2
        await reaches(world, name, S.READY, bound=2000.0)
        await world.wish_group(name, Wish.DELETE)
        await world.settled()

    in_world(story, nodes=2, places=2)


def test_a_creation_is_tried_again_as_often_as_it_may_and_leaves_nothing() -> None:
    async def story(world: World) -> None:
        spec = role("worker", "{image: image, after: [head], command: [refuse], ready: {tcp: 80, timeout: 15s}}")
        name = await world.apply(msgspec.structs.replace(spec, on_failure="retry"))
        await reaches(world, name, S.FAILED, bound=2000.0)
        events = [event.message for event in world.store.events(job=name)]
        assert [text.partition(":")[0] for text in events if text.startswith("creation")] == [
            "creation 2 of 3", "creation 3 of 3",
        ]  # fmt: skip
        await world.settled()
        assert not guests(world)

    in_world(story)


def test_a_vm_that_its_site_loses_runs_again_where_its_role_says_so() -> None:
    async def story(world: World) -> None:
        name = await world.apply(role("worker", "{image: image, count: 1, repair: replace}"))
        await reaches(world, name, S.READY)
        lost = next(p for p in executing(world) if world.records(p.name.split("-")[1]).job.member == "worker-0")
        lost.kill()
        await reaches(world, name, S.DEGRADED)
        await reaches(world, name, S.READY)
        worker = next(job for job in world.tasks(name) if job.member == "worker-0")
        assert [a.epoch for a in world.records(worker.id).allocations] == [1, 2], "the same VM, under the next epoch"
        await world.wish_group(name, Wish.DELETE)
        await world.settled()

    in_world(story)


def test_a_vm_that_ends_by_itself_is_replaced_by_another_or_left() -> None:
    async def story(world: World) -> None:
        text = "{image: image, count: 1, command: [sleep, '30'], repair: replace}"
        name = await world.apply(role("worker", text))
        await reaches(world, name, S.READY)
        first = next(job.id for job in world.tasks(name) if job.member == "worker-0")
        await reaches(world, name, S.DEGRADED)
        await reaches(world, name, S.READY)
        second = next(job.id for job in world.tasks(name) if job.member == "worker-0")
        assert first != second and world.store.job(first) is None
        await world.wish_group(name, Wish.DELETE)
        await world.settled()

    in_world(story)


def test_a_vm_that_ends_and_is_not_to_be_replaced_leaves_it_degraded() -> None:
    async def story(world: World) -> None:
        name = await world.apply(role("worker", "{image: image, count: 1, command: [sleep, '30', '3']}"))
        await reaches(world, name, S.READY)
        await reaches(world, name, S.DEGRADED)

        def told() -> bool:
            found = world.group(name)
            return found is not None and "worker-0" in found.standing.why and "ended with code 3" in found.standing.why

        await world.until(told, 100.0, "it says what became of the worker")
        assert guests(world) == ["head-0"]
        await world.wish_group(name, Wish.CANCEL)
        await world.settled()
        ended = world.group(name)
        assert ended is not None and ended.standing.state is S.CANCELLED

    in_world(story)


def test_nothing_is_made_or_ended_because_a_controller_or_a_site_is_away() -> None:
    async def story(world: World) -> None:
        name = await world.apply(infrastructure(""))
        await reaches(world, name, S.READY)
        made = {job.id for job in world.tasks(name)}
        for site in world.sites.values():
            site.way.cut(300.0)
        await world.restart()
        until = world.loop.time() + 280.0
        await world.until(lambda: world.loop.time() > until, 300.0, "time passes")
        assert standing(world, name) is S.READY and {job.id for job in world.tasks(name)} == made
        assert guests(world) == ["head-0", "worker-0", "worker-1"]
        await world.until(lambda: all(s.facts.up for s in world.controller.sessions.values()), 300.0, "they answer")
        assert standing(world, name) is S.READY, world.story()
        await world.wish_group(name, Wish.DELETE)
        await world.settled()

    in_world(story)


def test_the_lease_ends_it() -> None:
    async def story(world: World) -> None:
        spec = infrastructure("")
        name = await world.apply(
            msgspec.structs.replace(spec, lease=msgspec.structs.replace(spec.lease, duration="2m"))
        )
        await reaches(world, name, S.READY)
        await reaches(world, name, S.EXPIRED)
        await world.settled()
        found = world.group(name)
        assert found is not None and found.state is JobState.DONE
        assert {job.state for job in world.tasks(name)} == {JobState.CANCELLED}

    in_world(story)


def test_applied_again_it_is_changed_only_in_what_differs() -> None:
    async def story(world: World) -> None:
        name = await world.apply(infrastructure(""))
        await reaches(world, name, S.READY)
        made = {job.member: job.id for job in world.tasks(name)}
        grown = role("worker", "{image: image, count: 3, after: [head]}")
        plan = await world.infrastructures.plan_infrastructure(InfrastructureRequest(grown, "/"))
        assert (plan.id, plan.changes, plan.refused) == (name, ("worker: 2 → 3 VMs",), ())
        assert [vm.name for vm in plan.vms] == ["worker-2"] and plan.vms[0].site
        assert await world.apply(grown) == name
        await reaches(world, name, S.READY)
        assert {job.member: job.id for job in world.tasks(name)}.items() > made.items(), "those that there were, stay"
        other = role("worker", "{image: another, count: 3, after: [head]}")
        plan = await world.infrastructures.plan_infrastructure(InfrastructureRequest(other, "/"))
        assert plan.refused == ("roles.worker.image",)
        with pytest.raises(ServiceError, match=r"cannot be changed in roles\.worker\.image"):
            await world.apply(other)
        await world.wish_group(name, Wish.DELETE)
        await world.settled()

    in_world(story)


def test_scaling_beyond_bounds_or_of_no_role_is_refused_with_what_is_allowed() -> None:
    async def story(world: World) -> None:
        name = await world.apply(role("worker", "{image: image, count: {initial: 1, min: 1, max: 2}}"))
        for counts, words in (({"worker": 3}, "give 1 to 2"), ({"slave": 1}, "roles are head, worker")):
            with pytest.raises(ServiceError) as caught:
                await world.infrastructures.scale("lab", counts)
            assert words in str(caught.value.problem.hint) and caught.value.problem.status == 422
        await world.wish_group(name, Wish.DELETE)
        await world.settled()

    in_world(story)


def test_a_vm_is_never_moved_by_policy_once_it_runs() -> None:
    async def story(world: World) -> None:
        name = await world.apply(infrastructure(""))
        await reaches(world, name, S.READY)
        before: list[Pilot] = pilots(world)
        until = world.loop.time() + 900.0
        await world.until(lambda: world.loop.time() > until, 1000.0, "time passes")
        assert pilots(world) == before
        await world.wish_group(name, Wish.DELETE)
        await world.settled()

    in_world(story)


def test_it_outlives_the_batch_jobs_under_it() -> None:
    """Its sites give none of more than 80 s: its guests are saved and go on, and it is ready again."""

    async def story(world: World) -> None:
        for site in world.sites.values():
            object.__setattr__(site.driver, "limits", lambda _: Limits(version="simulated", max_walltime=80))
            site.way.cut(0.0)  # what is connected knows of no limit
        small = RoleResources(memory="128Mi", scratch="64Mi")  # and soon saved
        spec = infrastructure("on_failure: keep\n")
        roles = {each: msgspec.structs.replace(role, resources=small) for each, role in spec.roles.items()}
        name = await world.apply(msgspec.structs.replace(spec, roles=roles))
        await reaches(world, name, S.READY)
        tasks = [job.id for job in world.tasks(name)]

        def gone_on() -> bool:
            attempts = [world.records(job).allocations for job in tasks]
            assert all(a.restore or a.untold for each in attempts for a in each[1:]), "one began anew"
            return all(any(a.restore for a in each) for each in attempts) and standing(world, name) is S.READY

        await world.until(gone_on, 1500.0, "each has gone on in another batch job, and all are ready again")
        await world.wish_group(name, Wish.DELETE)
        await world.settled()

    in_world(story)
