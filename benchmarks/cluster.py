"""A test site's cluster on this machine, used by a lab over SSH as any user would. Nothing here is measured."""

from __future__ import annotations

from benchmarks.lab import Lab
from gridhypervisor.client.launcher import connect, find_paths
from gridhypervisor.client.sync import Client
from testsites.site import UID, ClusterSite

NODE = f"tmp/ghv-{UID}"
"""Where its nodes keep the unpacked bundle and verified layers, below the site's root."""


def join(lab: Lab, site: ClusterSite, image: str, hypervisor: str) -> str:
    """Have the site known under the name of its kind, with bundle and image there and on its node; what ran the job
    that brought them."""
    login, options = site.login, {"spool_lag": "1", **site.options}
    lab.ghv(
        "site", "add", site.kind, "--kind", site.kind, "--host", login.host, "--port", str(login.port),
        "--user", login.user, "--key", str(login.key), "--known-hosts", str(login.known_hosts),
        *(word for key, value in options.items() for word in ("--option", f"{key}={value}")),
        *(word for key, value in site.environment.items() for word in ("--env", f"{key}={value}")),
    )  # fmt: skip
    return str(lab.warm_up(image, hypervisor, site.kind)["ledger"]["hypervisor"])


def client(lab: Lab) -> Client:
    """Of the lab's service, for many jobs at a time: a `ghv` for each would be measured along."""
    return connect(find_paths(lab.environment))
