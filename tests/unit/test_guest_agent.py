"""The guest's agent (`guest/agent.sh`), as far as a shell on this machine can play it. The rest is in tests/e2e."""

from __future__ import annotations

import base64
import re
import signal
import subprocess
from importlib.resources import files
from pathlib import Path


def function(name: str) -> str:
    """The text of one of its functions."""
    text = files("gridhypervisor.agent").joinpath("guest/agent.sh").read_text()
    [found] = re.findall(rf"^{name}\(\) \{{(?: #[^\n]*)?$.*?^\}}$", text, re.DOTALL | re.MULTILINE)
    return str(found)


def test_who_the_members_of_a_gang_are_is_kept_line_by_line(tmp_path: Path) -> None:
    text = files("gridhypervisor.agent").joinpath("guest/agent.sh").read_text()
    [obey] = re.findall(r"^ +case \$verb in$.*?^ +esac$", text, re.DOTALL | re.MULTILINE)
    script = f"pipes=$1\nwhile read -r verb word; do\n{obey}\ndone"
    told = "MEMBER 0 g7-0 a n1\nMEMBER 1 g7-1 a $(n2)\n"
    subprocess.run(["busybox", "sh", "-c", script, "sh", tmp_path], input=told, text=True, check=True, timeout=60)
    assert (tmp_path / "gang").read_text() == "0 g7-0 a n1\n1 g7-1 a $(n2)\n"


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


def test_every_guest_has_a_machine_id_and_a_hardware_address_of_its_own(tmp_path: Path) -> None:
    """Where the image has no machine-id it gets none."""
    there, absent = tmp_path / "there", tmp_path / "absent"
    said = set()
    for _ in range(2):
        for path in (there, absent):
            there.write_text("uninitialized\n")
            script = function("identify").replace("/etc/machine-id", str(path)) + "\nidentify\necho $mac"
            agent = ["busybox", "sh", "-c", script]
            done = subprocess.run(agent, capture_output=True, text=True, timeout=60, check=True)
            assert re.fullmatch(r"52:54:00(:[0-9a-f]{2}){3}\n", done.stdout)
            said |= {done.stdout, there.read_text()}
    assert not absent.exists()
    assert len(said) == 4 + 2 + 1
    assert sum(bool(re.fullmatch("[0-9a-f]{32}\n", text)) for text in said) == 2


def test_a_program_asks_to_be_moved_by_writing_why_and_is_heard_in_few_words(tmp_path: Path) -> None:
    said = []
    for text in ("", "no licence here\nand more\n", "\n", "x" * 5000):
        (tmp_path / "move").write_text(text)
        script = f'pipes=$1\nexec 3>&1\nsay() {{ echo "$*"; }}\n{function("asks")}\nasks\n'
        agent = subprocess.run(
            ["busybox", "sh", "-c", script, "sh", tmp_path], capture_output=True, text=True, timeout=60
        )
        assert agent.stderr == ""
        said.append(agent.stdout)
    assert said[:3] == ["", "MOVE no licence here\n", "MOVE \n"]
    assert said[3].startswith("MOVE xxx") and len(said[3]) < 250


def execute(pipes: Path, *lines: str, given: bytes = b"") -> subprocess.CompletedProcess[str]:
    """Have the agent run a command whose words are these lines of shell."""
    text = base64.b64encode("\n".join(lines).encode()).decode()
    pieces = [base64.b64encode(given[at : at + 1500]).decode() for at in range(0, len(given), 1500)]
    taking = "".join(f"take 7 {piece}\n" for piece in pieces)
    script = (
        f'pipes=$1\nexec 3>&1\nsay() {{ echo "$*"; }}\nbeside() {{ :; }}\nsurroundings() {{ export COLOUR=red; }}\n'
        f'start() {{ exec "$@"; }}\n{function("printed")}\n{function("execute")}\n{function("take")}\n'
        f"{taking}execute 7 {text}\n"
    )
    shell = ["busybox", "sh", "-c", script, "sh", str(pipes)]
    return subprocess.run(shell, capture_output=True, text=True, timeout=60, check=True)


def told(done: subprocess.CompletedProcess[str], stream: str) -> bytes:
    lines = (line.split() for line in done.stdout.splitlines())
    return b"".join(base64.b64decode(words[3]) for words in lines if words[:3] == ["PRINTED", "7", stream])


def test_a_command_beside_the_program_says_what_it_printed_and_how_it_ended(tmp_path: Path) -> None:
    done = execute(tmp_path, "start sh -c 'echo $COLOUR; echo bad >&2; exit 5'")
    assert (told(done, "out"), told(done, "err")) == (b"red\n", b"bad\n")
    assert done.stdout.splitlines()[-1] == "EXECUTED 7 5"
    assert list(tmp_path.iterdir()) == [], "nothing of it is left"


def test_a_command_finds_what_it_was_given_byte_for_byte(tmp_path: Path) -> None:
    given = bytes(range(256)) * 20
    done = execute(tmp_path, "start cat", given=given)
    assert told(done, "out") == given and done.stdout.startswith("TOOK 7\n")


def test_of_what_a_command_prints_a_part_is_kept_and_all_is_read(tmp_path: Path) -> None:
    done = execute(tmp_path, "start sh -c 'head -c 3000000 /dev/zero; echo end >&2'")
    assert told(done, "out") == bytes(1 << 20) and told(done, "err") == b"end\n"
    assert max(map(len, done.stdout.splitlines())) < 2048, "a longer line would not reach the pilot whole"
    assert done.stdout.splitlines()[-1] == "EXECUTED 7 0"
