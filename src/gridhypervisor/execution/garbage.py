"""How seldom Python looks for cycles of garbage in a process that holds many records.

Records hold no cycles: reference counts free them. Yet Python, left to itself, walks through all of them once a quarter
of their number has come anew, and with 10,000 jobs their pilots' beats alone bring that much every ten seconds: each
time the loop stood still for as long as thousands of beats take, for nothing.
"""

from __future__ import annotations

import gc

THRESHOLDS = 50_000, 10, 10
"""Of `gc.set_threshold`: objects by which the process must have grown, not objects that came and went, before the new
ones are looked at; and how often the younger ones are before older ones are."""


def spare_records() -> None:
    """Call once, when the process begins."""
    gc.set_threshold(*THRESHOLDS)
