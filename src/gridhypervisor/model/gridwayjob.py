"""Makes jobs of GridWay's templates: a `JobSpec`, what goes beyond it (`Extras`), and warnings of what cannot apply.

The guest takes the place of GridWay's execution host, and its shell that of GridWay's wrapper script, whose ways are
kept: ARGUMENTS and the values of ENVIRONMENT stand in double quotes of a shell (so `$HOME` and `` `date` `` work), then
arguments are divided at spaces and file patterns in them are expanded. A file given by a relative name is staged from
the template's folder, an absolute one is the guest's own. Substitutions stay in place for `model.arrays`; besides those
of its names, `${NAME}` stands for a variable of the template's own ENVIRONMENT, as in GridWay.

A job that needs nothing of a shell is run without one.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import msgspec

from gridhypervisor.model.arrays import NAMES
from gridhypervisor.model.gridway import Pair, Template
from gridhypervisor.model.spec import InputSpec, JobSpec, ResourcesSpec, RetrySpec, unsafe
from gridhypervisor.model.yamlspec import Problem, SpecError

RETRIES = 3
"""GridWay's own default, for a template that says only RESCHEDULE_ON_FAILURE."""

_SUBSTITUTION = re.compile(r"\$\{(?:" + "|".join(NAMES) + r")\}")
_NAMED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_STDIN = "stdin.execution"  # GridWay's name for it
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")


class Extras(msgspec.Struct, frozen=True):
    """What a template asks for beyond a `JobSpec`. Times in seconds; None: it says nothing."""

    requirements: str = ""  # in GridWay's language
    rank: str = ""  # in GridWay's language
    after: tuple[str, ...] = ()  # jobs that must be done before
    deadline: int | None = None  # to start within, from submission
    gang: int = 1  # VMs that start together
    mpi: bool = False  # the gang is one MPI program: its first VM runs the program, with the list of all
    rescheduling_interval: int | None = None  # how often to look for a better place
    rescheduling_threshold: int | None = None  # a job that has run longer stays
    suspension_timeout: int | None = None  # waiting in a site's queue for longer, it is moved
    cpuload_threshold: int | None = None  # percent of a processor; with less it is moved
    restart_files: tuple[str, ...] = ()  # kept from one attempt to the next
    checkpoint_interval: int | None = None  # how often the guest is saved while the job runs
    checkpoint_url: str = ""  # where to: to the service's own machine, whatever it says
    stdout: str = ""  # files for the streams: absolute, or below the template's folder
    stderr: str = ""
    destinations: tuple[Pair, ...] = ()  # outputs that go elsewhere: name in the job's folder, and where to


@dataclass(frozen=True)
class Converted:
    spec: JobSpec
    extras: Extras
    warnings: tuple[Problem, ...]


def to_job(template: Template, image: str, resources: ResourcesSpec | None = None) -> Converted:
    """The job of a template, in a guest of this image. `resources`: what templates cannot say: memory, walltime, ….

    Raises:
        SpecError: it cannot be run; names every problem found, with its line.
    """
    maker = _Maker(template)
    spec = maker.spec(image, resources or ResourcesSpec())
    extras = maker.extras()
    if maker.problems:
        raise SpecError(maker.problems)
    return Converted(spec, extras, (*template.warnings, *maker.warnings))


