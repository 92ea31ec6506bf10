"""`ghv` as people use it, against the real server: what it prints where, how it ends, what Ctrl-C does."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import pty
import re
import resource
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click.testing
import msgspec
import pytest
import yaml

from gridhypervisor.cli import progress
from gridhypervisor.cli.main import cli
from gridhypervisor.client import Client
from gridhypervisor.client.launcher import find_paths
from gridhypervisor.model.access import TokenRequest
from gridhypervisor.model.spec import InputSpec, JobSpec
from gridhypervisor.model.states import JobState, Wish
from gridhypervisor.model.views import JobRequest, JobView
from gridhypervisor.model.wire import Phase
from gridhypervisor.service.listener import listen
from tests.terminal import at_a_terminal
from tests.unit.fake_service import WAIT, Service

GHV = (sys.executable, "-m", "gridhypervisor.cli")

Ghv = Callable[..., click.testing.Result]


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("GHV_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("GHV_RUNTIME", str(tmp_path / "run"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir(mode=0o700)
    with Service(find_paths().socket) as running:
        yield running


@pytest.fixture
def ghv(service: Service) -> Ghv:
    def run(*arguments: str) -> click.testing.Result:
        return click.testing.CliRunner().invoke(cli, arguments)

    return run


def run(*command: str) -> tuple[str, ...]:
    return ("run", "--image", "xmm", "--", *command)


def test_run_prints_what_the_program_prints_and_ends_as_it_ended(ghv: Ghv) -> None:
    result = ghv(*run("print", "a\x00b\x1b[0m\r\nno newline", "warn", "careful", "exit", "7"))
    assert result.stdout_bytes == b"a\x00b\x1b[0m\r\nno newline"
    assert b"careful" in result.stderr_bytes
    assert "j1 ended with code 7" in result.stderr
    assert result.exit_code == 7


def test_run_says_loudly_and_once_that_the_guest_is_emulated(ghv: Ghv) -> None:
    result = ghv(*run("print", "x", "print", "y"))
    assert result.stderr.count("EMULATED") == 1
    assert "/dev/kvm is not there" in result.stderr


def test_quiet_run_adds_nothing_of_its_own(ghv: Ghv) -> None:
    result = ghv("run", "-q", "--hypervisor", "tcg", "--image", "xmm", "warn", "w", "exit", "0")
    ours = [line for line in result.stderr.splitlines() if "ghv:" in line]
    assert all("EMULATED" in line for line in ours), "a warning is no progress"


@pytest.mark.parametrize(("reason", "code"), [("walltime", 124), ("guest-panic", 76), ("lost", 75), ("input", 66)])
def test_run_tells_failures_of_ours_apart(ghv: Ghv, reason: str, code: int) -> None:
    result = ghv(*run("fail", reason))
    assert result.exit_code == code
    assert re.search(rf"failed after \d+s: {reason}", result.stderr)
    assert "next: Look at the console." in result.stderr


def test_run_with_json_keeps_stdout_for_the_record(ghv: Ghv) -> None:
    result = ghv("run", "-o", "json", "--image", "xmm", "--", "print", "hello", "exit", "75")
    record = json.loads(result.stdout)
    assert (record["job"]["state"], record["job"]["reason"], record["job"]["exit_code"]) == ("done", "exited", 75)
    assert "hello" in result.stderr
    assert result.exit_code == 75


def test_detach_prints_the_id_alone(ghv: Ghv) -> None:
    result = ghv("run", "--detach", "--image", "xmm", "hold")
    assert (result.stdout, result.stderr, result.exit_code) == ("j1\n", "", 0)


def test_what_no_site_can_give_is_a_warning_at_once(ghv: Ghv) -> None:
    for detached in (True, False):
        words = ("--detach",) if detached else ()
        result = ghv("run", *words, "--cpus", "64", "--image", "xmm", "print", "x")
        assert "warning: no site can take it as it is: here: it asks for 64 CPUs" in result.stderr
        assert (result.stdout, result.exit_code) == ("j1\n" if detached else "x", 0)


def test_an_array_is_run_shown_and_waited_for_as_one(ghv: Ghv) -> None:
    ran = ghv("run", "--image", "xmm", "--array", "1-3", "--", "print", "task ${TASK_ID}", "exit", "${TASK_ID}")
    assert ran.exit_code == 1 and ran.stdout == "", "what tasks print is in their logs"
    assert re.search(r"a1000 done after \d+s: 0 of 3 well, 3 not", ran.stderr)
    assert [line.split()[0] for line in ghv("list").stdout.splitlines()] == ["ID", "a1000"]
    tasks = json.loads(ghv("list", "a1000", "-o", "json").stdout)
    assert [(task["member"], task["exit_code"]) for task in tasks] == [("3", 3), ("2", 2), ("1", 1)]
    assert ghv("logs", "a1000.2").stdout == ghv("logs", "a1000[2]").stdout == "task 2"
    assert ghv("wait", "a1000").exit_code == 1
    assert ghv("show", "a1").exit_code == ghv("show", "a1000.4").exit_code == 66
    assert ghv("list", "j1").exit_code == 64

    held = ghv("run", "--detach", "--image", "xmm", "--array", "1-2", "hold")
    assert held.stdout == "a1001\n"
    told = ghv("explain", "a1001").stdout
    assert re.search(r"^ +2 +\w+ +\S+ +j4$", told, re.MULTILINE), "those that wait for the same, in one line"
    [alike] = json.loads(ghv("explain", "a1001", "-o", "json").stdout)["alike"]
    assert alike["jobs"] == ["j5", "j4"]
    ended = ghv("explain", "a1000").stdout
    assert "0 of 3 well" in ended and "j1" not in ended, "who has ended waits for nothing"
    assert ghv("cancel", "a1001.1").stdout == "j4  cancelled\n"
    assert ghv("cancel", "a1001").exit_code == 0 and ghv("wait", "a1001").exit_code == 130
    assert ghv("delete", "a1001").exit_code == 0 and ghv("show", "a1001").exit_code == 66


def test_a_job_file_with_faults_names_file_line_and_field(ghv: Ghv, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("image: xmm\ncommand: [true]\nresources: {memory: lots}\nimaeg: x\n")
    for verb in ("run", "validate"):
        result = ghv(verb, "-f", "job.yaml")
        assert result.exit_code == 65
        assert 'job.yaml:3: resources.memory: "lots" is not a size' in result.stderr
        assert 'job.yaml:4: imaeg: unknown field; did you mean "image"?' in result.stderr
    (tmp_path / "job.yaml").write_text("image: x\ncommand: [true]\ninputs: [nowhere]\nsite: mars\n")
    missing = ghv("validate", "-f", "job.yaml")
    assert missing.exit_code == 66
    for words in ("1: image: there is no such image", "3: inputs[0]: there is no such file", "4: site: there is no"):
        assert f"job.yaml:{words}" in missing.stderr


def test_wrong_words_end_with_64_and_missing_things_with_66(ghv: Ghv) -> None:
    assert "Did you mean 'list'?" in ghv("lst").stderr
    for wrong in (["frobnicate"], ["run"], ["run", "--memory", "lots", "--image", "x", "y"], ["show"]):
        assert ghv(*wrong).exit_code == 64
    missing = ghv("show", "j9")
    assert missing.exit_code == 66
    assert missing.stderr.splitlines() == [
        "error: find job j9", "  there is no such job", "  next: ghv list shows your jobs.",
    ]  # fmt: skip
    assert ghv("events", "j9").exit_code == ghv("events", "-w", "j9").exit_code == 66
    assert ghv("run", "--image", "none", "true").exit_code == 66
    for words in (
        ["run", "--in", "nowhere", "--image", "xmm", "true"], ["run", "-f", "nowhere"], ["run", "--dag", "nowhere"],
        ["run", "--image", "xmm", "--template", "nowhere"], ["validate", "-f", "nowhere"], ["match", "-f", "nowhere"],
        ["policy", "set", "nowhere"], ["image", "build", "nowhere"], ["image", "import", "nowhere", "--tag", "d"],
    ):  # fmt: skip
        told = ghv(*words)
        title, why, *_ = told.stderr.splitlines()
        assert title.startswith("error: open ") and title.endswith("nowhere"), told.stderr
        assert (why, told.exit_code) == ("  there is no such file or folder", 66), words


def test_lists_and_details_come_as_tables_json_and_yaml(ghv: Ghv) -> None:
    ghv(*run("print", "x"))
    for verb in (["list"], ["show", "j1"], ["explain", "j1"], ["events", "j1"], ["wait", "j1"], ["ledger"],
                 ["ledger", "j1"], ["history", "j1"], ["accounting", "--until", "2026-11-01"],
                 ["image", "list"], ["image", "show", "xmm"], ["image", "verify", "xmm"],
                 ["site", "list"], ["site", "show", "here"], ["site", "check", "here"], ["site", "usage", "here"],
                 ["site", "usage"], ["service", "status"]):  # fmt: skip
        shown, as_json, as_yaml = (ghv(*verb, "-o", kind) for kind in ("table", "json", "yaml"))
        assert shown.stdout and shown.exit_code == as_json.exit_code == 0
        assert json.loads(as_json.stdout) == yaml.safe_load(as_yaml.stdout)


def test_list_is_filtered_and_paged(ghv: Ghv) -> None:
    for code in ("0", "1", "2"):
        ghv(*run("exit", code))

    def ids(*flags: str) -> list[str]:
        return [job["id"] for job in json.loads(ghv("ls", "-o", "json", *flags).stdout)]

    assert ids() == ids("--site", "here", "--limit", "3") == ["j3", "j2", "j1"]
    assert ids("--limit", "2") == ["j3", "j2"]
    assert ids("--before", "j2") == ["j1"]
    assert ids("--site", "elsewhere", "--limit", "1") == ids("--state", "failed") == []
    assert "ghv list --before j2" in ghv("ls", "--limit", "2").stderr
    assert ghv("ls", "--state", "failed").stderr == "No such jobs.\n"


def test_show_accounts_for_the_time(ghv: Ghv) -> None:
    ghv(*run("print", "x"))
    shown = ghv("show", "j1").stdout
    assert re.search(r"boot +4\.00 +40\.0%", shown)
    assert re.search(r"wall +10\.00", shown)
    assert "\n  products/spectrum.fits\n" in shown
    assert shown.count(os.getcwd()) == 1, "the results' place is told once"
    assert shown.count("/dev/kvm is not there") == 1
    assert max(map(len, shown.splitlines())) <= 80 + len(os.getcwd())


def test_ledger_compares_jobs_and_draws_them(ghv: Ghv) -> None:
    assert "No job has ended yet" in ghv("ledger").stderr
    for code in ("0", "3"):
        ghv(*run("exit", code))
    shown = ghv("ledger", "--plot", "map.png")
    places = re.findall(r"here +\S+ +(j\d) +node1 +qemu 7\.2\.22, tcg +(.+)", shown.stdout)
    assert places == [("j1", "done"), ("j2", "done (3)")], shown.stdout
    assert len(re.findall(r"here +j\d +1\.0 +0\.0 +4\.0 +5\.0 +10\.0 +8\.2 +\S+", shown.stdout)) == 2, shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 120
    assert Path("map.png").read_bytes().startswith(b"\x89PNG")
    assert [stay["job"] for stay in json.loads(ghv("ledger", "j2", "j2", "-o", "json").stdout)] == ["j2"]
    assert ghv("ledger", "j9").exit_code == 66
    wrong = ghv("ledger", "j1", "--plot", "map.doc")
    assert (wrong.exit_code, ".png" in wrong.stderr) == (65, True)


def test_logs_and_waiting_for_jobs_that_have_ended(ghv: Ghv) -> None:
    ghv(*run("print", "one\ntwo", "warn", "three"))
    ghv(*run("exit", "4"))
    for more in ([], ["-f"]):
        result = ghv("logs", "j1", *more)
        assert (result.stdout, result.stderr) == ("one\ntwo", "three")
    assert ghv("logs", "j1", "--stream", "console").stdout == "Linux\n"
    assert ghv("wait", "j1", "j2").exit_code == 4


def test_watching_a_job_ends_with_it(ghv: Ghv) -> None:
    ghv(*run("exit", "3"))
    watched = ghv("events", "-w", "j1")
    assert watched.exit_code == 0
    assert watched.stdout == ghv("events", "j1").stdout
    assert watched.stdout.splitlines()[-1].endswith("→ done")


def test_cancel_recover_and_delete(ghv: Ghv) -> None:
    ghv("run", "--detach", "--image", "xmm", "hold")
    assert ghv("recover", "j1").exit_code == 0
    assert ghv("move", "j1", "--to", "other", "-o", "json").exit_code == 0
    assert ghv("cancel", "j1").stdout == "j1  cancelled\n"
    assert ghv("wait", "j1").exit_code == 130
    conflict = ghv("recover", "j1")
    assert (conflict.exit_code, "it has ended" in conflict.stderr) == (78, True)
    assert ghv("move", "j1").exit_code == 78
    ghv(*run("print", "x"))
    assert ghv("recover", "j2").stdout == "j2  done; nothing of it is stuck\n"
    assert ghv("delete", "j1").exit_code == 0
    assert ghv("show", "j1").exit_code == 66


def test_suspend_resume_and_checkpoint(ghv: Ghv) -> None:
    ghv("run", "--detach", "--image", "xmm", "hold")
    assert ghv("checkpoint", "list").stdout.strip() == "no checkpoints"
    assert ghv("checkpoint", "j1").stdout.startswith("j1  its guest is being saved")
    assert "paused: its guest stands still" in ghv("pause", "j1").stdout
    assert "paused" not in ghv("unpause", "j1").stdout
    assert ghv("suspend", "j1").stdout == "j1  suspended\n"
    listed = ghv("checkpoint", "list", "j1").stdout
    assert all(word in listed for word in ("g1-j1-1-1", "here", "12s", "1.0 MiB", "kept", "to suspend it")), listed
    [kept] = json.loads(ghv("checkpoints", "list", "-o", "json").stdout)
    assert (kept["job"], kept["executed"]) == ("j1", 12.0)
    assert ghv("checkpoint", "copy", "g1-j1-1-1").stdout == "g1-j1-1-1  a copy is here\n"
    [kept] = json.loads(ghv("checkpoint", "list", "j1", "-o", "json").stdout)
    assert kept["copy"] == "kept"
    assert ghv("resume", "j1", "-o", "json").exit_code == 0
    assert json.loads(ghv("resume", "j1", "--to", "other", "-o", "json").stdout)[0]["site"] == "other"
    assert ghv("checkpoint", "restore", "g1-j1-1-1").exit_code == 0
    assert ghv("checkpoint", "delete", "g1-j1-1-1").stdout == "g1-j1-1-1  deleted\n"
    gone = ghv("checkpoint", "restore", "g1-j1-1-1")
    assert (gone.exit_code, "there is no such checkpoint" in gone.stderr) == (66, True)
    assert ghv("checkpoint", "lst").exit_code == 64
    assert ghv("cancel", "j1").exit_code == 0
    assert ghv("suspend", "j1").exit_code == 78


def test_images_and_sites(ghv: Ghv, tmp_path: Path) -> None:
    (tmp_path / "disk.qcow2").touch()
    (tmp_path / "disk").touch()
    built = ghv("image", "build", ".", "--tag", "mine:1")
    assert built.stdout.startswith("ok  mine:1")
    assert "base: 1 of 2" in built.stderr
    assert ghv("image", "import", "disk.qcow2", "--tag", "d").exit_code == 0
    assert "give --format" in ghv("image", "import", "disk", "--tag", "d").stderr
    warm = ghv("image", "warm", "xmm", "--site", "here", "--memory", "256M", "--hypervisor", "tcg")
    assert warm.exit_code == 0 and "guests of xmm with 256M of memory start from a snapshot at here" in warm.stdout
    assert ghv("image", "warm", "xmm").exit_code == 75, "not everywhere"
    assert ghv("image", "warm", "nothing").exit_code == ghv("image", "warm", "xmm", "--site", "nowhere").exit_code == 66
    assert ghv("image", "warm").exit_code == 64
    (tmp_path / "job.yaml").write_text("image: xmm\ncommand: ['true']\nresources: {memory: 1Gi}\nhypervisor: tcg\n")
    assert "with 1Gi of memory" in ghv("image", "warm", "-f", "job.yaml").stdout
    added = ghv("site", "add", "a", "--kind", "slurm", "--host", "h", "--user", "u", "--option", "partition=p")
    assert added.exit_code == 0 and not added.stderr
    here = ghv("site", "add", "b", "--kind", "slurm")
    assert here.exit_code == 0 and "its jobs are submitted on this machine, by its own sbatch" in here.stderr
    assert ghv("site", "remove", "b").stdout == "b  removed\n"
    [row] = [line.split() for line in ghv("site", "list").stdout.splitlines() if line.startswith("a ")]
    assert row[-1] == "-", "how many jobs it takes nobody knows yet"
    assert "partition=p" in ghv("site", "show", "a").stdout
    usage = ghv("site", "usage")
    assert usage.exit_code == 0 and "lent by root: /etc/ghv/lender.toml" in usage.stdout
    cells = [line.split() for line in usage.stdout.splitlines()]
    assert ["ada", "a1b2c3d4e", "used", "1", "2", "512", "MiB", "0.5", "1.0"] in cells
    assert ["ada", "a1b2c3d4e", "reserved", "1", "1", "512", "MiB", "1.0", "1.5"] in cells
    assert ["allowed", "-", "4", "-", "-", "10.0"] in cells and ["left", "-", "1", "-", "-", "7.5"] in cells
    assert ["a", "connecting"] in cells, "what is not known is said, and hides no other site"
    assert ghv("site", "usage", "nowhere").exit_code == 66
    edited = ghv(
        "site", "edit", "a", "--user", "v", "--option", "qos=low", "--unset", "option:partition", "--unset", "port"
    )
    assert edited.exit_code == 0 and "changed" in edited.stdout
    shown = json.loads(ghv("site", "show", "a", "-o", "json").stdout)["settings"]
    assert (shown["host"], shown["user"], shown["options"]) == ("h", "v", {"qos": "low"})
    assert ghv("site", "edit", "a").exit_code == ghv("site", "edit", "a", "--unset", "kind").exit_code == 64
    assert "draining" in ghv("site", "drain", "a").stdout
    assert "draining" in ghv("site", "list").stdout and "--undo" in ghv("site", "show", "a").stdout
    assert "work again" in ghv("site", "drain", "a", "--undo").stdout
    assert "draining" not in ghv("site", "list").stdout
    assert ghv("site", "login", "nowhere").exit_code == 66
    login = (*GHV, "site", "login", "here")
    code, shown = at_a_terminal(login, "123")  # the command is given the terminal
    assert code == 0 and "code for here:" in shown and "the workdir can be written" in shown
    code, shown = at_a_terminal(login, "321")
    assert code == 77 and "log in to site here" in shown
    check = ghv("site", "check", "a")
    assert (check.exit_code, "squeue: not found" in check.stdout) == (75, True)
    assert "next: give the service a PATH" in check.stdout
    waits = ghv("site", "check", "here", "--timeout", "1s")
    assert (waits.exit_code, "unknown" in waits.stdout) == (69, True), "nobody knows is not that it fails"
    assert "KVM" in waits.stdout and "KVM" not in ghv("site", "check", "here", "--no-probe").stdout
    ghv("run", "--detach", "--image", "xmm", "--site", "a", "hold")
    removed = ghv("site", "remove", "a")
    assert removed.exit_code == 0 and "1 job waits for a and no other site: j1; add a again" in removed.stderr
    last = ghv("site", "remove", "here")
    assert last.exit_code == 0 and "ghv site add local --kind fork" in last.stderr
    assert ghv("image", "delete", "xmm:latest").exit_code == 0
    ghv("image", "build", ".", "--tag", "broken:1")
    damaged = ghv("image", "verify", "broken:1")
    assert (damaged.exit_code, "chunk 3" in damaged.stdout) == (65, True)


def test_the_service_is_shown_but_not_started_by_status(ghv: Ghv, service: Service) -> None:
    assert "running" in ghv("service", "status").stdout
    service.stop()
    assert ghv("service", "status").exit_code == 69
    assert ghv("service", "stop").stdout == "not running\n"
    service.start()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(ghv: Ghv, shell: str) -> None:
    script = ghv("completion", shell)
    assert script.exit_code == 0
    assert "_GHV_COMPLETE" in script.stdout
    ghv("run", "--detach", "--image", "xmm", "hold")
    at = "j" if shell == "fish" else "2"
    words = os.environ | {"COMP_WORDS": "ghv show j", "COMP_CWORD": at, "_GHV_COMPLETE": f"{shell}_complete"}
    done = subprocess.run(["ghv"], executable=Path(sys.executable).with_name("ghv"), env=words, capture_output=True)
    assert b"j1" in done.stdout


def test_help_names_every_verb_and_every_verb_has_help(ghv: Ghv) -> None:
    shown = ghv("--help").stdout
    for verb in cli.list_commands(click.Context(cli)):
        assert f"  {verb}" in shown
        assert ghv(verb, "--help").exit_code == 0


class Terminal:
    """`ghv` on a terminal of its own."""

    def __init__(self, *arguments: str, columns: int = 80) -> None:
        self._leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        self.process = subprocess.Popen([*GHV, *arguments], stdin=follower, stdout=follower, stderr=follower)
        os.close(follower)
        self.seen = b""

    def read_until(self, text: bytes) -> None:
        deadline = time.monotonic() + WAIT
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self._leader], [], [], 0.5)[0]:
                self.seen += os.read(self._leader, 1 << 16)

    def end(self) -> int:
        """Its exit code. All is read first: it waits for a reader once a few seconds' worth of its line lies there."""
        with contextlib.suppress(OSError):  # nobody holds the other end any more
            while select.select([self._leader], [], [], WAIT)[0]:
                self.seen += os.read(self._leader, 1 << 16)
        os.close(self._leader)
        return self.process.wait(WAIT)


