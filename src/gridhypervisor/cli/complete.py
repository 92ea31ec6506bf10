"""Completion of jobs, images and sites by asking the service, if it runs: a Tab never starts it or complains."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import click
from click.shell_completion import CompletionItem

from gridhypervisor.client.launcher import find_paths
from gridhypervisor.client.sync import Client
from gridhypervisor.model.views import GroupView, JobView

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _client() -> Client:
    return Client(str(find_paths().socket), patience=0)


def jobs(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    with suppress(Exception):
        client = _client()
        found: list[GroupView | JobView] = [*client.groups(limit=20), *client.jobs(limit=100)]
        return [CompletionItem(j.id, help=f"{j.state}  {j.name}") for j in found if j.id.startswith(incomplete)]
    return []


def images(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    with suppress(Exception):
        tags = [(tag, image.description) for image in _client().images() for tag in image.tags]
        return [CompletionItem(tag, help=text) for tag, text in tags if tag.startswith(incomplete)]
    return []


def sites(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    with suppress(Exception):
        return [CompletionItem(s.name, help=s.health) for s in _client().sites() if s.name.startswith(incomplete)]
    return []


def checkpoints(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    with suppress(Exception):
        found = [c for c in _client().checkpoints() if c.id.startswith(incomplete)]
        return [CompletionItem(c.id, help=f"{c.job} at {c.site}") for c in found]
    return []
