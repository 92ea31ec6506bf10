"""The processors that a job may ask for its guest to see: by the levels of the x86-64 psABI, or as QEMU calls them.

A guest that is to be taken up elsewhere must find there every feature that its programs have seen. A *baseline* names
so many features, and no more: whatever has them can take it up.
"""

from __future__ import annotations

from collections.abc import Collection

HOST, COMMON = "host", "common"
"""Not names of processors: the node's own, and the highest baseline of all sites that may take the job."""

_LEVELS: tuple[tuple[str, ...], ...] = (
    ("lm", "cmov", "cx8", "fpu", "fxsr", "mmx", "syscall", "sse", "sse2"),
    ("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"),
    ("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"),
    ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
)
"""What each level adds, in the words of /proc/cpuinfo."""

BASELINES = tuple(f"x86-64-v{number}" for number in range(1, len(_LEVELS) + 1))

EMULATED = BASELINES[2]
"""The highest that QEMU's emulator has (7.2)."""

UNKNOWN = BASELINES[1]
"""What a site is taken to have that nobody has looked at: every server since 2009 or so."""


def baseline_of(flags: Collection[str]) -> str:
    """The highest baseline of which a processor has all features, as /proc/cpuinfo calls them; empty: it has none."""
    found = ""
    for name, features in zip(BASELINES, _LEVELS, strict=True):
        if not all(feature in flags for feature in features):
            break
        found = name
    return found


def reaches(has: str, wanted: str) -> bool:
    """Whether one baseline has all that another one asks for. What is no baseline asks for nothing here."""
    return wanted not in BASELINES or (has in BASELINES and BASELINES.index(has) >= BASELINES.index(wanted))


def common(known: Collection[str]) -> str:
    """The highest baseline that all of these have."""
    return min(known, key=BASELINES.index, default=UNKNOWN)


def qemu_words(cpu: str, *, emulated: bool) -> str:
    """What QEMU is told of a processor that was asked for by name.

    A baseline is refused by QEMU itself where the node lacks a feature of it. Of a model of QEMU's own, what the
    emulator does not have is left out, as QEMU does; it is the same wherever that QEMU runs.
    """
    if cpu not in BASELINES:
        return cpu if emulated else f"{cpu},enforce"
    features = [feature for level in _LEVELS[1 : BASELINES.index(cpu) + 1] for feature in level]
    named = (feature.replace("sse4_", "sse4.").replace("_", "-") for feature in features)
    return ",".join(["qemu64", "-svm", *(f"+{name}" for name in named), "enforce"])
