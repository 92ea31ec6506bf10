"""Lets SSH into a test site that has a network of its own: accepts outside, serves inside.

Run in the site's name spaces as `doorman.py DESCRIPTOR ROOT` with a listening socket that was made outside of them, and
so hears what arrives there. Each connection gets an sshd of its own, which belongs to the site with all that the user
starts. Killing its children cuts every session.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys


def main() -> None:
    listener = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps them
    while True:
        connection, _ = listener.accept()
        with connection:
            subprocess.Popen(
                ["/usr/sbin/chroot", sys.argv[2], "/usr/sbin/sshd", "-i", "-e", "-f", "/etc/ssh/sshd_config"],
                stdin=connection.fileno(), stdout=connection.fileno(), preexec_fn=_as_usual,
            )  # fmt: skip


def _as_usual() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


if __name__ == "__main__":
    main()
