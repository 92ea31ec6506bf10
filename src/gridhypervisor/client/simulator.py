"""Has a grid simulated, in a process of its own: it computes for a while, and needs parts that no client has.

The process needs no service. Its end is ours: when we go, its pipe breaks, and it cleans up behind itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

import msgspec

from gridhypervisor.model.simulation import Finished, Message, Missing, Progress, Refused, SimulationReport
from gridhypervisor.model.views import Problem, ServiceError
from gridhypervisor.model.yamlspec import SpecError

COMMAND = (sys.executable, "-m", "gridhypervisor.simulation")

LAST_WORDS = 2000
"""Bytes, of what a process that failed has said on stderr, that are shown."""


def simulate(
    spec: str,
    on_progress: Callable[[Progress], None],
    *,
    policy: str | None = None,
    policy_text: str = "",
    seed: int | None = None,
    command: Sequence[str] = COMMAND,
) -> SimulationReport:
    """Simulate what a file describes. `policy`: the file of another policy than it names; "-": that of `policy_text`.

    Raises:
        SpecError: one of the files does not mean anything.
        ServiceError: one cannot be read, or the process failed.
    """
    given = {"--policy": policy, "--seed": seed}
    options = [word for name, value in given.items() if value is not None for word in (name, str(value))]
    # The order of Python's sets hangs on a number that is drawn at each start, unless it is given one.
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    argv, pipe = [*command, spec, *options], subprocess.PIPE
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=errors, env=environment) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(policy_text.encode())
            process.stdin.close()
        except BrokenPipeError:
            pass  # it has failed already: below it says how
        for line in process.stdout:
            message: Message = msgspec.json.decode(line, type=Message)
            match message:
                case Progress():
                    on_progress(message)
                case Finished(report):
                    return report
                case Refused(problems):
                    raise SpecError(problems)
                case Missing(path, why):
                    problem = Problem(f"read {path}", 404, "not-found", why, f"It is named in, or is, {spec}.")
                    raise ServiceError(problem)
        code = process.wait()
        errors.seek(0)
        said = errors.read().decode(errors="replace").strip()[-LAST_WORDS:]
    words = f"it ended with code {code}" + (f"; its last words:\n{said}" if said else " and said nothing")
    raise ServiceError(Problem(f"simulate {spec}", 500, "internal", words, "This is a fault in ghv: please report it."))
