"""Tokens, and what requests were answered, within one transaction: opens none and catches nothing."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, and_, delete, insert, select, update

from gridhypervisor.model.access import Answer
from gridhypervisor.model.token import Token
from gridhypervisor.store import schema, statements
from gridhypervisor.store.rows import TOKEN

_answer = schema.answer.c
_COLUMNS = [_answer[name] for name in Answer.__struct_fields__]


def tokens(connection: Connection) -> list[Token]:
    """Oldest first."""
    return statements.read(connection, TOKEN, select(*TOKEN.columns).order_by(schema.token.c.created, TOKEN.key))


def put_token(connection: Connection, token: Token) -> bool:
    """False: its version no longer fits (that of a new one is 1)."""
    if token.version == 1:
        connection.execute(insert(schema.token), TOKEN.encode(token))
        return True
    fits = and_(TOKEN.key == token.id, schema.token.c.version == token.version - 1)
    return bool(connection.execute(update(schema.token).where(fits), TOKEN.encode(token)).rowcount)


def answer(connection: Connection, owner: str, project: str, key: str) -> Answer | None:
    same = and_(_answer.owner == owner, _answer.project == project, _answer.key == key)
    row = connection.execute(select(*_COLUMNS).where(same)).one_or_none()
    return Answer(*row) if row is not None else None


def put_answers(connection: Connection, answers: Sequence[Answer], forget: float) -> None:
    """Keep these, in the place of older ones to the same keys; those from before the time `forget` go."""
    connection.execute(delete(schema.answer).where(_answer.at < forget))
    for each in answers:
        same = and_(_answer.owner == each.owner, _answer.project == each.project, _answer.key == each.key)
        connection.execute(delete(schema.answer).where(same))
        connection.execute(insert(schema.answer).values({n: getattr(each, n) for n in Answer.__struct_fields__}))
