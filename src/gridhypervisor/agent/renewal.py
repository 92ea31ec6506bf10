"""What makes a guest that was started from a snapshot one of its own: the time, and randomness that no other has.

All that start from one snapshot have the same clock and the same state of the kernel's random numbers. Setting the one
is a system call; for the other it takes `ioctl`, of which no shell knows: writing to `/dev/urandom` leaves the next
numbers as they were until the kernel finds it time to look. So the guest's archive has a program of 117 bytes of code
that does both, or says by its status (an errno) what failed. Pure: bytes in and out.
"""

from __future__ import annotations

import struct

from gridhypervisor.agent import elf

RANDOMNESS = 64
"""Bytes of randomness that a guest is given."""

_CODE = (
    bytes.fromhex(
        "488dac2400ffffff"  # lea -0x100(%rsp),%rbp
        "31ff4889eeba5800000031c00f05"  # read(0, rbp, 88)
        "83e8587544"  # sub $88,%eax; jnz fail
        "31ffb8e30000000f0585c07537"  # clock_settime(CLOCK_REALTIME, rbp): rsi is still rbp; jnz fail
        "488d3d39000000be010000006a02580f0585c07822"  # open("/dev/urandom", O_WRONLY); js fail
        "89c389c7488d5510be035208406a10580f0585c0750c"  # ioctl(, RNDADDENTROPY, rbp + 16); jnz fail
        "89dfbe075200006a10580f05"  # ioctl(, RNDRESEEDCRNG)
        "89c7f7df6a3c580f05"  # fail: exit(-eax)
    )
    + b"/dev/urandom\0"
)


def program() -> bytes:
    """The guest's `renew`: an ELF file for Linux on x86-64, which reads what `line` says from its standard input."""
    return elf.program(_CODE)


def line(moment: int, randomness: bytes) -> str:
    """The pilot's word to a guest that waits to be renewed: the time (nanoseconds since 1970) and RANDOMNESS bytes, as
    the shell's printf makes bytes of it: a timespec, and the kernel's rand_pool_info, every bit credited."""
    seconds, nanoseconds = divmod(moment, 10**9)
    data = struct.pack("<qqii", seconds, nanoseconds, 8 * RANDOMNESS, RANDOMNESS) + randomness
    return "RENEW " + "".join(f"\\{byte:03o}" for byte in data)
