"""Workflows as their users see them, over simulated sites, run by the real controller, which may die at any step."""

from __future__ import annotations

from pathlib import Path

import pytest

from gridhypervisor.execution.groupjobs import GroupJobs
from gridhypervisor.model.dagman import parse
from gridhypervisor.model.records import Group, JobState, Wish
from gridhypervisor.model.spec import JobSpec
from gridhypervisor.model.views import JobRequest, ServiceError
from gridhypervisor.model.wire import ImageManifest
from gridhypervisor.model.workflow import Request
from tests.simulation.world import World, in_world

DIAMOND = "JOB A 3-0\nJOB B 5-0\nJOB C 5-0\nJOB D 3-0\nPARENT A CHILD B C\nPARENT B C CHILD D\n"


def ended(world: World, group: str) -> Group:
    found = world.group(group)
    assert found is not None and found.state.final
    return found


def times(world: World, group: str) -> dict[str, tuple[float, float]]:
    """When each job of it was born and ended."""
    return {job.member: (job.created, job.ended or 0.0) for job in world.tasks(group)}


def test_each_node_waits_for_its_parents_though_the_controller_dies_again_and_again() -> None:
    async def story(world: World) -> None:
        group = await world.submit_workflow(DIAMOND)

        def over() -> bool:
            world.deadly = {"before-commit:group" if world.crashes % 2 else "after-commit:group"}
            found = world.group(group)
            return found is not None and found.state.final

        await world.until(over, 3000.0, "the workflow ends")
        world.deadly = set()
        await world.settled()
        assert world.crashes >= 3, "as each of the layers ends"
        found = ended(world, group)
        assert (found.state, found.exit_code, found.rescue) == (JobState.DONE, 0, "")
        began = times(world, group)
        assert sorted(began) == ["A", "B", "C", "D"]
        for parent, child in ("AB", "AC", "BD", "CD"):
            assert began[parent][1] <= began[child][0]

    in_world(story)


def test_after_a_failure_the_rest_goes_on_and_the_rescue_file_says_how_far_it_came() -> None:
    async def story(world: World) -> None:
        text = "JOB A 2-0\nJOB B 2-7\nJOB C 9-0\nJOB D missing\nJOB E 1-0\nPARENT A CHILD B C D\nPARENT B D CHILD E\n"
        group = await world.submit_workflow(text)
        await world.settled()
        found = ended(world, group)
        assert (found.state, found.exit_code) == (JobState.FAILED, 1)
        assert "D: " in found.message and "no such file" in found.message
        nodes = {"A": "done", "B": "failed", "C": "done", "D": "failed", "E": "futile"}
        assert await world.nodes(group) == nodes
        text = Path(found.rescue).read_text()
        assert found.rescue.endswith("/flow.dag.rescue001")
        assert [line for line in text.splitlines() if line.startswith("DONE")] == ["DONE A", "DONE C"]

    in_world(story)


def test_a_node_may_end_the_workflow_and_the_final_node_runs_all_the_same() -> None:
    async def story(world: World) -> None:
        text = "JOB A 2-3\nJOB B 500-0\nJOB C 1-0\nFINAL Z 1-0\nPARENT B CHILD C\nABORT-DAG-ON A 3 RETURN 9\n"
        group = await world.submit_workflow(text)
        await world.settled(400.0)
        found = ended(world, group)
        nodes = await world.nodes(group)
        assert nodes == {"A": "failed", "B": "failed", "C": "futile", "Z": "done"}
        assert {job.member: job.state for job in world.tasks(group)}["B"] is JobState.CANCELLED
        assert (found.state, found.exit_code, found.rescue) == (JobState.DONE, 0, "")  # as the last node says

    in_world(story)


def test_a_node_that_ends_the_workflow_says_its_exit_code() -> None:
    async def story(world: World) -> None:
        text = "JOB A 2-3\nJOB B 1-0\nPARENT A CHILD B\nABORT-DAG-ON A 3 RETURN 9\nRETRY A 5\n"
        group = await world.submit_workflow(text)
        await world.settled()
        found = ended(world, group)
        assert (found.state, found.exit_code) == (JobState.FAILED, 9)
        assert [job.member for job in world.tasks(group)] == ["A"]

    in_world(story)


