"""A program that is nothing but a few instructions: an ELF file for Linux on x86-64 with one segment. Pure."""

from __future__ import annotations

import struct

_BASE = 0x400000
_HEADERS = 64 + 56  # of the file, and of its one segment


def program(code: bytes) -> bytes:
    """The file that starts at the first byte of `code`, which stands at any address and changes none of itself."""
    size = _HEADERS + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000) + code