def test_on_a_terminal_one_line_lives_below_the_output(service: Service) -> None:
    terminal = Terminal(*run("print", "hello\n", "hold", "print", "part", "exit", "0"))
    terminal.read_until(b"j1  running")
    service.do(lambda: service.backend.release("j1"))
    assert terminal.end() == 0
    screen = [line.rpartition(b"\x1b[2K")[2] for line in terminal.seen.replace(b"\r\n", b"\n").split(b"\n")]
    assert b"hello" in screen
    assert any(line.startswith(b"part") for line in screen)
    assert b"\xe2\xa0" in terminal.seen, "the line turned"
    assert not any(line.startswith(b"\xe2\xa0") for line in screen), "and nothing of it stayed"


def test_on_a_narrow_terminal_the_line_does_not_wrap(service: Service) -> None:
    """Wherever stdout goes: a line that wrapped could not be drawn over."""
    terminal = Terminal(*run("hold", "exit", "0"), columns=20)
    terminal.read_until(b"j1  running")
    service.do(lambda: service.backend.release("j1"))
    assert terminal.end() == 0
    drawn = re.findall(r"\x1b\[2K([^\x1b\r\n]+ j1 [^\x1b\r\n]+)", terminal.seen.decode())
    assert drawn and max(map(len, drawn)) < 20
    assert all(re.search(r"  \d+s$", line) for line in drawn), "how long is still to be seen"