def test_a_category_holds_nodes_back_and_a_cancel_ends_all_of_it() -> None:
    async def story(world: World) -> None:
        jobs = "".join(f"JOB N{n} 30-0\nCATEGORY N{n} few\n" for n in range(6))
        group = await world.submit_workflow(f"{jobs}MAXJOBS few 2\n")
        most = 0

        def three() -> bool:
            nonlocal most
            most = max(most, sum(not job.state.final for job in world.tasks(group)))
            return len(world.tasks(group)) >= 3

        await world.until(three, 600.0, "a third one begins")
        assert most == 2
        await world.restart()
        await world.wish_group(group, Wish.CANCEL)
        await world.settled()
        found = ended(world, group)
        assert (found.state, found.exit_code) == (JobState.CANCELLED, 1)
        assert len(world.tasks(group)) <= 4
        assert "DONE N" in Path(found.rescue).read_text()
        await world.wish_group(group, Wish.DELETE)
        await world.settled()
        assert world.group(group) is None and not world.tasks(group) and not world.store.nodes(group)

    in_world(story, nodes=8)


def backend(world: World) -> GroupJobs:
    return GroupJobs(world.controller, lambda _: ("0" * 64, ImageManifest(())), "me", "default")


def test_a_workflow_is_refused_whole_for_a_job_file_that_nobody_will_make() -> None:
    async def story(world: World) -> None:
        (world.folder / "good.yaml").write_text("image: x\ncommand: [sleep, $(seconds), '0']\n")
        (world.folder / "bad.yaml").write_text("image: x\ncommand: [a]\narray: 1-3\n")
        text = "JOB A good.yaml\nJOB B bad.yaml\nJOB C missing.yaml\nJOB D later.yaml\nSCRIPT PRE D make\n"
        request = Request(parse("flow.dag", f'{text}VARS A seconds="3"\n').workflow, str(world.folder / "flow.dag"))
        with pytest.raises(ServiceError) as refused:
            await backend(world).submit_workflow(request, "key")
        problem = refused.value.problem
        assert [each["field"] for each in problem.errors] == ["B", "C"], "what D needs, its script is to make"
        assert "a node is one job" in problem.detail and "missing.yaml: No such file" in problem.detail
        assert not world.store.groups()

    in_world(story)


def test_who_follows_a_group_sees_it_to_its_end() -> None:
    async def story(world: World) -> None:
        service = backend(world)
        (world.folder / "job.yaml").write_text("image: x\ncommand: [sleep, '$(seconds)', '0']\n")
        text = 'JOB A job.yaml\nJOB B job.yaml\nPARENT A CHILD B\nVARS ALL_NODES seconds="3"\n'
        request = Request(parse("flow.dag", text).workflow, str(world.folder / "flow.dag"))
        flow = await service.submit_workflow(request, "one")
        assert (await service.submit_workflow(request, "one")).id == flow.id
        spec = JobSpec("x", ("sleep", "3", "${TASK_ID}"), array="0-2")
        array = await service.submit_group(
            JobRequest(spec, str(world.folder), f"{world.folder}/out"), "two", service.myself
        )
        seen = [view async for view in service.follow_group(flow.id)]
        assert [view.nodes.get("done", 0) for view in (seen[0], seen[-1])] == [0, 2]
        assert (seen[-1].state, seen[-1].exit_code, seen[-1].total) == (JobState.DONE, 0, 2)
        last = [view async for view in service.follow_group(array.id)][-1]
        assert (last.state, last.total, last.made, last.well) == (JobState.DONE, 3, 3, 1)
        assert last.first_bad is not None and last.first_bad.member == "1"
        assert [view.id for view in await service.groups(before="", limit=10)] == [array.id, flow.id]

    in_world(story)
