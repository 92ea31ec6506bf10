"""Who may come in at a site's gate: the site's own authority, and what it makes certificates for.

Its key lies in a 0600 file of the service and never leaves it. A relay gets a certificate over the connection on which
it was started, an entry's courier its own with the batch script. Each side believes this authority alone, so what leaks
at one site opens nothing at another.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from gridhypervisor.model.wire import RELAY_NAME


class Authority:
    """Of one site: see `execution.ports.Tickets`. `file` holds it; it is made when it is first needed."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._known = ""

    @property
    def certificate(self) -> str:
        from gridhypervisor.sites.certificates import certificate_of  # few services ever need any: it loads for long

        return certificate_of(self._authority())

    def relay(self) -> tuple[str, str]:
        from gridhypervisor.sites.certificates import issue

        return issue(self._authority(), RELAY_NAME, server=True)

    def entry(self, name: str) -> str:
        from gridhypervisor.sites.certificates import issue

        certificate, key = issue(self._authority(), name, server=False)
        return certificate + key + self.certificate

    def _authority(self) -> str:
        if not self._known:
            if not self._file.exists():
                self._make()
            self._known = self._file.read_text()
        return self._known

    def _make(self) -> None:
        from gridhypervisor.sites.certificates import make_authority

        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._file.with_name(f".{self._file.name}.{secrets.token_hex(4)}")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(make_authority())
            file.flush()
            os.fsync(file.fileno())
        new.rename(self._file)
        folder = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:  # jobs will be at sites that believe this one alone
            os.fsync(folder)
        finally:
            os.close(folder)
