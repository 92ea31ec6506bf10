"""What stands before ptrace() in User-Mode Linux: what is handed over in part is completed, all else as it was."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.making import system_world

TRACER = """
import ctypes, os, signal
TRACEME, PEEKTEXT, PEEKUSER, KILL, GETREGSET, SETREGSET, XSTATE, KNOWN = 0, 1, 3, 8, 0x4204, 0x4205, 0x202, 2696
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]

class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

child = os.fork()
if child == 0:
    libc.ptrace(TRACEME, 0, None, None)
    os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(child, 0)

def registers(request, area):
    piece = Piece(ctypes.addressof(area), len(area))
    return libc.ptrace(request, child, XSTATE, ctypes.addressof(piece)), piece.length

area = (ctypes.c_char * KNOWN)()
_, known = registers(GETREGSET, area)
area = (ctypes.c_char * known).from_buffer_copy(area.raw[:known])
area[512] = area[512][0] | 3  # x87 and SSE are in use
area[160:176] = b"sixteen letters!"  # xmm0
print(registers(SETREGSET, area)[0])
again = (ctypes.c_char * known)()
registers(GETREGSET, again)
print(again[160:176])
print(libc.ptrace(PEEKUSER, child, 15 * 8, None))  # the number of the system call that it is in: kill
ctypes.set_errno(99)
print(libc.ptrace(PEEKTEXT, child, None, None), ctypes.get_errno())
print(libc.ptrace(KILL, child, None, None))
print(os.waitpid(child, 0)[1])
"""


def test_a_tracer_that_knows_fewer_registers_than_the_processor_has_sets_them() -> None:
    environment = system_world()
    if "GHV_XSTATE" not in environment:
        pytest.fail("no tcc: scripts/setup.sh test installs it")
    environment["LD_PRELOAD"] = environment["GHV_XSTATE"]
    said = subprocess.run([sys.executable, "-c", TRACER], env=environment, capture_output=True, text=True, check=True)
    done, xmm0, call, unmapped, killed, status = said.stdout.splitlines()
    assert (done, xmm0) == ("0", "b'sixteen letters!'")
    assert (call, unmapped) == ("62", "-1 5")
    assert (killed, status) == ("0", "9")
