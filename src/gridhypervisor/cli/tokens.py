"""`ghv token`: who else may use this service, and for what; and `ghv serve`, which lets them reach it."""

from __future__ import annotations

import os
import sys
import time

import click

from gridhypervisor.cli.output import ago, dim, echo, emit, format_option, table
from gridhypervisor.cli.request import DURATION
from gridhypervisor.client.launcher import COMMAND, answers, connect, find_paths, own_folder
from gridhypervisor.model.access import Scope, TokenRequest, TokenView
from gridhypervisor.model.views import Problem, ServiceError


@click.group()
def token() -> None:
    """Let others use this service over the network, each for what is his own."""


@token.command()
@click.option("--owner", metavar="NAME", default="", help="Whose things are made with it.  [default: yours]")
@click.option("--project", metavar="NAME", default="", help="And of which project.  [default: yours]")
@click.option(
    "--scope", type=click.Choice([str(scope) for scope in Scope]), default=str(Scope.WRITE), show_default=True,
    help="Look; submit and change too; or all, of everybody.",
)  # fmt: skip
@click.option("--expires", type=DURATION, metavar="TIME", default="30d", show_default=True, help="At most 366d.")
@click.option("--outbound", is_flag=True, help="Its guests may reach what the sites' accounts can reach.")
@click.option("--name", metavar="TEXT", default="", help="For people: where it is used.")
@format_option
def create(owner: str, project: str, scope: str, expires: str, outbound: bool, name: str, output: str) -> None:
    """Make a token, and print it: once, it is kept nowhere.

    \b
    ghv token create --owner ada > ada.token    # she keeps it in a file that only she can read
    """
    made = connect().create_token(TokenRequest(Scope(scope), owner, project, name, expires, outbound))
    if output != "table":
        emit(made, output)
        return
    echo(made.secret)
    left = ago(made.expires - time.time())
    echo(
        dim(
            f"token {made.id} of {made.owner}, to {made.scope}, for {left}; revoke it with: ghv token revoke {made.id}"
        ),
        err=True,
    )


@token.command("list")
@format_option
def list_tokens(output: str) -> None:
    """Tokens, and until when they are good. Their secrets are kept nowhere."""
    found = connect().tokens()
    if output != "table":
        emit(found, output)
        return
    rows = [(t.id, t.owner, t.project, str(t.scope), _standing(t), t.name) for t in found]
    table(("TOKEN", "OWNER", "PROJECT", "SCOPE", "GOOD FOR", "NAME"), rows)


def _standing(token: TokenView) -> str:
    now = time.time()
    if token.revoked is not None:
        return "revoked"
    return ago(token.expires - now) if now < token.expires else "expired"


@token.command()
@click.argument("tokens", metavar="TOKEN…", nargs=-1, required=True)
@format_option
def revoke(tokens: tuple[str, ...], output: str) -> None:
    """Make tokens good for nothing, at once: TOKEN is what `ghv token list` calls them."""
    client = connect()
    revoked = [client.revoke_token(each) for each in tokens]
    if output != "table":
        emit(revoked, output)
    else:
        for each in revoked:
            echo(f"{each.id} revoked")


@click.command()
@click.option("--listen", metavar="HOST:PORT", required=True, help="Where; port 0: any that is free.")
@click.option("--cert", metavar="FILE", help="The certificate and those that lead to its authority, PEM.")
@click.option("--key", metavar="FILE", help="Its key, PEM.")
def serve(listen: str, cert: str | None, key: str | None) -> None:
    """Run the service here, until it is stopped, and let others reach it with tokens.

    Without a certificate only on loopback: 127.0.0.1:8080. See docs/serve.md.
    """
    paths = find_paths()
    if answers(paths):
        why, hint = "a service of this data folder runs already", "ghv service stop, then this again"
        raise ServiceError(Problem(f"serve at {listen}", 409, "conflict", why, hint))
    own_folder(paths.socket.parent)
    own_folder(paths.data)
    given = {"--listen": listen, "--cert": cert and os.path.abspath(cert), "--key": key and os.path.abspath(key)}
    arguments = [word for name, value in given.items() if value for word in (name, value)]
    sys.stdout.flush()
    os.execv(COMMAND[0], [*COMMAND, "--data", str(paths.data), "--socket", str(paths.socket), *arguments])
