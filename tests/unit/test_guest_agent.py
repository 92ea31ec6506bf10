"""The guest's agent (`guest/agent.sh`), as far as a shell on this machine can play it. The rest is in tests/e2e."""

from __future__ import annotations

import re
import signal
import subprocess
from importlib.resources import files
from pathlib import Path


def function(name: str) -> str:
    """The text of one of its functions."""
    text = files("gridhypervisor.agent").joinpath("guest/agent.sh").read_text()
    [found] = re.findall(rf"^{name}\(\) \{{$.*?^\}}$", text, re.DOTALL | re.MULTILINE)
    return str(found)


def test_a_stop_reaches_the_program_and_nobody_else_though_its_group_lists_one_that_has_just_died(
    tmp_path: Path,
) -> None:
    with subprocess.Popen(["sleep", "600"]) as program:
        try:
            (tmp_path / "cgroup.procs").write_text(f"0\n{program.pid}\n0\n")
            script = f"job=$1 pipes=$1\n{function('stop')}\nstop 0\nwait\necho lives\n"
            agent = subprocess.run(
                ["busybox", "sh", "-c", script, "sh", tmp_path],
                capture_output=True, text=True, timeout=60, start_new_session=True,
            )  # fmt: skip
            assert (agent.returncode, agent.stdout, agent.stderr) == (0, "lives\n", "")
            assert program.wait(60) == -signal.SIGTERM
        finally:
            program.kill()
    assert (tmp_path / "cgroup.kill").read_text() == "1\n"  # after the grace, whatever is left
