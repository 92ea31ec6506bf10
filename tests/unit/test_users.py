"""What is kept of users: tokens, answers to requests that are repeated, uploads; and lists of what is one owner's."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gridhypervisor.execution.answers import KEPT, Answers
from gridhypervisor.execution.ports import Store
from gridhypervisor.execution.storing import StoreThread
from gridhypervisor.execution.tokens import Tokens
from gridhypervisor.model.access import Answer, Caller, Scope, TokenRequest
from gridhypervisor.model.errors import InputError
from gridhypervisor.model.foreign import foreign_inputs, foreign_results
from gridhypervisor.model.records import Event, Group
from gridhypervisor.model.spec import InputSpec, JobSpec
from gridhypervisor.model.token import Token, fits, token_id
from gridhypervisor.model.views import ServiceError
from gridhypervisor.staging.uploads import FORGOTTEN, Misplaced, Uploads
from gridhypervisor.store import MemoryStore, open_store
from tests.unit.store_records import new_job

TOKEN = Token("0" * 12, "ada", "xmm", "laptop", Scope.WRITE, "d" * 64, 1.0, 2.0, version=1)
ANSWER = Answer("ada", "xmm", "k", "f" * 64, 100.0, 202, "application/json", "/v1/jobs/j1", "{}")


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = MemoryStore() if request.param == "memory" else open_store(tmp_path / "store")
    yield made
    made.close()


def test_tokens_are_kept_by_version(store: Store) -> None:
    assert store.put_token(TOKEN)
    revoked = replace(TOKEN, revoked=1.5, version=2)
    assert store.put_token(revoked) and not store.put_token(replace(revoked, revoked=None))
    later = replace(TOKEN, id="1" * 12, created=3.0, outbound=True)
    assert store.put_token(later)
    assert store.tokens() == [revoked, later]


def test_answers_are_kept_for_a_while_each_for_its_owner(store: Store) -> None:
    other = Answer("bob", "xmm", "k", "e" * 64, 100.0, 201, "", "", "")
    store.put_answers([ANSWER, other], forget=0.0)
    assert store.answer("ada", "xmm", "k") == ANSWER
    assert store.answer("bob", "xmm", "k") == other
    assert store.answer("ada", "other", "k") is None
    newer = Answer("ada", "xmm", "k", "a" * 64, 200.0, 202, "", "", "")
    store.put_answers([newer], forget=150.0)
    assert store.answer("ada", "xmm", "k") == newer and store.answer("bob", "xmm", "k") is None


def test_lists_of_one_owner_hold_nothing_else(store: Store) -> None:
    jobs = {owner: [new_job(store, owner=owner).job.id for _ in range(3)] for owner in ("ann", "bob")}
    for owner in jobs:
        group = Group("", owner, "xmm", "many", "/", "/", 1.0, version=1)
        store.create_group(group, Event(1.0, owner, "xmm", "", "group", "", "", "pending"))
    for owner, ids in jobs.items():
        assert [each.job.id for each in store.jobs(owner=owner)] == ids[::-1]
        assert [each.job.id for each in store.jobs(owner=owner, limit=1, before=ids[2])] == [ids[1]]
        assert {group.owner for group in store.groups(owner=owner)} == {owner}
        assert {event.owner for event in store.events(owner=owner)} == {owner}
        assert len(store.events(owner=owner, limit=2)) == 2
        versions = [(each.job.id, each.job.version) for each in store.jobs(owner=owner)]
        assert store.job_versions(owner=owner) == versions
        assert {each.job.id for each in store.these_jobs([*ids, "j99"])} == set(ids)
    assert len(store.jobs()) == 6 and store.jobs(owner="nobody") == []
    with pytest.raises(ValueError, match="not a job's id"):
        store.groups(before="nonsense")


def test_a_token_is_good_until_it_expires_or_is_revoked_across_restarts() -> None:
    async def story() -> None:
        store, thread, now = MemoryStore(), StoreThread(), [1000.0]
        me = Caller("root", "default", local=True)
        tokens = Tokens(store, thread, lambda: now[0], os.urandom)
        made = await tokens.create(TokenRequest(Scope.READ, "ada", "xmm", expires="1m"), me)
        own = await tokens.create(TokenRequest(), me)
        assert (own.owner, own.project, own.scope, own.outbound) == ("root", "default", Scope.WRITE, False)
        assert made.secret.startswith(f"ghv_{made.id}_") and made.secret not in repr(store.tokens())
        again = Tokens(store, thread, lambda: now[0], os.urandom)
        await again.load()
        caller = again.caller(made.secret)
        assert caller is not None and (caller.owner, caller.scope, caller.local) == ("ada", Scope.READ, False)
        for wrong in ("", made.secret[:-1], f"{made.secret}0", made.secret.upper(), own.secret[:16] + made.secret[16:]):
            assert again.caller(wrong) is None
        now[0] += 60
        assert again.caller(made.secret) is None and again.caller(own.secret) is not None
        await again.revoke(own.id)
        assert again.caller(own.secret) is None
        assert (await again.revoke(own.id)).revoked == now[0], "once is enough"
        with pytest.raises(ServiceError, match="no such token"):
            await again.revoke("f" * 12)
        thread.close()

    asyncio.run(story())


def test_a_tokens_text_is_compared_whole() -> None:
    text = f"ghv_{'a' * 12}_{'b' * 64}"
    token = replace(TOKEN, digest=hashlib.sha256(text.encode()).hexdigest())
    assert token_id(text) == "a" * 12 and fits(token, text)
    assert not fits(token, f"ghv_{'a' * 12}_{'b' * 63}c") and token_id(text[:-1]) == token_id(f"{text}\n") == ""


def test_answers_that_come_together_are_written_together_and_expire() -> None:
    async def story() -> None:
        now, written = [1000.0], []

        class Counting(MemoryStore):
            def put_answers(self, answers: object, *, forget: float) -> None:
                written.append(answers)
                super().put_answers(answers, forget=forget)  # type: ignore[arg-type]

        thread = StoreThread()
        answers = Answers(Counting(), thread, lambda: now[0])
        many = [Answer("ada", "xmm", f"k{n}", "f", 1000.0, 202, "", "", "") for n in range(50)]
        await asyncio.gather(*map(answers.keep, many))
        assert 1 <= len(written) < 5
        assert await answers.find("ada", "xmm", "k7") == many[7]
        now[0] += KEPT + 1
        assert await answers.find("ada", "xmm", "k7") is None
        thread.close()

    asyncio.run(story())


def test_uploads_go_on_are_verified_and_are_their_owners_alone(tmp_path: Path) -> None:
    uploads, data = Uploads(tmp_path, limit=100), b"0123456789" * 5
    sha256 = hashlib.sha256(data).hexdigest()
    assert uploads.add("ada", sha256, 0, 50, data[:20]).size == 20
    again = Uploads(tmp_path, limit=100)  # after a restart
    assert again.look("ada", sha256).size == 20 and not again.use("ada", sha256)
    for offset, size in ((21, 50), (20, 30)):
        with pytest.raises(Misplaced) as error:
            again.add("ada", sha256, offset, size, data[20:])
        assert error.value.at == 20
    assert again.add("ada", sha256, 10, 50, data[10:]).complete
    assert (again.folder("ada") / sha256).read_bytes() == data
    assert again.add("ada", sha256, 0, 50, b"").complete, "what is there is not sent again"
    assert again.look("bob", sha256).size == 0 and not again.use("bob", sha256)
    with pytest.raises(InputError, match="not " + "0" * 64):
        again.add("ada", "0" * 64, 0, 3, b"abc")
    assert again.look("ada", "0" * 64).size == 0
    with pytest.raises(InputError, match="may take"):
        again.add("ada", "1" * 64, 0, 51, b"a")
    for wrong in ("", "../x", "A" * 64, sha256[:63]):
        with pytest.raises(InputError, match="no SHA-256"):
            again.look("ada", wrong)
    empty = hashlib.sha256(b"").hexdigest()
    assert again.add("ada", empty, 0, 0, b"").complete


def test_uploads_that_nobody_used_for_long_make_room(tmp_path: Path) -> None:
    uploads, old, new = Uploads(tmp_path, limit=60), b"a" * 50, b"b" * 50
    digests = [hashlib.sha256(each).hexdigest() for each in (old, new)]
    uploads.add("ada", digests[0], 0, 50, old)
    place = uploads.folder("ada") / digests[0]
    stamp = place.stat().st_mtime - FORGOTTEN - 1
    os.utime(place, (stamp, stamp))
    assert uploads.add("ada", digests[1], 0, 50, new).complete
    assert uploads.look("ada", digests[0]).size == 0
    assert uploads.folder("ada").stat().st_mode & 0o077 == 0


def test_a_job_without_a_place_here_names_nothing_here() -> None:
    upload = "a" * 64
    fine = JobSpec("x", ("y",), inputs=(upload, InputSpec(path=upload, name="n"), "https://a/b"), stdout="out.txt",
                   outputs=("a",), destinations={"a": "below/a"})  # fmt: skip
    assert not [*foreign_inputs(fine), *foreign_results(fine)]
    for wrong in ("/etc/passwd", "x", "s3://b/k", "file:///x", "A" * 64, f"{upload}/x", "${TASK_ID}"):
        [(field, _)] = foreign_inputs(JobSpec("x", ("y",), inputs=("https://a/b", wrong)))
        assert field == "inputs[1]"
        assert [*foreign_inputs(JobSpec("x", ("y",), inputs=(InputSpec(path=wrong) if "//" not in wrong else
                                                              InputSpec(url=wrong),)))]  # fmt: skip
    places = JobSpec("x", ("y",), stdout="/x", stderr="../x", outputs=("a",), destinations={"a": "/x"})
    assert [field for field, _ in foreign_results(places)] == ["stdout", "stderr", "destinations.a"]
