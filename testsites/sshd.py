"""The front-end's SSH daemon: keys, configuration, and what a client needs to come in. Starts nothing itself."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

PORT = 2222
PROGRAMS = (Path("/usr/sbin/sshd"),)
ARGV = ["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/sshd_config"]

CONFIG = """\
ListenAddress {address}
Port {port}
HostKey /etc/ssh/host_key
PidFile none
AuthenticationMethods publickey
UsePAM no
PermitRootLogin no
AllowUsers {user}
StrictModes yes
UseDNS no
PrintMotd no
MaxSessions 100
MaxStartups 100:30:200
"""


@dataclass(frozen=True)
class Login:
    """How an ordinary user gets in."""

    host: str
    port: int
    user: str
    key: Path
    known_hosts: Path


def login(client: Path, address: str, user: str) -> Login:
    """What `prepare` left in the folder `client`."""
    return Login(address, PORT, user, client / "id_ed25519", client / "known_hosts")


def prepare(root: Path, client: Path, address: str, user: str, uid: int) -> None:
    """Write the daemon's files and the user's key into `root`, and what a client needs into the folder `client`."""
    (root / "etc/ssh").mkdir()
    (root / "run/sshd").mkdir(mode=0o755)
    (root / "etc/ssh/sshd_config").write_text(CONFIG.format(address=address, port=PORT, user=user))
    made, host_key = login(client, address, user), root / "etc/ssh/host_key"
    for path in (made.key, host_key):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path], check=True)
    made.known_hosts.write_text(f"[{address}]:{PORT} {host_key.with_suffix('.pub').read_text()}")
    folder = root / "home" / user / ".ssh"
    folder.mkdir(mode=0o700)
    authorized = folder / "authorized_keys"
    authorized.write_text(made.key.with_suffix(".pub").read_text())
    authorized.chmod(0o600)
    subprocess.run(["chown", "-R", f"{uid}:{uid}", folder], check=True)
