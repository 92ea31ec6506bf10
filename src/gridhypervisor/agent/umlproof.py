"""The guest by which User-Mode Linux is proven on a node: an init of 31 bytes of code that halts it.

That its kernel starts proves little: whether it can run a program is up to the node's kernel and processor, of which
it wants to set every register. So the proof is a guest that boots, and whose one program says so, by asking for its
end: nothing else ends it well. Of the boot it leaves out what measures the processor or tries the terminals for long,
and no proof needs: a tenth of a second of a processor is left, of a third.
"""

from __future__ import annotations

from pathlib import Path

from gridhypervisor.agent import cpio, elf
from gridhypervisor.agent.hypervisor import Machine

_CODE = bytes.fromhex(
    "bfaddee1fe" + "be69191228" + "badcfe2143" + "b8a9000000" + "0f05"  # reboot(…, …, LINUX_REBOOT_CMD_POWER_OFF)
    "89c7f7df6a3c580f05"  # exit(-eax): it may not, and the kernel panics
)
_LEFT_OUT = ("raid6_select_algo", "pty_init", "init_zswap")
_MEMORY = 64 << 20  # bytes; with half of it this kernel panics


def micro_guest(folder: Path) -> Machine:
    """The guest, its initrd made in `folder`.

    Raises:
        OSError: it cannot be written.
    """
    initrd = folder / "proof-initrd"
    initrd.write_bytes(cpio.archive({"init": elf.program(_CODE)}, mode=0o755))
    return Machine(
        name="proof", cpus=1, memory=_MEMORY, kernel=Path(), initrd=initrd,
        cmdline=f"initcall_blacklist={','.join(_LEFT_OUT)}", disks=(),
    )  # fmt: skip