def test_waiting_on_a_terminal_shows_what_the_job_does_meanwhile(service: Service, ghv: Ghv) -> None:
    ghv("run", "--detach", "--image", "xmm", "--", "hold", "exit", "0")
    terminal = Terminal("wait", "j1")
    terminal.read_until(b"j1  running")
    service.do(lambda: service.backend.release("j1"))
    assert terminal.end() == 0
    screen = [line.rpartition(b"\x1b[2K")[2] for line in terminal.seen.replace(b"\r\n", b"\n").split(b"\n")]
    assert b"j1" in screen[0] and b"done" in screen[0], screen
    assert not any(line.startswith(b"\xe2\xa0") for line in screen), "nothing of the line stayed"


def test_without_a_terminal_nothing_is_drawn(ghv: Ghv) -> None:
    said = ghv(*run("print", "x", "exit", "0")).stderr
    assert "\r" not in said and "\x1b" not in said
    assert all(line.startswith("ghv: ") for line in said.splitlines())
    assert re.fullmatch(rf"ghv: j1 done after \d+s, 1 result in {re.escape(os.getcwd())}", said.splitlines()[-1])


@pytest.mark.parametrize(("lasting", "told"), [(0.0, {"waiting for a site", "running"}), (3600.0, {"running"})])
def test_without_a_terminal_what_lasts_is_a_line_and_that_the_program_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, lasting: float, told: set[str]
) -> None:
    monkeypatch.setattr(progress, "LASTING", lasting)
    waiting = JobView("j1", "j1", "me", "default", JobState.PENDING, Wish.RUN, 0.0, "xmm", "", ("true",), "/")
    with progress.Progress() as shown:
        for state, phase in ((JobState.PENDING, None), (JobState.RUNNING, Phase.EXECUTE), (JobState.DONE, None)):
            for _ in range(2):
                shown.show(msgspec.structs.replace(waiting, state=state, phase=phase))
    assert capsys.readouterr().err == "".join(f"ghv: j1 {words}\n" for words in sorted(told, reverse=True))


