"""Jobs, their records and their events, kept so that what was committed survives a crash and a power cut.

It decides nothing about jobs: it gives out ids, checks versions, and writes changes whole or not at all. One process
at a time may have a store open; any of its threads may read while one writes.

`memory` is a store that keeps nothing, for simulations.

`schema` is the tables and `rows` how a record becomes a row; `sqlite` is the store itself, `accounts` what it adds up,
`place` whether a folder can hold one, `migrations` how an older store becomes today's, `clock` what its times are
measured on.
"""

from gridhypervisor.store.clock import open_clock
from gridhypervisor.store.memory import MemoryStore
from gridhypervisor.store.sqlite import SqliteStore, open_store

__all__ = ["MemoryStore", "SqliteStore", "open_clock", "open_store"]
