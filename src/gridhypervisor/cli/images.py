"""`ghv image`: what virtual machines boot."""

from __future__ import annotations

import os
from typing import Any

import click
import msgspec

from gridhypervisor.cli import complete, exits
from gridhypervisor.cli.errors import not_there
from gridhypervisor.cli.operations import finish, show_checks
from gridhypervisor.cli.output import GREEN, bold, dim, echo, emit, format_option, paint, pairs, size, table
from gridhypervisor.cli.request import DURATION, SIZE
from gridhypervisor.client.launcher import connect
from gridhypervisor.model.spec import JobSpec, parse_duration, problems
from gridhypervisor.model.views import PATIENCE, ImageBuildRequest, ImageImportRequest, ImageView, WarmRequest

_one_image = click.argument("image", shell_complete=complete.images)


@click.group()
def image() -> None:
    """Build, import and look after images."""


@image.command()
@click.argument("recipe", type=click.Path())
@click.option("--tag", default="", metavar="NAME[:TAG]", help="What to call it.  [default: the recipe's name]")
@format_option
def build(recipe: str, tag: str, output: str) -> None:
    """Build an image from a RECIPE: packages and files, in layers."""
    _see(recipe)
    client = connect()
    _made(finish(client, client.build_image(ImageBuildRequest(os.path.abspath(recipe), tag))), output)


@image.command("import")
@click.argument("path", type=click.Path())
@click.option("--tag", required=True, metavar="NAME[:TAG]", help="What to call it.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["qcow2", "raw"]),
    help="How the file is written.  [default: by its name's ending]",
)
@format_option
def import_image(path: str, tag: str, kind: str | None, output: str) -> None:
    """Take in a disk image that boots Linux."""
    _see(path)
    kind = kind or {".qcow2": "qcow2", ".raw": "raw", ".img": "raw"}.get(os.path.splitext(path)[1])
    if kind is None:
        raise click.UsageError(f"The name {path} does not say how it is written: give --format qcow2 or --format raw.")
    client = connect()
    _made(finish(client, client.import_image(ImageImportRequest(os.path.abspath(path), tag, kind))), output)


def _see(path: str) -> None:
    """Raises ServiceError: there is nothing to read."""
    if not os.access(path, os.R_OK):
        raise not_there([path])


def _made(result: object, output: str) -> None:
    made = msgspec.convert(result, ImageView)
    if output != "table":
        emit(made, output)
    else:
        echo(f"{paint('ok', GREEN)}  {', '.join(made.tags)}  {dim(made.digest[:12])}  {size(made.size)}")


@image.command("list")
@format_option
def list_images(output: str) -> None:
    """List images."""
    found = connect().images()
    if output != "table":
        emit(found, output)
    elif not found:
        echo("No images. Build one with: ghv image build RECIPE", err=True)
    else:
        rows = [(", ".join(i.tags) or "-", i.digest[:12], size(i.size), i.arch, i.description) for i in found]
        table(("IMAGE", "DIGEST", "SIZE", "ARCH", "DESCRIPTION"), rows, right=(2,))


@image.command()
@_one_image
@format_option
def show(image: str, output: str) -> None:
    """Show an image and its layers."""
    found = connect().image(image)
    if output != "table":
        emit(found, output)
        return
    pairs(
        [
            ("image", bold(", ".join(found.tags) or found.digest[:12])),
            ("digest", found.digest),
            ("size", size(found.size)),
            ("arch", found.arch),
            ("runs as", found.user),
            ("about", found.description),
        ]
    )
    echo(f"\n{bold('Layers')}")
    rows = [(layer.role, layer.format, size(layer.size), layer.digest[:12], layer.mount) for layer in found.layers]
    table(("ROLE", "FORMAT", "SIZE", "DIGEST", "MOUNT"), rows, right=(2,), indent="  ")


@image.command()
@_one_image
@format_option
def verify(image: str, output: str) -> int:
    """Read all of an image's bytes and compare them with its digest."""
    client = connect()
    return show_checks(finish(client, client.verify_image(image)), output, otherwise=exits.Exit.INVALID)


@image.command()
@click.argument("image", default="", metavar="[IMAGE]", shell_complete=complete.images)
@click.option("-f", "--file", metavar="FILE", help="For jobs like the one of this YAML file. Flags override it.")
@click.option(
    "--site", "sites", multiple=True, metavar="SITE", shell_complete=complete.sites,
    help="Where. May be repeated.  [default: at all sites]",
)  # fmt: skip
@click.option("--cpus", type=click.IntRange(1, 1024), metavar="N", help="Virtual CPUs.  [default: 1]")
@click.option("--memory", type=SIZE, metavar="SIZE", help="The guest's memory.  [default: 512Mi]")
@click.option("--scratch", type=SIZE, metavar="SIZE", help="The guest's scratch disk.  [default: 2Gi]")
@click.option("--network", type=click.Choice(["none", "restricted", "outbound"]), help="[default: none]")
@click.option("--hypervisor", type=click.Choice(["auto", "kvm", "tcg"]), help="[default: auto]")
@click.option("--cpu", metavar="NAME", help="The processor that the guest sees.")
@click.option(
    "--timeout", type=DURATION, default=f"{PATIENCE // 60}m", show_default=True, help="For each site, with its queue."
)
@format_option
def warm(
    image: str, file: str | None, sites: tuple[str, ...], timeout: str, output: str, **given: Any
) -> int:  # fmt: skip
    """Have sites make a snapshot of a booted guest, so that the first job does not boot either.

    \b
    ghv image warm xmm --memory 1G --hypervisor tcg --site cluster
    ghv image warm -f job.yaml

    A snapshot serves jobs of that image, with the same cpus, memory, scratch, network, hypervisor and cpu. It is
    made by a small batch job. Exits with 75 where a site cannot have one, with 69 if nobody can tell yet.
    """
    if not image and not file:
        raise click.UsageError("Name an IMAGE, or give a job's file with -f.")
    like = JobSpec(image, ("true",))
    if file:
        from gridhypervisor.cli.files import read_job

        like = read_job(file)
        like = msgspec.structs.replace(like, image=image) if image else like
    wanted = {name: value for name, value in given.items() if value is not None}
    amounts = {name: wanted.pop(name) for name in ("cpus", "memory", "scratch") if name in wanted}
    like = msgspec.structs.replace(like, resources=msgspec.structs.replace(like.resources, **amounts), **wanted)
    for field, problem in problems(like):
        raise click.UsageError(f"{field}: {problem}")
    client = connect()
    operation = client.warm_image(WarmRequest(like, sites, parse_duration(timeout)))
    try:
        found = finish(client, operation)
    except KeyboardInterrupt:
        client.stop_operation(operation)
        raise
    return show_checks(found, output, otherwise=exits.Exit.INFRASTRUCTURE)


@image.command()
@click.argument("images", nargs=-1, required=True, shell_complete=complete.images)
def delete(images: tuple[str, ...]) -> None:
    """Remove images, and the layers that no other image uses."""
    client = connect()
    for name in images:
        client.delete_image(name)
        echo(f"{name}  deleted")
