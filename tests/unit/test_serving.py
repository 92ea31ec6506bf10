"""A service in its guest: when it is ready, and commands beside it. The guest is played by hand."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from gridhypervisor.agent import entries, serving
from gridhypervisor.agent.channel import job_file
from gridhypervisor.agent.executions import KEPT, Executions
from gridhypervisor.agent.relayfiles import Refused
from gridhypervisor.agent.serving import Serving
from gridhypervisor.agent.wishes import Wishes
from gridhypervisor.model import wire
from gridhypervisor.model.wire import LONGEST_COMMAND, MOST_PRINTED, Program, ReadyProbe


class Guest:
    """What the pilot has of a VM that these parts use."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.probed: tuple[int, int, str] | None = None
        self.execution: Callable[[list[str]], None] | None = None

    def say(self, line: str) -> None:
        self.said.append(line)

    def hear(self, *lines: str) -> None:
        for line in lines:
            assert self.execution is not None
            self.execution(line.split())


class Timers:
    def __init__(self) -> None:
        self.ticks: list[Callable[[], None]] = []

    def every(self, interval: float, callback: Callable[[], None]) -> None:
        self.ticks.append(callback)

    def tick(self) -> None:
        for callback in self.ticks:
            callback()


class Report:
    def __init__(self) -> None:
        self.serves, self.note, self.written = False, "", 0

    def write(self) -> None:
        self.written += 1


def serve(probe: ReadyProbe | None) -> tuple[Serving, Guest, Timers, Report]:
    guest, timers, report = Guest(), Timers(), Report()
    return (
        Serving(probe, cast(Any, guest), cast(Any, timers), cast(Any, report), lambda text: None),
        guest,
        timers,
        report,
    )


def test_without_a_probe_a_service_is_ready_when_it_has_been_started() -> None:
    _, guest, _, report = serve(None)
    assert report.serves and report.written == 1 and guest.said == []


def test_a_probe_is_asked_until_it_passes_once_and_never_again() -> None:
    part, guest, timers, report = serve(ReadyProbe(tcp=80))
    assert guest.said == ["PROBE 1"] and report.note == "its service is not ready yet"
    timers.tick()
    assert guest.said == ["PROBE 1"], "the first has not been answered"
    guest.probed = (1, 1, "nc: can't connect")
    part.look()
    assert not report.serves and report.note == "its service is not ready yet: nc: can't connect"
    timers.tick()
    guest.probed = (1, 0, "")  # an answer to what is not asked any more
    part.look()
    assert not report.serves
    guest.probed = (2, 0, "")
    part.look()
    assert report.serves and report.note == "" and report.written == 2
    timers.tick()
    assert guest.said == ["PROBE 1", "PROBE 2"]


def test_whoever_waits_hears_at_once_why_it_is_not_ready_and_that_it_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 0.0
    monkeypatch.setattr(serving, "now", lambda: moment)
    part, guest, timers, report = serve(ReadyProbe(tcp=80, timeout=30))
    guest.probed = (1, 1, "refused")
    part.look()
    assert report.written == 1 and "refused" in report.note
    timers.tick()
    guest.probed = (2, 1, "refused")
    part.look()
    assert report.written == 1, "that it is still so, the next beat tells"
    moment = 30.0
    timers.tick()
    timers.tick()
    assert report.written == 2


def test_a_guest_that_does_not_answer_is_asked_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 0.0
    monkeypatch.setattr(serving, "now", lambda: moment)
    _, guest, timers, _ = serve(ReadyProbe(tcp=80, limit=5))
    timers.tick()
    moment = 16.0
    timers.tick()
    assert guest.said == ["PROBE 1", "PROBE 2"]


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (None, "ready() {\n:\n}"),
        (ReadyProbe(tcp=6817, limit=3), "ready() {\nknock 3 6817\n}"),
        (ReadyProbe(http=80, path="/a'b"), "ready() {\nfetch 10 'http://127.0.0.1:80/a'\\''b'\n}"),
        (ReadyProbe(command=("test", "-e", "x y")), "start 'test' '-e' 'x y'\n}"),
    ],
)
def test_the_guest_is_told_how_to_find_out(probe: ReadyProbe | None, words: str) -> None:
    assert words in job_file(Program(("true",), {"A": "b"}), user="root", path="", ready=probe)


class Executing:
    """An entry whose pilot runs commands in a guest."""

    def __init__(self, entry: Path) -> None:
        self.entry, self.guest, self.timers = entry, Guest(), Timers()
        (entry / wire.CONTROL).mkdir(parents=True)
        self.wishes = Wishes(
            entry, cast(Any, Unlimited()), None, cast(Any, None), cast(Any, self.timers), lambda text: None
        )
        Executions(entry, cast(Any, self.guest), self.wishes, cast(Any, self.timers), lambda text: None)

    def ask(self, number: int, *command: str, limit: int = 60, given: bytes = b"") -> None:
        execute = {"command": list(command), "limit": limit, "input": data(given)}
        request = {"what": "exec", "number": number, "execute": execute}
        name, text = entries.word_of("e", request)
        entries.leave_word(self.entry / wire.CONTROL / name, text)
        self.wishes.look()

    def result(self, number: int) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads((self.entry / wire.EXECUTIONS / f"{number}.json").read_bytes()))

    def printed(self, number: int, stream: str) -> bytes:
        return (self.entry / wire.EXECUTIONS / f"{number}.{stream}").read_bytes()


