"""Whether KVM runs guests on this node: proven by running one, once per boot of the node.

`/dev/kvm` may open, create a VM, and even carry out the first real-mode instructions (by emulating them) on machines
where no operating system ever gets further. So the guest of the proof, 134 bytes started as QEMU's firmware with
the very processor that a job's guest would get, switches on paging and long mode, counts to ten million there (4 ms
on a processor, minutes by instruction emulation), and writes a word to the debug-exit port, by which QEMU ends with
a status that nothing else gives.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from gridhypervisor.agent.hypervisor import Command
from gridhypervisor.agent.trial import Trial

LIMIT = 3.0
"""Seconds within which the guest must have spoken; a working KVM takes a tenth."""

_WORD = 0x2A
_STATUS = (_WORD << 1) | 1  # what isa-debug-exit makes of the word
# At the reset vector, 16 bytes below the end of 64 KiB: ljmp $0xf000,$0, to this. The tables are at 0x1000 to 0x3fff.
_CODE = bytes.fromhex(
    "fa31c08ed8"  # cli; xor %ax,%ax; mov %ax,%ds
    "66c706001003200000"  # movl $0x2003,0x1000: the first 512 GiB are mapped by 0x2000,
    "66c706002003300000"  # movl $0x3003,0x2000: of it the first 1 GiB by 0x3000,
    "66c706003083000000"  # movl $0x83,0x3000: of it the first 2 MiB to themselves
    "2e660f01168000"  # lgdtl %cs:0x80
    "66b8200000000f22e0"  # mov $0x20,%eax; mov %eax,%cr4: PAE
    "66b8001000000f22d8"  # mov $0x1000,%eax; mov %eax,%cr3
    "66b9800000c00f3266" + "0d000100000f30"  # EFER |= LME
    "66b8010000800f22c0"  # mov $0x80000001,%eax; mov %eax,%cr0: paging, protection
    "66ea5a000f000800"  # ljmpl $8,$0xf005a, in 64 bits from here
    "b980969800ffc975fc"  # mov $10000000,%ecx; 1: dec %ecx; jnz 1b
    "b02ae6f4f4ebfd"  # mov $0x2a,%al; out %al,$0xf4; 2: hlt; jmp 2b
    "660f1f440000"  # (padding)
    "0000000000000000ffff0000009aaf00"  # the segment table: nothing, 64-bit code
    "0f0070000f00"  # its length less one, its address
)
_FIRMWARE = (_CODE.ljust(0xFFF0, b"\xf4") + bytes.fromhex("ea000000f0")).ljust(0x10000, b"\xf4")


def prove(qemu: Sequence[str], environment: Mapping[str, str], trial: Trial) -> str:
    """Why KVM runs no guest here; empty where it does."""
    if not os.path.exists("/dev/kvm"):
        return "this node has no /dev/kvm"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm may not be opened by this account"
    return run_micro_guest(qemu, environment, ["-accel", "kvm", "-cpu", "host"], trial)


def run_micro_guest(
    qemu: Sequence[str], environment: Mapping[str, str], accelerator: Sequence[str], trial: Trial
) -> str:
    """Run the guest of the proof; say what went wrong, in a few words, or nothing."""
    firmware = trial.folder / "firmware"
    firmware.write_bytes(_FIRMWARE)
    words = ["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-m", "4M", *accelerator]
    words += ["-bios", str(firmware), "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
    ended = trial.run(Command((*qemu, *words), dict(environment)), LIMIT)
    if ended.status is None:
        return f"the micro-guest printed nothing in {LIMIT:.0f} s"
    if os.waitstatus_to_exitcode(ended.status) == _STATUS:
        return ""
    return f"the micro-guest did not run: {ended.why}"