class _Maker:
    def __init__(self, template: Template) -> None:
        self.template = template
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._inputs: dict[str, InputSpec] = {}  # by the name in the job's folder

    def spec(self, image: str, resources: ResourcesSpec) -> JobSpec:
        t = self.template
        for source, destination in t.input_files:
            self._stage("input_files", self._own(source), self._own(destination))
        command, environment = self._command()
        retry = RetrySpec()
        if t.number_of_retries is not None or t.reschedule_on_failure is not None:
            times = RETRIES if t.number_of_retries is None else t.number_of_retries
            if times > 100:
                self._wrong("number_of_retries", f"{times} is too often", "write a number from 0 to 100")
            retry = RetrySpec(times, bool(t.reschedule_on_failure))
        if t.type == "single" and t.np > 1:
            resources = msgspec.structs.replace(resources, cpus=t.np)
        return JobSpec(
            image,
            command,
            name=self._name(),
            inputs=tuple(self._inputs.values()),
            outputs=self._outputs(),
            environment=environment,
            resources=resources,
            retry=retry,
        )

    def extras(self) -> Extras:
        t = self.template
        destinations = []
        for source, destination in t.output_files:
            if destination and (place := self._local("output_files", self._own(destination))):
                destinations.append((self._own(source), place))
        restart = []
        for name, _ in t.restart_files:
            if unsafe(own := self._own(name)) or _URL.match(own):
                self._warn("restart_files", f"{own} is not kept", "a restart file has a plain name in the job's folder")
            else:
                restart.append(own)
        for keyword in ("wrapper", "monitor", "pre_wrapper"):
            if getattr(t, keyword):
                self._warn(keyword, "runs in the guest, beside the program", "there is no other place at the site")
        if t.pre_wrapper_arguments and not t.pre_wrapper:
            self._warn("pre_wrapper_arguments", "there is no PRE_WRAPPER", "name it, or remove its arguments")
        return Extras(
            requirements=self._own(t.requirements),
            rank=self._own(t.rank),
            after=t.job_dependencies,
            deadline=t.deadline or None,
            gang=t.np if t.type != "single" else 1,
            mpi=t.type == "mpi",
            rescheduling_interval=t.rescheduling_interval,
            rescheduling_threshold=t.rescheduling_threshold,
            suspension_timeout=t.suspension_timeout,
            cpuload_threshold=t.cpuload_threshold,
            restart_files=tuple(restart),
            checkpoint_interval=t.checkpoint_interval,
            checkpoint_url=self._own(t.checkpoint_url),
            stdout=self._local("stdout_file", self._own(t.stdout_file)),
            stderr=self._local("stderr_file", self._own(t.stderr_file)),
            destinations=tuple(destinations),
        )

    def _command(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """What runs in the guest, and its environment."""
        t = self.template
        program = self._program("executable")
        arguments = self._own(t.arguments)
        told = self._told(program, arguments)
        literal = {name: text for name, text in t.environment.items() if not _active(text, patterns=False)}
        script = [f'export {name}="{self._own(text)}"' for name, text in t.environment.items() if name not in literal]
        environment = told | literal
        plain = not (script or t.stdin_file or t.wrapper or t.monitor or t.pre_wrapper or _active(arguments))
        if plain and program.startswith("/"):
            return (program, *arguments.split()), environment
        if _active(arguments):
            environment.pop("GW_ARGUMENTS", None)
            script.append(f'GW_ARGUMENTS="{arguments}"; export GW_ARGUMENTS')
            words = "$GW_ARGUMENTS"
        else:
            words = " ".join(map(shlex.quote, arguments.split()))
        script.insert(0, 'export PATH=".:$PATH"')
        run = " ".join(filter(None, (shlex.quote(program), words, self._stdin())))
        staged = [program]
        if t.pre_wrapper:
            before = self._program("pre_wrapper")
            staged.append(before)
            script.append(
                " ".join(filter(None, (shlex.quote(before), self._own(t.pre_wrapper_arguments)))) + " || exit"
            )
        monitor = self._program("monitor") if t.monitor else ""
        if monitor:
            staged.append(monitor)
            environment["GW_MONITOR"] = monitor
        if t.wrapper:
            wrapper = self._program("wrapper")
            staged.append(wrapper)
            script.append(f"exec {shlex.quote(wrapper)}")
        elif monitor:
            script += [
                f"{run} & job=$!",
                f"{shlex.quote(monitor)} $job < /dev/null > stdout.monitor 2> stderr.monitor & monitor=$!",
                "wait $job; code=$?",
                "kill $monitor 2>/dev/null; exit $code",
            ]
        else:
            script.append(f"exec {run}")
        if ours := [shlex.quote(name) for name in staged if name.startswith("./")]:
            script.insert(1, f"chmod +x {' '.join(ours)} 2>/dev/null")
        return ("/bin/sh", "-c", "\n".join(script)), environment

    def _told(self, program: str, arguments: str) -> dict[str, str]:
        """The variables by which GridWay tells a job of itself."""
        t = self.template
        files = {"INPUT": t.input_files, "OUTPUT": t.output_files, "RESTART": t.restart_files}
        listed = {
            f"GW_{kind}_FILES": ", ".join(" ".join(filter(None, map(self._own, pair))) for pair in pairs)
            for kind, pairs in files.items()
            if pairs
        }
        named = {f"GW_{name}": f"${{{name}}}" for name in NAMES}
        if t.cpuload_threshold is not None:
            named["GW_CPULOAD_THRESHOLD"] = str(t.cpuload_threshold)
        if t.restart_files:
            named["GW_RESTARTED"] = "0"  # of the first attempt
        return named | listed | {"GW_EXECUTABLE": program, "GW_ARGUMENTS": arguments}

    def _program(self, keyword: str) -> str:
        """A program, staged if it is to be: how it is called in the guest."""
        source = self._own(getattr(self.template, keyword))
        if len(source.split()) != 1:
            self._wrong(keyword, f"{source} is not one file", "give its arguments apart")
            return source
        name = self._stage(keyword, source, "")
        return f"./{name}" if name else source

    def _stdin(self) -> str:
        source = self._own(self.template.stdin_file)
        if not source:
            return ""
        return f"< {shlex.quote(self._stage('stdin_file', source, _STDIN) or source)}"

    def _stage(self, keyword: str, source: str, name: str) -> str:
        """Make a file an input; its name in the job's folder, empty where the file is the guest's own."""
        url = urlsplit(source) if _URL.match(source) else None
        if url is None and source.startswith("/"):
            if name and keyword == "input_files":
                self._warn(keyword, f"{source} is the guest's own file", "it is not brought, and has no other name")
            return ""
        if url is not None and url.scheme not in ("file", "http", "https", "s3"):
            right = "put a copy where it can be had by http, https or s3, or in the template's folder"
            self._wrong(keyword, f"{source} cannot be had: {url.scheme} is not spoken here", right)
            return ""
        path = unquote(url.path) if url is not None and url.scheme == "file" else "" if url is not None else source
        name = name or PurePosixPath(path or (url.path if url is not None else "")).name
        if unsafe(name):
            self._wrong(keyword, f"{name or source} cannot be a file's name there", "give a plain name as destination")
            return ""
        made = InputSpec(path=path, name=name) if path else InputSpec(url=source, name=name)
        if self._inputs.setdefault(name, made) != made:
            self._wrong(keyword, f"two files would be called {name} there", "give one of them another destination")
        return name

    def _outputs(self) -> tuple[str, ...]:
        found = []
        for source, _ in self.template.output_files:
            name = self._own(source)
            if unsafe(name) or _URL.match(name):
                self._wrong(
                    "output_files", f"{name} is not in the job's folder", "name a file that the job leaves there"
                )
            found.append(name)
        return tuple(dict.fromkeys(found))

    def _local(self, keyword: str, place: str) -> str:
        """Where a result goes on the user's machine; empty, with a warning, if it cannot go there."""
        match = _URL.match(place)
        if match is None:
            return place
        if match[1] == "file":
            return unquote(urlsplit(place).path)
        self._warn(keyword, f"{place} cannot be written to", "the file comes to the results' folder")
        return ""

    def _name(self) -> str | None:
        wanted = self._own(self.template.name) or PurePosixPath(self.template.file).stem
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", wanted).lstrip("._-")[:63]
        if self.template.name and name != wanted:
            self._warn("name", f"{wanted} cannot be a job's name", f"it is called {name or 'by its number'} instead")
        return name or None

    def _own(self, text: str) -> str:
        """The text with the template's own variables in their places."""
        variables = self.template.environment

        def one(match: re.Match[str]) -> str:
            name = match[1].removeprefix("GW_")  # older templates write ${GW_TASK_ID}
            return f"${{{name}}}" if name in NAMES else variables.get(match[1], match[0])

        return _NAMED.sub(one, text)

    def _wrong(self, keyword: str, problem: str, allowed: str) -> None:
        self.problems.append(self.template.problem(keyword, problem, allowed))

    def _warn(self, keyword: str, problem: str, allowed: str) -> None:
        self.warnings.append(self.template.problem(keyword, problem, allowed))


def _active(text: str, patterns: bool = True) -> bool:
    """Whether a shell would change this text, in double quotes and then (`patterns`) as words."""
    return any(letter in _SUBSTITUTION.sub("", text) for letter in '$`"\\' + ("*?[" if patterns else ""))
