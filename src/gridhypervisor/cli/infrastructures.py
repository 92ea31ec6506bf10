"""The verbs about virtual infrastructures: apply, scale, exec; and what plan and show say of them.

An infrastructure is named as its user calls it, or by its id; a VM of it `slurm-lab.worker-0`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import click

from gridhypervisor.cli import complete, exits, groups
from gridhypervisor.cli.output import (
    GREEN,
    RED,
    YELLOW,
    age,
    ago,
    bold,
    dim,
    echo,
    emit,
    format_option,
    paint,
    pairs,
    plain,
    size,
    table,
)
from gridhypervisor.cli.progress import Line, Progress
from gridhypervisor.cli.request import DURATION, PairType
from gridhypervisor.client.launcher import connect
from gridhypervisor.client.sync import Client
from gridhypervisor.model.infrafile import read
from gridhypervisor.model.infrastructure import InfrastructureSpec, vm_job
from gridhypervisor.model.infraviews import (
    ExecRequest,
    InfrastructurePlan,
    InfrastructureRequest,
    InfrastructureView,
    VmView,
)
from gridhypervisor.model.spec import parse_duration
from gridhypervisor.model.states import InfrastructureState
from gridhypervisor.model.views import Problem, ServiceError
from gridhypervisor.model.wire import MOST_INPUT, MOST_PRINTED
from gridhypervisor.model.yamlspec import parse

S = InfrastructureState

_COLOURS = {S.READY: GREEN, S.FAILED: RED, S.EXPIRED: None, S.CANCELLED: None}

_file = click.option("-f", "--file", "path", required=True, metavar="FILE", help="Its YAML file; - for stdin.")
_parameters = click.option(
    "-p", "--param", "parameters", multiple=True, type=PairType(), metavar="NAME=VALUE",
    help="A parameter's value. May be repeated.",
)  # fmt: skip


def read_infrastructure(
    path: str, parameters: Iterable[tuple[str, str]] = (), client: Client | None = None
) -> InfrastructureRequest:
    """What a file describes; `-` is stdin. With a client, images and sites that are not there are named too.

    Raises:
        SpecError: it describes no infrastructure, or names what is not there; names every problem with its line.
        OSError: the file cannot be read.
    """
    from gridhypervisor.cli.files import folder_of

    name, text = ("stdin", sys.stdin.read()) if path == "-" else (path, Path(path).read_text(errors="replace"))
    folder = folder_of(path)
    spec = read(parse(name, text), dict(parameters), lambda spec: absent_of(spec, folder, client))
    return InfrastructureRequest(spec, folder)


def absent_of(spec: InfrastructureSpec, folder: str, client: Client | None) -> Iterator[tuple[str, str]]:
    """What it names and is not there."""
    from gridhypervisor.cli.files import absent

    for name, role in spec.roles.items():
        for field, why in absent(vm_job(role, name, 3600), folder, client):
            yield f"roles.{name}.{'placement.site' if field == 'site' else field}", why


@click.command()
@_file
@_parameters
@click.option("--detach", is_flag=True, help="Do not wait until it is ready.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@format_option
def apply(path: str, parameters: tuple[tuple[str, str], ...], detach: bool, quiet: bool, output: str) -> int:
    """Have a virtual infrastructure that is as FILE says, and wait until it is ready.

    If there is one of this name, what differs is changed, and nothing else. Ctrl-C leaves it to itself.
    """
    request = read_infrastructure(path, parameters)
    client = connect()
    planned = client.plan_infrastructure(request)
    if planned.id and not quiet and not planned.refused:
        _tell_changes(planned)
    made = client.apply(request)
    if detach:
        echo(made.id) if output == "table" else emit(made, output)
        return exits.Exit.OK
    return _await(client, made, quiet=quiet, output=output)


@click.command()
@click.argument("name", shell_complete=complete.jobs)
@click.argument("counts", nargs=-1, required=True, metavar="ROLE=N…", type=PairType())
@click.option("--detach", is_flag=True, help="Do not wait until it is done.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
@format_option
def scale(name: str, counts: tuple[tuple[str, str], ...], detach: bool, quiet: bool, output: str) -> int:
    """Have more or fewer VMs of an infrastructure's roles: ghv scale lab worker=4. The highest numbers go first."""
    wanted: dict[str, int] = {}
    for role, count in counts:
        if not re.fullmatch(r"\d{1,6}", count):
            raise click.UsageError(f"{role}={count}: {count!r} is no number of VMs; write for instance {role}=4")
        wanted[role] = int(count)
    client = connect()
    changed = client.scale(name, wanted)
    if detach:
        echo(changed.id) if output == "table" else emit(changed, output)
        return exits.Exit.OK
    return _await(client, changed, quiet=quiet, output=output)


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("--limit", type=DURATION, default="60s", show_default=True, metavar="TIME", help="Then it is ended.")
@click.option("-i", "--stdin", is_flag=True, help="Give it what comes on standard input, up to 256 KiB.")
@click.argument("vm", shell_complete=complete.jobs)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def execute(limit: str, stdin: bool, vm: str, command: tuple[str, ...]) -> int:
    """Run a command in a VM beside what it serves with, as the same user: ghv exec lab.worker-0 -- df -h.

    What it prints comes when it has ended, of each stream the first MiB; ghv exits with its exit code.
    """
    client = connect()
    words = command[1:] if command[0] == "--" else command
    if not words:
        raise click.UsageError("Say what to run: ghv exec VM -- COMMAND ARGUMENT…")
    given = sys.stdin.buffer.read(MOST_INPUT + 1) if stdin else b""
    if len(given) > MOST_INPUT:
        raise click.UsageError(f"Standard input is longer than {MOST_INPUT >> 10} KiB, which is the most.")
    done = client.execute(groups.job_of(client, vm), ExecRequest(words, parse_duration(limit), given))
    for data, stream in ((done.stdout, sys.stdout), (done.stderr, sys.stderr)):
        stream.buffer.write(data)
        stream.flush()
    return done.code


