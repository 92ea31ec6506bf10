"""How a store of any earlier version becomes today's. A revision, once released, is never changed.

To change the tables: change `schema.py`, add `versions/NNNN_what.py` after the newest one with its `down_revision`, and
raise `schema.REVISION`; tests/unit/test_store_migrations.py says what was forgotten.
"""
