"""Pure decisions: from what is known to what to do next. No clock, no I/O, no randomness, no state of its own.

`reconcile` moves one job along. `placement` chooses sites for those that want one: `published` says what sites tell of
themselves, `matching` what a job's expressions make of it, `suiting` what each site is to the job, and `policies`, with
the `past`, who goes first, and where; `moves` says who should leave for another. `forecast` looks ahead; `ledger` says
where the time went; `explain` says why.
"""
