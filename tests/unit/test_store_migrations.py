"""The tables, the revisions that make them and the records that they hold say the same."""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from gridhypervisor import store as store_package
from gridhypervisor.model.commit import StoreError
from gridhypervisor.store import open_store, rows, schema


@pytest.fixture
def made(tmp_path: Path) -> Path:
    open_store(tmp_path / "store.db").close()
    return tmp_path / "store.db"


def test_the_revisions_make_the_tables_that_the_code_uses(made: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{made}")
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata) == []
        drawn = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql LIKE '%WHERE%' ORDER BY name"
        partial = {str(name): str(text) for name, text in connection.exec_driver_sql(drawn)}
    engine.dispose()
    ends = {name: text.partition(" WHERE ")[2] for name, text in partial.items()}
    alive = dict.fromkeys(
        (f"ix_{name}_alive" for name in ("allocation", "checkpoint", "job", "job_group")), "alive = 1"
    )
    members = dict.fromkeys(("ix_job_group", "ix_job_member"), "\"group\" != ''")
    assert ends == alive | members | {"ix_job_ended": "ended IS NOT NULL", "ix_job_alone": "\"group\" = ''"}


def test_the_newest_revision_is_the_one_that_the_code_expects() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(str(store_package.__file__)).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.REVISION


@pytest.mark.parametrize(
    "kept",
    [*rows.VERSIONED, rows.GROUP, rows.EVENT, rows.SITE, rows.LEDGER, rows.TOKEN],
    ids=lambda kept: str(kept.table.name),
)
def test_every_field_of_a_record_has_its_column(kept: rows.Rows[object]) -> None:
    assert dataclasses.is_dataclass(kept.kind)
    fields = {field.name for field in dataclasses.fields(kept.kind)}
    columns = set(kept.table.c.keys())
    assert fields <= columns
    assert {"owner", "project"} <= columns
    assert kept is rows.EVENT or "version" in columns


def test_a_store_of_a_newer_version_is_refused_and_left_alone(made: Path) -> None:
    with sqlite3.connect(made) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    before = made.read_bytes()
    with pytest.raises(StoreError, match=r"newer version of GridHypervisor wrote it \(schema 9999"):
        open_store(made)
    assert made.read_bytes() == before


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    with pytest.raises(StoreError, match=r"another program \(it holds the table bookmarks"):
        open_store(tmp_path / "store.db")
