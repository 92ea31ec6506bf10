"""Who is looked at when, and who is offered a place: nobody starves, and nothing is kept that no longer holds."""

from __future__ import annotations

from gridhypervisor.execution.agenda import SLACK, Timers, Waiting


def test_those_who_cannot_use_a_place_do_not_keep_others_from_it() -> None:
    waiting = Waiting()
    for i in range(500):
        waiting.add(f"down{i}", "down")
    for i in range(200):
        waiting.add(f"big{i}", "")
    waiting.add("small", "")
    offered: list[str] = []
    while (jobs := waiting.candidates("up", 65)) and "small" not in offered:
        offered += jobs
        assert all(waiting.unfit("up", job) for job in jobs if job != "small")
    assert "small" in offered and not any(job.startswith("down") for job in offered)
    waiting.changed("up")
    assert waiting.candidates("up", 1) == ["big0"]


def test_the_oldest_are_offered_a_place_first_and_those_gone_are_not() -> None:
    waiting = Waiting()
    for job, site in (("j1", ""), ("j2", "a"), ("j3", ""), ("j4", "b")):
        waiting.add(job, site)
    waiting.remove("j1")
    waiting.remove("j1")
    assert waiting.candidates("a", 9) == ["j2", "j3"]
    assert not waiting.unfit("a", "j1") and not waiting.unfit("a", "j4")


def test_they_are_offered_places_in_the_order_in_which_they_were_put() -> None:
    waiting = Waiting()
    for job, site in (("j1", ""), ("j2", "a"), ("j3", ""), ("j4", "")):
        waiting.add(job, site)
    waiting.put_in_order(["j4", "gone", "j2", "j1"])
    assert waiting.candidates("a", 9) == ["j2", "j4", "j1", "j3"], "who was not named comes last"
    assert waiting.candidates("b", 9, lambda job: job != "j4") == ["j1", "j3"], "nor who may have none"
    assert waiting.unfit("b", "j1")
    waiting.may_fit("j1", "b")
    assert waiting.candidates("b", 2) == ["j4", "j1"]
    assert waiting.unfit("b", "j4") and waiting.unfit("a", "j4")
    waiting.all_changed()
    assert waiting.candidates("b", 1) == ["j4"]


def test_a_job_has_one_time_and_those_given_up_are_forgotten() -> None:
    timers = Timers()
    for i in range(10 * SLACK):
        timers.set("j1", 1000.0 + i)
    timers.set("j2", 5.0)
    timers.set("j3", 6.0)
    timers.drop("j3")
    assert len(timers._heap) < 2 * SLACK
    assert list(timers.expired(10.0)) == ["j2"]
    assert list(timers.expired(5000.0)) == ["j1"] and timers.next is None
