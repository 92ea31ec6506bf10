"""What a run comes to: what explains most comes first, and every ending says what to do next."""

from __future__ import annotations

import pytest

from gridhypervisor.agent.channel import Exit
from gridhypervisor.agent.ending import Ending
from gridhypervisor.agent.verdict import verdict
from gridhypervisor.model.wire import ImageManifest, Manifest, Outcome, Program, Reason, Resources

MANIFEST = Manifest(
    protocol=1, installation="i", entry="e", vm="v", epoch=1, allocation="a", job="j", image=ImageManifest(()),
    image_digest="0" * 64, program=Program(("true",)), resources=Resources(),
)  # fmt: skip
ROOM = 1 << 30
TROUBLE = Ending(Reason.OUTPUT, "pack: tar failed", "ask for more scratch")


@pytest.mark.parametrize(
    ("ended", "stop", "trouble", "unmatched", "outcome", "reason"),
    [
        (Exit(0, 1.0, 0, ROOM), None, None, [], Outcome.COMPLETED, Reason.EXITED),
        (Exit(3, 1.0, 0, ROOM), None, None, ["x*"], Outcome.COMPLETED, Reason.EXITED),
        (Exit(0, 1.0, 0, ROOM), None, None, ["x*"], Outcome.FAILED, Reason.OUTPUT),
        (Exit(0, 1.0, 0, ROOM), None, TROUBLE, [], Outcome.FAILED, Reason.OUTPUT),
        (Exit(0, 1.0, 0, 0), None, None, [], Outcome.COMPLETED, Reason.EXITED),
        (Exit(1, 1.0, 0, 0), None, TROUBLE, ["x*"], Outcome.FAILED, Reason.SCRATCH_FULL),
        (Exit(143, 1.0, 0, 0), Reason.CANCELLED, TROUBLE, ["x*"], Outcome.STOPPED, Reason.CANCELLED),
        (Exit(143, 1.0, 0, ROOM), Reason.WALLTIME, None, [], Outcome.STOPPED, Reason.WALLTIME),
        (Exit(137, 1.0, 2, ROOM), None, None, [], Outcome.COMPLETED, Reason.EXITED),
    ],
)
def test_the_verdict(
    ended: Exit, stop: Reason | None, trouble: Ending | None, unmatched: list[str], outcome: Outcome, reason: Reason
) -> None:
    ending = verdict(MANIFEST, ended, stop=stop, trouble=trouble, unmatched=unmatched)
    assert (ending.outcome, ending.reason) == (outcome, reason)
    assert ending.hint or ending.outcome is not Outcome.FAILED
    if unmatched and outcome is not Outcome.STOPPED and reason is not Reason.SCRATCH_FULL:
        assert "'x*'" in ending.message


def test_want_of_memory_is_said() -> None:
    ending = verdict(MANIFEST, Exit(137, 1.0, 2, ROOM), stop=None, trouble=None, unmatched=[])
    assert "512 MiB" in ending.message
    assert ending.hint == "ask for more memory"
