"""What a guest got of the processor time that it wanted: of processes that share one processor, or sleep."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gridhypervisor.agent.effort import Meter, filled
from gridhypervisor.model.wire import Effort

CHILDREN = """
import os, subprocess, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
children = [subprocess.Popen(sys.argv[1:]) for _ in range(4)]
print("ready", flush=True)
for child in children: child.wait()
"""


@contextmanager
def family(*child: str) -> Iterator[Meter]:
    """Four processes on one processor, and what counts for them."""
    words = [sys.executable, "-c", CHILDREN, *child]
    with subprocess.Popen(words, start_new_session=True, stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
            yield Meter(parent.pid)
        finally:
            os.killpg(parent.pid, 9)


def test_who_shares_a_processor_got_a_part_of_what_it_wanted() -> None:
    with family(sys.executable, "-c", "while True: pass") as meter:
        deadline = time.monotonic() + 60
        while (found := meter.read()).had < 0.5 or found.waited < 1.0:
            assert time.monotonic() < deadline, f"they wanted no processor: {found}"
            time.sleep(0.02)
            meter.look()
    assert found.had < 0.6 * (found.had + found.waited), f"four of them had one processor: {found}"


def test_who_sleeps_wants_nothing() -> None:
    with family("sleep", "600") as meter:
        meter.look()
        before = meter.read()  # they may only just have begun
        for _ in range(50):
            time.sleep(0.02)
            meter.look()
        after = meter.read()
    assert after.had - before.had < 0.2 and after.share is None, after


def test_of_little_nothing_is_said() -> None:
    assert Effort(2.0, 6.0).share is None
    assert Effort(5.0, 15.0).share == 0.25


def test_what_of_a_guests_memory_is_not_zero_is_found_by_looking_at_some_pages() -> None:
    """Of a process below this one, as a hypervisor is; where it cannot be found, all counts."""
    size = (48 << 20) + 4096  # as no other stretch has
    code = f"import mmap; m = mmap.mmap(-1, {size}); m.write(b'x' * {size // 4}); print('ready', flush=True); input()"
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            assert abs(filled(os.getpid(), size) - size // 4) < size // 50
            assert filled(os.getpid(), size + 4096) == size + 4096
        finally:
            child.kill()
