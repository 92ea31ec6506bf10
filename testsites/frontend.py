"""A real SSH front-end without a batch system, whose sshd asks for more than a key where a test wants it to.

One bare root and one set of name spaces, as for the other sites; an ordinary user with a key, a password, and a
certificate authority that can sign for him. It tells how often anybody knocked.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from testsites import bareroot, sshd
from testsites.site import SHELL, UID, USER, free_address, listens

CONFIG = (
    sshd.CONFIG.replace("AuthenticationMethods publickey", "AuthenticationMethods {methods}")
    + """\
KbdInteractiveAuthentication no
LogLevel VERBOSE
TrustedUserCAKeys /etc/ssh/authority.pub
"""
)
LISTENS, KNOCKED = "Server listening on ", "Connection from "
"""What its log says of a start, and of a client."""


class FrontEnd:
    """One running front-end; a context manager.

    Raises:
        PermissionError: not root.
        RuntimeError: its sshd did not come up.
    """

    def __init__(self, name: str = "front") -> None:
        if os.geteuid() != 0:
            raise PermissionError("start a front-end: it mounts and serves another user; run it as root")
        self.name, self.address = name, free_address(sshd.PORT)
        self.folder = Path(tempfile.mkdtemp(prefix=f"ghv-{name}-"))
        self.folder.chmod(0o755)
        self.root, self.client = self.folder / "root", self.folder / "client"
        self.home = self.root / "home" / USER
        self.password = secrets.token_hex(8)
        self._keeper: subprocess.Popen[str] | None = None
        try:
            self._make()
            self.login = sshd.login(self.client, self.address, USER)
            self._keeper = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--propagation", "private",
                 sys.executable, "-I", Path(__file__).with_name("keeper.py"), self.root, self.name],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
            self._answer()
            self._serve()
        except BaseException:
            self.stop()
            raise

    def require(self, methods: str) -> None:
        """From the next connection on sshd wants these `AuthenticationMethods`. Open sessions go on."""
        self._write(methods)
        before = self._log().count(LISTENS)
        self._ask({"signal": "sshd", "number": int(signal.SIGHUP)})  # it executes itself anew
        _until(f"the sshd of {self.name} to want {methods}", lambda: self._log().count(LISTENS) > before)

    def knocks(self) -> int:
        """How many connections its sshd has seen."""
        return self._log().count(KNOCKED) - 1  # one was ours, to see it serve

    def cut_ssh(self) -> int:
        """Kill every open SSH session, as a broken network would; how many processes that were."""
        return len(self._ask({"cut": "sshd"})["killed"])

    def certificate(self, key: Path, validity: str) -> None:
        """Sign a key for the user, as `ssh-keygen -V` understands validity; ssh finds what it is beside the key."""
        authority = self.folder / "authority"
        who = ["-I", "test", "-n", USER, "-V", validity]
        subprocess.run(["ssh-keygen", "-q", "-s", authority, *who, key.with_suffix(".pub")], check=True)

    def stop(self) -> None:
        """End every process of the front-end and remove its folder."""
        if self._keeper is not None:
            assert self._keeper.stdin and self._keeper.stdout
            self._keeper.stdin.close()
            self._keeper.stdout.close()
            self._keeper.wait(timeout=60)
            self._keeper = None
        shutil.rmtree(self.folder)

    def __enter__(self) -> FrontEnd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # How it is made

    def _make(self) -> None:
        programs = [*(Path("/usr/bin") / name for name in SHELL), *sshd.PROGRAMS]
        bareroot.build(self.root, programs)
        self.root.chmod(0o755)
        (self.root / "bin/sh").symlink_to("dash")
        etc = self.root / "etc"
        (etc / "passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\n"
            "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
            f"{USER}:x:{UID}:{UID}:An ordinary user:/home/{USER}:/bin/sh\n"
        )
        made = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"], input=self.password, capture_output=True, text=True, check=True
        )
        (etc / "shadow").write_text(f"root:*:19000::::::\n{USER}:{made.stdout.strip()}:19000::::::\n")
        (etc / "shadow").chmod(0o600)
        (etc / "group").write_text(f"root:x:0:\nnogroup:x:65534:\n{USER}:x:{UID}:\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nshadow: files\nhosts: files\n")
        self.home.mkdir(mode=0o700)
        os.chown(self.home, UID, UID)
        self.client.mkdir(mode=0o700)
        sshd.prepare(self.root, self.client, self.address, USER, UID)
        authority = self.folder / "authority"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", authority], check=True)
        shutil.copy(self.folder / "authority.pub", etc / "ssh/authority.pub")
        self._write("publickey")

    def _write(self, methods: str) -> None:
        text = CONFIG.format(address=self.address, port=sshd.PORT, user=USER, methods=methods)
        (self.root / "etc/ssh/sshd_config").write_text(text)

    def _serve(self) -> None:
        self._ask({"start": "sshd", "argv": ["/usr/sbin/chroot", str(self.root), *sshd.ARGV]})
        _until(f"the sshd of {self.name}", lambda: listens(self.address, sshd.PORT))
        _until("our own knock in its log", lambda: KNOCKED in self._log())

    def _log(self) -> str:
        return (self.root / "var/log/sshd.log").read_text(errors="replace")

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._keeper and self._keeper.stdin
        self._keeper.stdin.write(json.dumps(request) + "\n")
        self._keeper.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._keeper and self._keeper.stdout
        line = self._keeper.stdout.readline()
        if not line:
            raise RuntimeError(f"start {self.name}: unshare failed; is this a container without name spaces?")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer


def _until(what: str, holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.02)