@click.command()
@click.argument("source", metavar="FROM", shell_complete=complete.jobs)
@click.argument("target", metavar="TO", shell_complete=complete.jobs)
def cp(source: str, target: str) -> None:
    """Copy a file into a VM or out of one: ghv cp page.html lab.web-0:/scratch/job/, ghv cp lab.web-0:/etc/hosts .

    Into a VM up to 256 KiB, out of one up to a MiB; what is larger, name in the role's inputs. Paths in the VM that do
    not begin with / are below its command's folder.
    """
    ways = [_VM_PATH.fullmatch(word) for word in (source, target)]
    match ways:
        case [None, re.Match() as to]:
            _copy_in(Path(source), to[1], to[2])
        case [re.Match() as whence, None]:
            _copy_out(whence[1], whence[2], Path(target))
        case _:
            raise click.UsageError("One of the two is in a VM, written VM:PATH: ghv cp FILE lab.web-0:PATH")


_VM_PATH = re.compile(r"([a-z][a-z0-9.-]*):(.+)", re.DOTALL)

_PUT = 'to=${1%/}; [ ! -d "$to" ] || to=$to/$2; cat >"$to" && chmod "$3" "$to"'
_GET = 'stat -L -c "%s %a %F" "$1" >&2 && cat "$1"'


def _copy_in(path: Path, vm: str, place: str) -> None:
    data = path.read_bytes()
    title = f"copy {path} to {vm}"
    if len(data) > MOST_INPUT:
        why = f"it is larger than {MOST_INPUT >> 10} KiB"
        raise ServiceError(Problem(title, 422, "invalid", why, "name it in its role's inputs"))
    words = (*_SHELL, _PUT, "sh", place, path.name, f"{path.stat().st_mode & 0o777:o}")
    client = connect()
    done = client.execute(groups.job_of(client, vm), ExecRequest(words, 300, data))
    if done.code:
        raise ServiceError(Problem(title, 422, "invalid", plain(done.stderr.decode(errors="replace").strip())))
    echo(f"{path}: {size(len(data))} copied to {vm}", err=True)


def _copy_out(vm: str, place: str, target: Path) -> None:
    client = connect()
    done = client.execute(groups.job_of(client, vm), ExecRequest((*_SHELL, _GET, "sh", place), 300))
    title, said = f"copy {place} from {vm}", done.stderr.decode(errors="replace").strip()
    told = re.fullmatch(r"(\d{1,15}) ([0-7]{3,4}) .*", said)  # root in the guest may have it say anything
    if done.code or told is None:
        raise ServiceError(Problem(title, 404, "not-found", plain(said)))
    if int(told[1]) != len(done.stdout):
        why = f"it has {told[1]} bytes, of which {len(done.stdout)} came"
        raise ServiceError(Problem(title, 422, "invalid", why, f"at most {MOST_PRINTED >> 20} MiB can be copied"))
    place = PurePosixPath(place).name
    target = target / place if target.is_dir() else target
    target.write_bytes(done.stdout)
    target.chmod(int(told[2], 8) & 0o777)
    echo(f"{target}: {size(len(done.stdout))} copied from {vm}", err=True)


_SHELL = ("/run/ghv/busybox", "sh", "-c")
"""Of the guest's agent: whatever the image has."""


