"""Both ends of TLS between a relay's gate and couriers: each believes one authority, and shows its certificate."""

from __future__ import annotations

import os
import re
import ssl

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
    parts = [found[0] for found in _PEM.finditer(ticket)]
    if len(parts) != 3:
        raise ValueError(f"a ticket of {len(parts)} parts instead of 3")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load(context, parts[0] + parts[1], parts[2])
    return context


def _load(context: ssl.SSLContext, pair: str, authority: str) -> None:
    """OpenSSL reads a key from a file alone: from one that is in memory, and has no name."""
    context.load_verify_locations(cadata=authority)
    descriptor = os.memfd_create("pair", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, pair.encode())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
