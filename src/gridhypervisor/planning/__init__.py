"""Pure decisions: from what is known to what to do next. No clock, no I/O, no randomness, no state of its own.

`reconcile` moves one job along; `placement` chooses its site; `ledger` says where the time went; `explain` says why.
"""