class Unlimited:
    soft = float("inf")


def data(text: bytes) -> str:
    return base64.b64encode(text).decode()


def test_a_command_goes_to_the_guest_once_and_its_result_into_the_entry(tmp_path: Path) -> None:
    lab = Executing(tmp_path / "e")
    lab.ask(5, "sh", "-c", "it's")
    lab.ask(5, "sh", "-c", "again")
    lab.ask(4, "older")
    [line] = lab.guest.said
    verb, number, script = line.split()
    assert (verb, number) == ("EXEC", "5") and base64.b64decode(script) == b"start 'sh' '-c' 'it'\\''s'"
    assert list((lab.entry / wire.CONTROL).iterdir()) == [], "what was taken does not stay"
    lab.guest.hear(f"PRINTED 5 out {data(b'one ')}", f"PRINTED 5 err {data(b'bad')}", f"PRINTED 5 out {data(b'two')}")
    assert not (lab.entry / wire.EXECUTIONS / "5.json").exists(), "it has not ended"
    lab.guest.hear("EXECUTED 5 3")
    assert lab.result(5) == {"code": 3}
    assert (lab.printed(5, "out"), lab.printed(5, "err")) == (b"one two", b"bad")


def test_root_in_the_guest_may_say_what_it_likes_and_no_more_is_kept_than_of_a_command(tmp_path: Path) -> None:
    lab = Executing(tmp_path / "e")
    lab.ask(1, "true")
    lab.guest.hear(
        f"PRINTED 2 out {data(b'of none')}", "EXECUTED 2 0", "EXECUTED x y", "PRINTED 1 out %%%", "PRINTED 1"
    )
    piece = data(bytes(1000))
    lab.guest.hear(*[f"PRINTED 1 out {piece}"] * (MOST_PRINTED // 1000 + 10), "EXECUTED 1 999")
    assert len(lab.printed(1, "out")) == MOST_PRINTED and lab.result(1) == {"code": 255}
    assert sorted(path.name for path in (lab.entry / wire.EXECUTIONS).iterdir()) == ["1.json", "1.out"]
    lab.guest.hear(f"PRINTED 1 out {piece}", "EXECUTED 1 0")
    assert lab.result(1) == {"code": 255}, "what has ended, has ended"


def test_what_no_guest_can_be_told_is_refused_in_words(tmp_path: Path) -> None:
    lab = Executing(tmp_path / "e")
    lab.ask(1, "echo", "x" * LONGEST_COMMAND)
    lab.ask(2)
    assert lab.guest.said == []
    assert "longer than 2048 bytes" in lab.result(1)["why"] and "empty" in lab.result(2)["why"]
    with pytest.raises(Refused):
        entries.word_of("e", {"what": "exec", "number": 0, "execute": {"command": ["true"]}})


def test_a_command_that_takes_too_long_is_ended_and_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = 0.0
    monkeypatch.setattr("gridhypervisor.agent.executions.now", lambda: moment)
    lab = Executing(tmp_path / "e")
    lab.ask(1, "sleep", "100", limit=10)
    moment = 9.0
    lab.timers.tick()
    assert len(lab.guest.said) == 1
    moment = 10.0
    lab.timers.tick()
    assert lab.guest.said[1] == "END 1"
    moment = 16.0
    lab.timers.tick()
    assert "took too long" in lab.result(1)["why"]


def test_of_many_commands_the_last_are_kept(tmp_path: Path) -> None:
    lab = Executing(tmp_path / "e")
    for number in range(1, KEPT + 3):
        lab.ask(number, "true")
        lab.guest.hear(f"PRINTED {number} out {data(b'x')}", f"EXECUTED {number} 0")
    left = {path.name for path in (lab.entry / wire.EXECUTIONS).iterdir()}
    assert left == {f"{number}.{end}" for number in range(3, KEPT + 3) for end in ("out", "json")}


def test_what_a_command_is_given_goes_to_the_guest_as_fast_as_it_takes_it(tmp_path: Path) -> None:
    lab, given = Executing(tmp_path / "e"), bytes(5000)
    lab.ask(1, "cat", given=given)
    assert len(lab.guest.said) == 1
    for _ in range(5):
        lab.guest.hear("TOOK 1")
    words = [line.split() for line in lab.guest.said]
    assert [each[0] for each in words] == ["INPUT", "INPUT", "INPUT", "EXEC"]
    assert b"".join(base64.b64decode(each[2]) for each in words[:3]) == given
