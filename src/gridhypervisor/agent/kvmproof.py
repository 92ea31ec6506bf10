"""Whether KVM runs guests on this node: proven by running one, once per boot of the node.

`/dev/kvm` may open, and even create a VM with a processor, on machines where no guest ever executes an instruction.
So a guest of nine bytes is started as QEMU's firmware: it writes one byte to the debug-exit port, by which QEMU ends
with a status that nothing else gives. What was found is remembered on the node, under its boot id, together with QEMU's
version: both cost more time than a whole pilot otherwise spends.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

LIMIT = 3.0
"""Seconds within which the guest must have spoken; a working KVM takes a tenth."""

_WORD = 0x2A
_STATUS = (_WORD << 1) | 1  # what isa-debug-exit makes of the word
# At the reset vector, 16 bytes below the end: mov $WORD,%al; out %al,$0xf4; hlt; jmp to the hlt.
_FIRMWARE = b"\xf4" * (0x10000 - 16) + bytes([0xB0, _WORD, 0xE6, 0xF4, 0xF4, 0xEB, 0xFD]).ljust(16, b"\xf4")


@dataclass(frozen=True)
class Proof:
    """What was found on this node. `version` is empty where QEMU itself does not start."""

    version: str
    kvm: bool
    why: str
    key: str = ""  # the node's boot and the QEMU that it was found for


def remembered(qemu: Sequence[str], environment: Mapping[str, str], folder: Path) -> Proof:
    """The proof for this QEMU since this boot, made now if there is none. Two pilots may make it at once."""
    key = f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {' '.join(qemu)}"
    path = folder / "kvm-proof.json"
    try:
        proof = Proof(**json.loads(path.read_bytes()))
        if proof.key == key:
            return proof
    except (OSError, ValueError, TypeError):
        pass
    proof = prove(qemu, environment, key)
    if proof.version:
        descriptor, temporary = tempfile.mkstemp(dir=folder)
        with open(descriptor, "w") as file:
            json.dump(asdict(proof), file)
        os.rename(temporary, path)
    return proof


def prove(qemu: Sequence[str], environment: Mapping[str, str], key: str = "") -> Proof:
    """Ask QEMU for its version, then run the guest under KVM. Never raises: what fails is said in `why`."""
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
    return _run(qemu, environment, version, key)


def _run(qemu: Sequence[str], environment: Mapping[str, str], version: str, key: str) -> Proof:
    with tempfile.NamedTemporaryFile(prefix="ghv-proof-") as firmware:
        firmware.write(_FIRMWARE)
        firmware.flush()
        words = ["-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35", "-accel", "kvm", "-m", "4M"]
        words += ["-bios", firmware.name, "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        # subprocess kills the guest at the limit, and waits for it: a guest that spins leaves nothing behind.
        try:
            ended = subprocess.run(
                [*qemu, *words], env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT
            )
        except subprocess.TimeoutExpired:
            return Proof(version, False, f"kvm: the micro-guest printed nothing in {LIMIT:.0f} s", key)
        except OSError as error:
            return Proof(version, False, f"kvm: {error}", key)
    if ended.returncode == _STATUS:
        return Proof(version, True, "kvm: the micro-guest ran", key)
    last = ended.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"status {ended.returncode}"]
    return Proof(version, False, f"kvm: the micro-guest did not run: {last[0][:200]}", key)
