"""Whether KVM runs guests on this node: proven by running one, once per boot of the node.

`/dev/kvm` may open, create a VM, and even carry out the first real-mode instructions (by emulating them) on machines
where no operating system ever gets further. So the guest of the proof, 134 bytes started as QEMU's firmware with
the very processor that a job's guest would get, switches on paging and long mode, counts to ten million there (4 ms
on a processor, minutes by instruction emulation), and writes a word to the debug-exit port, by which QEMU ends with
a status that nothing else gives. What was found is remembered on the node, under its boot id, together with
QEMU's version: both cost more time than a whole pilot otherwise spends.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gridhypervisor.agent.ending import now

LIMIT = 3.0
"""Seconds within which the guest must have spoken; a working KVM takes a tenth."""

DOUBT = 600.0
"""Seconds for which a failure is remembered."""

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


@dataclass(frozen=True)
class Proof:
    """What was found on this node. `version` is empty where QEMU itself does not start."""

    version: str
    kvm: bool
    why: str
    key: str = ""  # the node's boot and the QEMU that it was found for
    at: float = 0.0  # when, on CLOCK_BOOTTIME

    def holds(self, key: str, moment: float) -> bool:
        """Whether it may be believed: a success since the boot, a failure for minutes only, for a busy node, or a
        `/dev/kvm` whose rights were yet to be set, must not go without KVM for good."""
        return self.key == key and (self.kvm or 0 <= moment - self.at < DOUBT)


def remembered(qemu: Sequence[str], environment: Mapping[str, str], folder: Path) -> Proof:
    """The proof for this QEMU on this node, made now if none is to be believed. Two pilots may make it at once."""
    key = f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {' '.join(qemu)}"
    path = folder / "kvm-proof.json"
    try:
        proof = Proof(**json.loads(path.read_bytes()))
        if proof.holds(key, now()):
            return proof
    except (OSError, ValueError, TypeError):
        pass
    proof = replace(prove(qemu, environment, key), at=now())
    if proof.version:
        import tempfile

        descriptor, temporary = tempfile.mkstemp(dir=folder)
        with open(descriptor, "w") as file:
            json.dump(asdict(proof), file)
        os.rename(temporary, path)
    return proof


def prove(qemu: Sequence[str], environment: Mapping[str, str], key: str = "") -> Proof:
    """Ask QEMU for its version, then run the guest under KVM. Never raises: what fails is said in `why`."""
    import subprocess  # not before it is needed: a pilot's start waits for every import, and most find the proof made

    try:
        said = subprocess.run(
            [*qemu, "--version"], env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Proof("", False, str(error), key)
    words = said.stdout.decode(errors="replace").split()
    if said.returncode != 0 or "version" not in words[:-1]:
        return Proof("", False, said.stderr.decode(errors="replace").strip()[-300:] or "it printed no version", key)
    version = words[words.index("version") + 1]
    if not os.path.exists("/dev/kvm"):
        return Proof(version, False, "kvm: this node has no /dev/kvm", key)
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return Proof(version, False, "kvm: /dev/kvm may not be opened by this account", key)
    failure = run_micro_guest(qemu, environment, ["-accel", "kvm", "-cpu", "host"])
    return Proof(version, not failure, f"kvm: {failure or 'the micro-guest ran'}", key)


def run_micro_guest(qemu: Sequence[str], environment: Mapping[str, str], accelerator: Sequence[str]) -> str:
    """Run the guest of the proof; say what went wrong, in a few words, or nothing."""
    import subprocess
    import tempfile

    with tempfile.NamedTemporaryFile(prefix="ghv-proof-") as firmware:
        firmware.write(_FIRMWARE)
        firmware.flush()
        words = ["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-m", "4M", *accelerator]
        words += ["-bios", firmware.name, "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        # subprocess kills the guest at the limit, and waits for it: a guest that spins leaves nothing behind.
        try:
            ended = subprocess.run(
                [*qemu, *words], env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT
            )
        except subprocess.TimeoutExpired:
            return f"the micro-guest printed nothing in {LIMIT:.0f} s"
        except OSError as error:
            return str(error)
    if ended.returncode == _STATUS:
        return ""
    said = ended.stderr.decode(errors="replace").strip().splitlines()[:1] or [f"QEMU's status was {ended.returncode}"]
    return f"the micro-guest did not run: {said[0][:200]}"