def test_the_first_interrupt_cancels_and_streams_on(service: Service) -> None:
    process = subprocess.Popen([*GHV, *run("print", "hello\n", "hold")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"hello\n"
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=WAIT)
    assert process.returncode == 130
    assert b"cancelling" in said
    assert b"j1 cancelled" in said


def test_the_second_interrupt_leaves_at_once(service: Service) -> None:
    may_cancel = asyncio.Event()

    async def slowly(job: str) -> None:
        await may_cancel.wait()

    service.backend.cancel = slowly  # type: ignore[method-assign, assignment]
    terminal = Terminal(*run("print", "hello\n", "hold"))
    terminal.read_until(b"hello")
    terminal.process.send_signal(signal.SIGINT)
    terminal.read_until(b"cancelling")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 130
    assert b"j1 is being cancelled" in terminal.seen
    service.do(may_cancel.set)


def test_a_reader_who_has_seen_enough_does_not_end_the_job(service: Service) -> None:
    read, write = os.pipe()
    command = run("hold", "print", "unread", "exit", "5")
    process = subprocess.Popen([*GHV, *command], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    os.close(read)
    deadline = time.monotonic() + WAIT
    while not service.backend.submissions:
        assert time.monotonic() < deadline
        select.select([], [], [], 0.02)
    service.do(lambda: service.backend.release("j1"))
    process.communicate(timeout=WAIT)
    assert process.returncode == 5


def test_ghv_starts_fast() -> None:
    """Hardly more than Python with click takes, on any machine: a verb's imports must not creep into every start."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def cost(*command: str) -> float:
        before = spent()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return spent() - before

    costs = [(cost(*GHV, "--version"), cost(sys.executable, "-c", "import click")) for _ in range(5)]
    ours, clicks = (min(column) for column in zip(*costs, strict=True))
    assert ours < 2 * clicks


# Requirements and policies


def test_match_says_where_a_job_could_go_and_why_not_elsewhere(ghv: Ghv) -> None:
    found = ghv("match", "--requirements", "Memory > 2048", "--rank", "-QueueWait")
    assert found.exit_code == 0, found.output
    assert "would go to here" in found.stdout
    assert "Memory > 2048 does not hold" in found.stdout
    assert re.search(r"here +n1 +yes +3", found.stdout)
    assert "warning" not in found.stdout
    assert "counts as 0 there" in ghv("match", "--rank", "1 / 0").stdout
    shown = json.loads(ghv("match", "-o", "json").stdout)
    assert [site["site"] for site in shown["sites"]] == ["here", "there"]


def test_an_expression_that_means_nothing_is_refused_with_its_place(ghv: Ghv, tmp_path: Path, service: Service) -> None:
    (tmp_path / "job.yaml").write_text("image: xmm\ncommand: [print, a]\nrank: -QueueWait\nrequirements: Memry > 2\n")
    for words in (("run", "-f"), ("match", "-f"), ("validate", "-f")):
        refused = ghv(*words, "job.yaml")
        assert refused.exit_code == 65, refused.output
        assert "job.yaml:4: requirements: at character 1 of `Memry > 2`: no site publishes Memry" in refused.stderr
        assert "did you mean Memory?" in refused.stderr
    flag = ghv("run", "--image", "xmm", "--rank", "Queue", "--", "print", "a")
    assert flag.exit_code == 64 and "rank: at character 1 of `Queue`" in flag.stderr
    assert service.backend.submissions == 0


def test_nodes_are_listed_as_they_publish_themselves(ghv: Ghv) -> None:
    listed = ghv("node", "list").stdout
    assert re.search(r"here +whole site .* 2, 2 free +7 +12 s", listed) and re.search(
        r"here +n1 +mixed +4 +1 +2.0 GiB +uml, tcg +Z80", listed
    )
    assert re.search(r"here +whole site +1 of 3 idle, maintenance in 2h\S* +12 +5 ", listed), listed
    [whole, node] = json.loads(ghv("node", "list", "here", "-o", "json").stdout)
    assert (whole["node"], node["published"]["CpuModel"]) == ("", "Z80")
    assert ghv("node", "list", "nowhere").exit_code == 66


def test_a_policy_is_shown_set_and_refused_with_its_place(ghv: Ghv, tmp_path: Path) -> None:
    assert "nobody has set one" in ghv("policy", "show").stdout
    file = tmp_path / "policy.yaml"
    file.write_text("kind: Policy\nlimits: {user: 3}\n")
    assert ghv("policy", "set", str(file)).stdout == "policy version 1 holds\n"
    shown = ghv("policy", "show").stdout
    assert "version 1, set" in shown and "  user: 3\n" in shown
    file.write_text(shown)
    assert ghv("policy", "set", str(file)).exit_code == 0, "what is shown can be set"
    for wrong, words in (
        ("limits: {users: {ada: many}}", "2: limits.users.ada"),
        ("limits: {usr: 3}", 'did you mean "user"'),
        ("jobs: {share: {window: 0s}}", "jobs.share.window"),
        ("resources: {fixed: {default: 100}}", "resources.fixed.default"),
    ):
        file.write_text(f"kind: Policy\n{wrong}\n")
        refused = ghv("policy", "set", str(file))
        assert refused.exit_code == 65 and words in refused.stderr, refused.output
    assert json.loads(ghv("policy", "show", "-o", "json").stdout)["version"] == 2


def test_the_plan_tells_where_and_when(ghv: Ghv) -> None:
    shown = ghv("plan").stdout
    assert re.search(r"^g4 +pair +me +here ×3, there ×1 +in \d+m\S* +- +- +when there is room$", shown, re.MULTILINE), (
        shown
    )
    assert re.search(r"j7 +first +me +here +now +in (1h|59m)", shown)
    assert "the largest node has 4" in shown
    assert [each["job"] for each in json.loads(ghv("plan", "--limit", "1", "-o", "json").stdout)] == ["j7"]


def test_history_tells_each_attempt_and_accounting_what_was_used(ghv: Ghv) -> None:
    ghv(*run("print", "x"))
    shown = ghv("history", "j1").stdout
    assert "attempt 1 at there, node n7, batch job 17, under qemu 7.2.22, tcg: lost: its node is gone" in shown
    assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d +execute +2\.50", shown) and "attempt 2 at here: boot" in shown
    assert ghv("history", "j9").exit_code == 66
    both = ghv("accounting", "--by", "user", "--by", "site").stdout
    assert re.search(r"me +me +2 +2 +2 +1m\S* +1\.00 +2\.00\n", both), both
    later = json.loads(ghv("accounting", "--since", "1970-01-01T00:20:00+00:00", "-o", "json").stdout)
    assert (later["since"], later["total"]["attempts"], later["accounts"][0]["of"]) == (1200.0, 1, {"user": "me"})
    recent = ghv("accounting", "--since", "1d")
    assert recent.exit_code == 0 and recent.stderr == "No attempt has ended in that time.\n"
    wrong = ghv("accounting", "--since", "yesterday")
    assert wrong.exit_code == 64 and "'yesterday' is neither a time before now" in wrong.stderr


def test_a_replay_says_whether_the_plan_is_the_same(ghv: Ghv) -> None:
    for _ in range(2):
        ghv("run", "--image", "xmm", "--", "print", "a")
    same = ghv("replay", "j1")
    assert same.exit_code == 0 and "j1 was given here 1m ago, by policy version 2, with 2 other jobs" in same.stdout
    assert "the same plan" in same.stdout
    other = ghv("replay", "j2")
    assert other.exit_code == 70 and "and is given none" in other.stdout
    assert ghv("replay", "j99").exit_code == 66


def test_tokens_are_printed_once_and_revoked(ghv: Ghv) -> None:
    made = ghv("token", "create", "--owner", "ada", "--scope", "read", "--name", "laptop")
    token = made.stdout.strip()
    assert token.startswith("ghv_") and "token of ada" not in made.stdout
    assert "of ada, to read" in made.stderr and token not in made.stderr
    listed = ghv("token", "list")
    name = token.split("_")[1]
    assert re.search(rf"{name}\s+ada\s+default\s+read\s+\d+\S*\s+laptop", listed.stdout), listed.stdout
    assert token not in listed.stdout
    assert ghv("tokens", "revoke", name).stdout == f"{name} revoked\n"
    assert "revoked" in ghv("token", "list").stdout
    assert ghv("token", "revoke", "nothing").exit_code == 66
    assert ghv("token", "create", "--scope", "all").exit_code == 64
    assert ghv("serve", "--listen", "127.0.0.1:0").exit_code == 78, "one runs already"


def test_what_is_kept_with_a_job_is_fetched(ghv: Ghv, service: Service, tmp_path: Path) -> None:
    client = Client(str(service.socket))
    job = client.submit(JobRequest(JobSpec("xmm", ("print", "x")))).id
    assert list(client.follow(job))
    assert f"kept: ghv fetch {job}" in ghv("show", job).stdout
    fetched = ghv("fetch", job, "--to", "here")
    assert fetched.stdout == f"{job}  1 result in {tmp_path}/here\n", fetched.stderr
    assert (tmp_path / "here/products/spectrum.fits").read_bytes() == b"FITS\n"
    ghv(*run("print", "y"))
    assert ghv("fetch", "j2").stdout == "j2  nothing is kept\n"
    assert ghv("fetch", "j9").exit_code == 66


def test_a_service_elsewhere_is_sent_inputs_and_gives_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Service(tmp_path / "there.sock", listen=lambda: listen("127.0.0.1:0")) as there:
        made = Client(str(there.socket)).create_token(TokenRequest(owner="ada"))
        (tmp_path / "token").touch(0o600)
        (tmp_path / "token").write_text(made.secret)
        monkeypatch.setenv("GHV_URL", there.url)
        monkeypatch.setenv("GHV_TOKEN_FILE", str(tmp_path / "token"))
        (tmp_path / "tree/below").mkdir(parents=True)
        for name in ("tree/a", "tree/below/b", "tool", "3.txt", "4.txt"):
            (tmp_path / name).write_text(name)
        (tmp_path / "tool").chmod(0o700)

        def ghv(*words: str) -> click.testing.Result:
            return click.testing.CliRunner().invoke(cli, words)

        inputs = ("--in", "tree", "--in", "tool=bin/tool", "--in", "https://example.org/x", "--to", "home")
        ran = ghv("run", "--image", "xmm", *inputs, "--out", "products/*", "--", "print", "hello")
        assert (ran.exit_code, ran.stdout) == (0, "hello"), ran.stderr
        assert f"1 result in {tmp_path}/home" in ran.stderr
        assert (tmp_path / "home/products/spectrum.fits").exists()
        asked = Client(str(there.socket)).job("j1").spec.inputs
        told = [(each.name, each.path, each.executable) for each in asked if isinstance(each, InputSpec)]
        sums = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("tree/a", "tree/below/b", "tool")}
        assert told == [("tree/a", sums["tree/a"], False), ("tree/below/b", sums["tree/below/b"], False),
                        ("bin/tool", sums["tool"], True), ("", "", False)]  # fmt: skip

        array = ("run", "--image", "xmm", "--array", "3-4", "--out", "products/*")
        assert ghv(*array, "--to", "many", "--", "exit", "0").exit_code == 0
        assert sorted(path.name for path in (tmp_path / "many").iterdir()) == ["3", "4"]
        assert ghv(*array, "--to", "at-${PARAM}", "--", "exit", "0").exit_code == 0
        assert (tmp_path / "at-3/products/spectrum.fits").exists() and (tmp_path / "at-4").exists()
        refused = ghv(*array, "--in", "${TASK_ID}.txt", "--", "exit", "0")
        assert refused.exit_code == 64 and "one by one" in refused.stderr
        assert ghv("fetch", "a1000", "--to", "again").exit_code == 0
        assert (tmp_path / "again/4/products/spectrum.fits").exists()
        assert ghv("validate", "-f", "job.yaml").exit_code == 66
        assert ghv("site", "add", "x", "--kind", "fork").exit_code == 77
        (tmp_path / "tree/out").symlink_to("/etc")
        assert "outside" in ghv("run", "--image", "xmm", "--in", "tree", "--", "exit", "0").stderr


LAB = """\
kind: VirtualInfrastructure
name: lab
parameters: {workers: {default: 1, min: 1, max: 4}}
roles:
  head: {image: xmm}
  worker: {image: xmm, count: "${workers}", after: [head]}
"""


def test_an_infrastructure_is_planned_applied_shown_scaled_and_deleted(ghv: Ghv, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(LAB)
    checked = ghv("validate", "lab.yaml", "-p", "workers=3")
    assert checked.exit_code == 0 and "1 head, 3 worker" in checked.stdout, checked.stderr
    planned = ghv("plan", "-f", "lab.yaml")
    assert planned.exit_code == 0 and "worker-0" in planned.stdout and "does not answer" in planned.stdout
    applied = ghv("apply", "-f", "lab.yaml")
    assert applied.exit_code == 0 and "lab ready" in applied.stderr and "2 of 2 VMs ready" in applied.stderr
    again = ghv("apply", "-f", "lab.yaml", "-p", "workers=2")
    assert again.exit_code == 0 and "worker: 1 → 2 VMs" in again.stdout
    assert ghv("apply", "-f", "lab.yaml", "-p", "workers=5").exit_code == 65
    shown = ghv("show", "lab")
    assert shown.exit_code == 0 and "lab.worker-1" in shown.stdout and "worker: 2 of 2 ready" in shown.stdout
    assert [vm["name"] for vm in json.loads(ghv("show", "lab", "-o", "json").stdout)["vms"]] == [
        "head-0", "worker-0", "worker-1",
    ]  # fmt: skip
    scaled = ghv("scale", "lab", "worker=4", "-o", "json")
    assert scaled.exit_code == 0 and len(json.loads(scaled.stdout)["vms"]) == 5
    assert ghv("scale", "lab", "worker=many").exit_code == 64
    wrong = ghv("scale", "lab", "slave=1")
    assert wrong.exit_code == 65 and "roles are head, worker" in wrong.stderr
    (tmp_path / "lab.yaml").write_text(LAB.replace("head: {image: xmm}", "head: {image: other}"))
    refused = ghv("plan", "-f", "lab.yaml")
    assert refused.exit_code == 78 and "roles.head.image" in refused.stdout
    missing = ghv("validate", "lab.yaml")
    assert missing.exit_code == 66 and "lab.yaml:5: roles.head.image: there is no such image" in missing.stderr
    assert ghv("show", "nowhere").exit_code == 66


def test_an_infrastructure_that_is_undone_says_why(ghv: Ghv, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text("name: lab\nroles: {never: {image: xmm}}\nkind: VirtualInfrastructure\n")
    applied = ghv("apply", "-f", "lab.yaml")
    assert applied.exit_code == 75
    assert (
        "never-0 (j200) was not ready 1m after its start" in applied.stderr and "next: ghv show lab" in applied.stderr
    )


def test_a_file_of_an_infrastructure_with_faults_names_file_line_and_field(ghv: Ghv, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(LAB.replace("after: [head]", "after: [haed], networks: [lan]"))
    for words in (("validate",), ("apply", "-f"), ("plan", "-f")):
        told = ghv(*words, "lab.yaml")
        assert told.exit_code == 65
        assert told.stderr.splitlines() == [
            "error: lab.yaml:6: roles.worker.after[0]: there is no role haed; did you mean head?",
            "error: lab.yaml:6: roles.worker.networks: does nothing yet: there is no private network yet; leave it out",
        ], told.stderr


def test_a_command_in_a_vm_ends_as_it_ended(ghv: Ghv, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(LAB)
    ghv("apply", "-f", "lab.yaml", "-q")
    done = ghv("exec", "--limit", "5s", "j200", "--", "echo", "-n", "hello")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "-n hello\n", "limit 5\n")
    assert ghv("exec", "j200", "exit", "7").exit_code == 7
    assert ghv("exec", "j7", "true").exit_code == 78
    assert ghv("exec", "j200").exit_code == 64


def test_files_are_copied_into_a_vm_and_out_of_one(ghv: Ghv, tmp_path: Path) -> None:
    (tmp_path / "lab.yaml").write_text(LAB)
    (tmp_path / "page").write_bytes(b"\0\xff page")
    ghv("apply", "-f", "lab.yaml", "-q")
    assert ghv("cp", "page", "j200:kept").exit_code == 0
    assert ghv("cp", "j200:kept", "copy").exit_code == 0
    assert (tmp_path / "copy").read_bytes() == b"\0\xff page"
    missing = ghv("cp", "j200:nowhere", ".")
    assert missing.exit_code == 66 and "nowhere" in missing.stderr
    for wrong in (("a", "b"), ("j200:a", "j200:b")):
        assert ghv("cp", *wrong).exit_code == 64
    (tmp_path / "large").write_bytes(bytes(300 << 10))
    assert "larger than 256 KiB" in ghv("cp", "large", "j200:x").stderr