def _await(client: Client, made: InfrastructureView, *, quiet: bool, output: str) -> int:
    """Show how it gets on until it is ready, or will not be."""
    view = made
    with Progress(quiet=quiet, stdout_is_stderr=output != "table") as progress:
        for view in client.follow_infrastructure(made.id):
            progress.show_line(_line(view))
            if not view.state.transient:
                break
    if output != "table":
        emit(view, output)
    took = age(time.time() - made.since)
    told = f"{dim('ghv:')} {view.id} {view.name} {_state(view)} after {took}: {_counted(view)}"
    if view.state is not S.READY or not quiet:
        echo(told, err=True)
    if view.state is not S.READY:
        if view.why:
            echo(f"  {plain(view.why)}", err=True)
        echo(f"  {dim('next:')} ghv show {view.name}", err=True)
    return exit_code(view.state)


def exit_code(state: InfrastructureState) -> int:
    """What `ghv` exits with that waited for it."""
    if state is S.READY:
        return exits.Exit.OK
    return exits.Exit.CANCELLED if state in (S.CANCELLED, S.EXPIRED) else exits.Exit.INFRASTRUCTURE


def plan(path: str, parameters: tuple[tuple[str, str], ...], output: str) -> int:
    """`ghv plan -f`."""
    request = read_infrastructure(path, parameters)
    found = connect().plan_infrastructure(request)
    if output != "table":
        emit(found, output)
        return exits.Exit.CONFLICT if found.refused else exits.Exit.OK
    if found.id:
        _tell_changes(found)
    if found.refused:
        echo(f"{paint('refused:', RED)} while it is there, these cannot be changed: {', '.join(found.refused)}")
        echo(f"  {dim('next:')} ghv delete {found.name}, and apply it anew")
        return exits.Exit.CONFLICT
    if found.vms:
        rows = [(vm.name, vm.site or "-", plain(vm.why)) for vm in found.vms]
        table(("VM", "WOULD GO TO", "WHY"), rows)
    for role in found.roles:
        rows = [(c.site, paint("chosen", GREEN) if c.chosen else dim("no"), plain(c.verdict)) for c in role.candidates]
        echo(f"\n{dim('sites for one of')} {bold(role.name)}")
        table(("SITE", "CHOSEN", "WHY"), rows, indent="  ")
        if role.warning:
            echo(f"  {paint('warning:', YELLOW)} {plain(role.warning)}")
    return exits.Exit.OK


def _tell_changes(found: InfrastructurePlan) -> None:
    echo(
        f"{bold(found.name)} is there, as {found.id}; " + ("it would change:" if found.changes else "it is so already")
    )
    for change in found.changes:
        echo(f"  {plain(change)}")


def show(view: InfrastructureView) -> None:
    now = time.time()
    left = f", for another {age(view.expires - now)}" if not view.state.final and view.expires > now else ""
    ended = f", ended {ago(now - view.ended)} ago" if view.ended is not None else ""
    asked = f"  {dim(f'to be {view.wish}d' if view.wish == 'delete' else 'to be ended')}" if view.wish != "run" else ""
    pairs(
        [
            ("infrastructure", f"{bold(view.id)}  {view.name}"),
            ("state", f"{_state(view)}, for {ago(now - view.since)}{asked}"),
            ("why", plain(view.why)),
            ("note", plain(view.note)),
            ("roles", "\n".join(f"{r.name}: {r.ready} of {r.wanted} ready" for r in view.roles)),
            ("created", f"{ago(now - view.created)} ago{left}{ended}"),
        ]
    )
    if view.vms:
        echo(f"\n{bold('VMs')}")
        rows = [(f"{view.name}.{vm.name}", vm.job, _vm_state(vm), vm.site or "-", vm.node or "-",
                 vm.hypervisor.partition(":")[0] or "-", plain(vm.note)) for vm in view.vms]  # fmt: skip
        table(("VM", "JOB", "STATE", "SITE", "NODE", "HYPERVISOR", "NOTE"), rows, indent="  ")


def _state(view: InfrastructureView) -> str:
    return paint(str(view.state), _COLOURS.get(view.state, YELLOW))


def _vm_state(vm: VmView) -> str:
    if vm.ready:
        return paint("ready", GREEN)
    return str(vm.state) if vm.wish == "run" or vm.state.final else f"{vm.state}, to be ended"


def _counted(view: InfrastructureView) -> str:
    return f"{sum(role.ready for role in view.roles)} of {sum(role.wanted for role in view.roles)} VMs ready"


def _line(view: InfrastructureView) -> Line:
    unready = next((f"{vm.name} {vm.note}" for vm in view.vms if not vm.ready), "")
    return Line(view.id, f"{view.state}: {_counted(view)}", plain(view.why or unready), over=not view.state.transient)
