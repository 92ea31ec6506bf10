"""Both ends of TLS between a relay's gate and couriers, and between pilots: each believes one authority, and shows its
certificate."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from typing import Any

_PEM = re.compile(r"-----BEGIN ([A-Z ]+)-----.*?-----END \1-----\n?", re.DOTALL)


def gate_context(certificate: str, key: str, authority: str) -> ssl.SSLContext:
    """For the gate. The texts are PEM.

    Raises:
        ssl.SSLError, ValueError: one of them cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    _load(context, certificate + key, authority)
    return context


def courier_context(ticket: str) -> ssl.SSLContext:
    """For a courier, whose ticket is its certificate, its key, and the authority's certificate. To be used with the
    host name `RELAY_NAME`.

    Raises:
        ssl.SSLError, ValueError: it is no ticket.
    """
    certificate, key, authority = _parts(ticket)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.hostname_checks_common_name = False  # that of an entry's certificate is the entry's name, whatever it is
    _load(context, certificate + key, authority)
    return context


def pilot_contexts(ticket: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a pilot to which others come, and which goes to others, by its entry's ticket. An entry's name may be none
    of a host, so who the peer is must be asked of its certificate afterwards: `entry_of`.

    Raises:
        ssl.SSLError, ValueError: it is no ticket.
    """
    calling = courier_context(ticket)
    calling.check_hostname = False
    return gate_context(*_parts(ticket)), calling


def entry_of(certificate: Mapping[str, Any] | None) -> str:
    """Of which entry a peer is, by its certificate as `getpeercert` gives it.

    Raises:
        ValueError: it is not that of an entry.
    """
    subject = dict(pair for group in (certificate or {}).get("subject", ()) for pair in group)
    name = str(subject.get("commonName", ""))
    if not name or name[0] == "." or set(name) & set("/\0\n"):
        raise ValueError(f"a certificate for {name!r}, which is no entry")
    return name


def _parts(ticket: str) -> tuple[str, str, str]:
    """Certificate, key, the authority's certificate."""
    parts = [found[0] for found in _PEM.finditer(ticket)]
    if len(parts) != 3:
        raise ValueError(f"a ticket of {len(parts)} parts instead of 3")
    return parts[0], parts[1], parts[2]


def _load(context: ssl.SSLContext, pair: str, authority: str) -> None:
    """OpenSSL reads a key from a file alone: from one that is in memory, and has no name."""
    context.load_verify_locations(cadata=authority)
    descriptor = os.memfd_create("pair", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pair.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
