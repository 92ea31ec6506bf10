"""A command that names its server is a line to a process that the relay keeps: nothing else may differ."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from gridhypervisor.model import wire
from gridhypervisor.model.wire import Op
from tests.contract.relay_peer import Peer

RELAY = [sys.executable, "-m", "gridhypervisor.agent.main", "relay", "--workdir"]

SERVER = """
import json, os, signal, sys, time
if sys.argv[1:] != ["serve"]:
    sys.exit("started as a process of its own")
if os.path.exists("broken"):
    sys.stderr.write("it is broken")
    sys.exit(78)
for line in sys.stdin:
    (word, *_), stdin = json.loads(line)
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600 if word == "hang" else 0)
    print(json.dumps([len(stdin), f"{word} {os.getpid()}", "said"]), flush=True)
"""


@pytest.fixture
def quiet(tmp_path: Path) -> Iterator[Peer]:
    """A relay whose notes do not matter."""
    with Peer([*RELAY, str(tmp_path / "work")]) as peer:
        peer.hello()
        yield peer


def test_a_server_is_started_once_and_again_when_it_has_died(quiet: Peer, tmp_path: Path) -> None:
    program = tmp_path / "server.py"
    program.write_text(SERVER.replace('"broken"', f'"{tmp_path}/broken"'))

    def ask(*words: str, stdin: str = "", timeout: float = 60.0) -> dict[str, Any]:
        command = wire.Command((sys.executable, str(program), *words), stdin, timeout, server=2)
        [result] = quiet.ask(Op.EXEC, commands=wire.to_plain([command]))["results"]
        return cast(dict[str, Any], result)

    first = ask("list", stdin="grüße")
    assert (first["code"], first["stderr"], first["stdout"].split()[0]) == (5, "said", "list")
    assert ask("list")["stdout"] == first["stdout"], "the same process"
    assert quiet.ask(Op.USAGE)["cpu_seconds"] > 0
    hung = ask("hang", timeout=0.5)
    assert hung.get("code") is None and "no answer" in hung["stderr"]
    second = ask("list")
    assert second["stdout"] != first["stdout"]
    assert ask("die").get("code") is None, "nobody knows whether it was done"
    assert ask("list")["code"] == 0
    os.kill(int(ask("list")["stdout"].split()[1]), signal.SIGKILL)
    (tmp_path / "broken").touch()
    ended = time.monotonic() + 60
    while (refused := ask("list")).get("code") is None and time.monotonic() < ended:
        pass  # it was dying
    assert (refused["code"], refused["stderr"]) == (78, "it is broken")


def test_a_server_ends_with_its_relay(tmp_path: Path) -> None:
    program = tmp_path / "server.py"
    program.write_text(SERVER)
    with Peer([*RELAY, str(tmp_path / "work")]) as peer:
        command = wire.Command((sys.executable, str(program), "list"), server=2)
        [result] = peer.ask(Op.EXEC, commands=wire.to_plain([command]))["results"]
        server = os.pidfd_open(int(result["stdout"].split()[1]))
    try:
        assert select.select([server], [], [], 60)[0], "it lives on"
    finally:
        os.close(server)
