"""The command `ghv`: its verbs, imported when they are used, and what it makes of errors."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from gridhypervisor import __version__

_SECTIONS = {
    "Jobs": {
        "run": "run:run",
        "list": "jobs:list_jobs",
        "show": "jobs:show",
        "history": "accounts:history",
        "ledger": "ledger:ledger",
        "accounting": "accounts:accounting",
        "logs": "jobs:logs",
        "events": "jobs:events",
        "fetch": "elsewhere:fetch",
        "wait": "jobs:wait",
        "explain": "jobs:explain",
        "match": "match:match",
        "plan": "match:plan",
        "replay": "match:replay",
        "cancel": "jobs:cancel",
        "recover": "jobs:recover",
        "move": "jobs:move",
        "suspend": "checkpoints:suspend",
        "resume": "checkpoints:resume",
        "pause": "checkpoints:pause",
        "unpause": "checkpoints:unpause",
        "checkpoint": "checkpoints:checkpoint",
        "delete": "jobs:delete",
    },
    "Virtual infrastructures": {
        "apply": "infrastructures:apply",
        "scale": "infrastructures:scale",
        "exec": "infrastructures:execute",
        "cp": "infrastructures:cp",
    },
    "What they run on": {
        "image": "images:image",
        "site": "sites:site",
        "node": "match:node",
        "policy": "policies:policy",
        "service": "services:service",
        "serve": "tokens:serve",
        "token": "tokens:token",
    },
    "Without the service": {
        "simulate": "simulate:simulate",
        "validate": "files:validate",
        "schema": "files:schema",
        "completion": "files:completion",
    },
}
_VERBS = {verb: target for section in _SECTIONS.values() for verb, target in section.items()}
_ALIASES = {
    "ls": "list",
    "rm": "delete",
    "images": "image",
    "sites": "site",
    "nodes": "node",
    "checkpoints": "checkpoint",
    "tokens": "token",
}


class Verbs(click.Group):
    """Finds verbs by name; ends with a published exit code and never with a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = _VERBS.get(_ALIASES.get(cmd_name, cmd_name))
        if target is None:
            return None
        module, _, name = target.partition(":")
        command = getattr(importlib.import_module(f"gridhypervisor.cli.{module}"), name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            if close := get_close_matches(args[0], [*_VERBS, *_ALIASES]):
                raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from error
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, section in _SECTIONS.items():
            with formatter.section(title):
                commands = ((verb, self.get_command(ctx, verb)) for verb in section)
                formatter.write_dl([(verb, command.get_short_help_str(90)) for verb, command in commands if command])

    def main(self, args: Sequence[str] | None = None, *rest: Any, **settings: Any) -> Any:
        settings["standalone_mode"] = False
        sys.exit(_run(lambda: super(Verbs, self).main(args, *rest, **settings)))


def _run(command: Any) -> int:
    """Carry out a command; what it returns is the exit code."""
    try:
        code = command()
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return 64
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        from gridhypervisor.cli.errors import report

        return report(error)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", message="ghv %(version)s")
def cli() -> None:
    """Run programs in their own virtual machines, inside ordinary batch jobs.

    \b
    ghv run --image xmm --in events.fits --out 'products/*' -- evproducts events.fits
    ghv list                 what runs, and what ran
    ghv show JOB             where a job's time went
    ghv explain JOB          why it is where it is

    The service that does the work starts by itself, and belongs to you alone.
    """


def main() -> None:
    cli.main(prog_name="ghv")
