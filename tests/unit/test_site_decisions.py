"""What a change makes of a site, what it may not change, and when a site that is away is tried again."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridhypervisor.model.records import Site, SiteHealth, SiteKind
from gridhypervisor.model.views import SiteChange
from gridhypervisor.planning.sites import FIRST, MOST, PASSING, ROOTED, changed, gate_of, pause, uprooted

SITE = Site(
    "cluster", "me", "default", SiteKind.SLURM, host="login", port=2222, user="ada", key="/k", max_jobs=5,
    options={"partition": "short", "qos": "low"}, environment={"A": "1"}, draining=True, version=7,
)  # fmt: skip


def test_only_what_is_named_changes() -> None:
    after = changed(SITE, SiteChange(max_jobs=9, options={"partition": "long", "account": "astro"}))
    assert after.max_jobs == 9
    assert after.options == {"partition": "long", "qos": "low", "account": "astro"}
    assert changed(after, SiteChange(max_jobs=5, options={"partition": "short", "account": None})) == SITE


def test_null_restores_the_default_and_removes_an_option() -> None:
    after = changed(SITE, SiteChange(port=None, key=None, options={"qos": None}, environment={"A": None}))
    assert (after.port, after.key, after.options, after.environment) == (0, "", {"partition": "short"}, {})


@pytest.mark.parametrize(("field", "there"), [("options", "partition, qos"), ("environment", "A")])
def test_what_is_not_there_cannot_be_removed(field: str, there: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: there is no x to remove; there are {there}"):
        changed(SITE, SiteChange(**{field: {"x": None}}))  # type: ignore[arg-type]


def test_what_says_where_jobs_are_is_told_from_the_rest() -> None:
    moved = changed(SITE, SiteChange(kind=SiteKind.FORK, host="b", port=1, user="c", workdir="/d", key="/e", slots=2))
    assert uprooted(SITE, moved) == list(ROOTED)
    assert uprooted(SITE, changed(SITE, SiteChange(key="/e", ssh_config="/c", max_jobs=1, options={"a": "b"}))) == []


_texts = st.none() | st.text(max_size=5)
CHANGES = st.builds(
    SiteChange,
    host=st.just(msgspec.UNSET) | _texts,
    port=st.just(msgspec.UNSET) | st.none() | st.integers(0, 65535),
    key=st.just(msgspec.UNSET) | _texts,
    options=st.just(msgspec.UNSET) | st.dictionaries(st.sampled_from(("partition", "new")), st.text(max_size=5)),
)


@given(CHANGES)
def test_a_change_survives_the_wire_and_made_twice_is_the_same_as_once(change: SiteChange) -> None:
    assert msgspec.json.decode(msgspec.json.encode(change), type=SiteChange) == change
    once = changed(SITE, change)
    assert changed(once, change) == once
    assert (once.name, once.owner, once.draining, once.version) == ("cluster", "me", True, 7)


def test_a_site_that_is_away_is_tried_less_and_less_often() -> None:
    pauses, before = [], 0.0
    for _ in range(10):
        before = pause(SiteHealth.UNREACHABLE, before=before, lived=0.0, passing=False) or 0.0
        pauses.append(before)
    assert pauses[0] == FIRST and pauses[-1] == MOST and pauses == sorted(pauses)
    assert pause(SiteHealth.UNREACHABLE, before=MOST, lived=3600.0, passing=False) == FIRST


def test_a_site_that_takes_a_person_is_not_tried_unless_it_did_without_one_before() -> None:
    assert pause(SiteHealth.AUTH_NEEDED, before=FIRST, lived=0.0, passing=False) is None
    assert pause(SiteHealth.AUTH_NEEDED, before=FIRST, lived=0.0, passing=True) == PASSING > 10 * MOST
    assert pause(SiteHealth.UNREACHABLE, before=PASSING, lived=0.0, passing=False) == FIRST


@pytest.mark.parametrize(
    ("options", "gate"),
    [
        ({}, None), ({"control": "spool"}, None), ({"control": "tcp"}, "login1:7750-7765"),
        ({"control": "tcp", "listen": "10.0.0.1"}, "10.0.0.1:7750-7765"),
        ({"control": "tcp", "listen": "login:7000"}, "login:7000-7000"),
        ({"control": "tcp", "listen": "login:7000-7063"}, "login:7000-7063"),
        ({"control": "tcp", "listen": ":7000"}, "login1:7000-7000"),
        ({"listen": "10.0.0.1:7000"}, "10.0.0.1:7000-7000"),
    ],
)  # fmt: skip
def test_a_relay_listens_where_the_configuration_says_and_only_then(options: dict[str, str], gate: str | None) -> None:
    found = gate_of(Site("s", "o", "p", SiteKind.SLURM, options=options), "login1")
    assert (str(found) if found is not None else None) == gate


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"control": "udp"}, "is not one of spool, tcp"), ({"listen": "a b"}, "is not HOST"),
        ({"control": "tcp", "listen": "a b"}, "is not HOST"), ({"control": "tcp", "listen": "x:80"}, "ports are from"),
        ({"control": "tcp", "listen": "x:9-7"}, "ports are from"), ({"control": "tcp", "listen": "x;y"}, "is not HOST"),
        ({"control": "tcp", "listen": "x:2000-2064"}, "64 at most"),
    ],
)  # fmt: skip
def test_an_address_that_makes_no_sense_is_refused(options: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        gate_of(Site("s", "o", "p", SiteKind.SLURM, options=options), "login1")
