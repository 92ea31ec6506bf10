"""`ghv service`: the service behind all other verbs."""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress

import click

from gridhypervisor.cli import exits
from gridhypervisor.cli.output import GREEN, ago, dim, echo, emit, format_option, paint, pairs, size
from gridhypervisor.client.launcher import Paths, answers, ensure_service, find_paths
from gridhypervisor.client.sync import Client
from gridhypervisor.model.views import Problem, ServiceError, ServiceView

STOP_TIMEOUT = 60.0
"""Seconds that the service has to stop."""


@click.group()
def service() -> None:
    """Start, stop and look at your service. It also starts by itself."""


@service.command()
@format_option
def start(output: str) -> None:
    """Start the service, if it does not run."""
    paths = find_paths()
    started = ensure_service(paths)
    view = _client(paths).status()
    if output != "table":
        emit(view, output)
    else:
        echo(f"{'started' if started else 'runs already'}  {dim(f'process {view.pid}')}")


@service.command()
def stop() -> None:
    """Stop the service. Jobs go on at their sites, and are found again at its next start."""
    paths = find_paths()
    if not answers(paths):
        echo("not running")
        return
    client = _client(paths)
    with suppress(ProcessLookupError):
        process = os.pidfd_open(client.status().pid)
        try:
            client.stop()
            if not select.select([process], [], [], STOP_TIMEOUT)[0]:
                why = f"it still runs after {STOP_TIMEOUT:.0f} s"
                raise ServiceError(Problem("stop the service", 503, "unavailable", why, f"Its log: {paths.log}"))
        finally:
            os.close(process)
    echo("stopped")


@service.command()
@format_option
def status(output: str) -> int:
    """Show the service; exits with 69 if it does not run. Never starts it."""
    paths = find_paths()
    if not answers(paths):
        if output != "table":
            emit(None, output)
        else:
            pairs([("service", "not running"), ("data", str(paths.data)), ("socket", str(paths.socket))])
        return exits.Exit.UNAVAILABLE
    view = _client(paths).status()
    if output != "table":
        emit(view, output)
    else:
        _show(view, paths)
    return exits.Exit.OK


def _show(view: ServiceView, paths: Paths) -> None:
    pairs(
        [
            (
                "service",
                f"{paint('running', GREEN)}  {dim(f'for {ago(time.time() - view.started)}, process {view.pid}')}",
            ),
            ("version", view.version),
            ("installation", view.installation),
            ("jobs alive", str(view.jobs_alive)),
            ("CPU", f"{view.cpu_seconds:.1f} s"),
            ("memory", size(view.max_rss)),
            ("data", view.data),
            ("socket", str(paths.socket)),
            ("log", str(paths.log)),
        ]
    )


def _client(paths: Paths) -> Client:
    return Client(str(paths.socket), patience=5.0)
