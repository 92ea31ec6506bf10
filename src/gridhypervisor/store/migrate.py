"""Brings a store's tables up to date, by Alembic's revisions in `migrations`. Refuses what it does not know."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection

from gridhypervisor.model.commit import StoreError
from gridhypervisor.store import schema


def upgrade(connection: Connection, path: Path) -> None:
    """Within the connection's transaction, so that an upgrade which fails leaves the store as it was.

    Raises:
        StoreError: the file is no store, or one of a newer version of this program.
    """
    tables = set(connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars())
    if "alembic_version" in tables:
        revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        if revision == schema.REVISION:
            return
    elif tables:
        raise StoreError(
            "open the store",
            str(path),
            f"it is a SQLite file of another program (it holds the table {min(tables)})",
            "name another file",
        )
    else:
        revision = None

    # Costs a tenth of a second to import, which a store that is up to date need not pay.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise StoreError(
            "open the store",
            str(path),
            f"a newer version of GridHypervisor wrote it (schema {revision}; this one knows up to {schema.REVISION})",
            "use that version or a later one; the file was not touched",
        )
    command.upgrade(config, "head")
