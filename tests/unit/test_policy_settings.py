"""The policy as an administrator writes it: what it means, how it is shown, and what is said of a mistake."""

from __future__ import annotations

import math
import re
from pathlib import Path

import msgspec
import pytest

from gridhypervisor.model.policy import Limits, MoveSetting, SchedulingPolicy, load_policy, show_policy
from gridhypervisor.model.yamlspec import SpecError

PAGE = Path(__file__).parents[2] / "docs" / "policies.md"


def test_every_setting_has_a_default_and_is_shown() -> None:
    policy = load_policy("policy.yaml", "kind: Policy")
    assert policy == SchedulingPolicy()
    shown = show_policy(policy)
    assert load_policy("shown", shown) == policy
    assert "patience: 7d" in shown


def test_what_is_written_is_kept_in_yaml_and_json() -> None:
    policy = load_policy("policy.yaml", "jobs: {share: {users: {alice: 2}}}\nlimits: {user: 30, users: {bob: 0}}")
    assert policy.jobs.share.users == {"alice": 2.0}
    assert load_policy("shown", show_policy(policy)) == policy
    assert msgspec.json.decode(msgspec.json.encode(policy), type=SchedulingPolicy) == policy


def test_a_limit_of_zero_is_none() -> None:
    limits = Limits(user=30, users={"bob": 0, "carol": 5})
    assert [limits.of_user(name) for name in ("alice", "bob", "carol")] == [30, math.inf, 5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "jobs: {fixed: {users: {alice: 20}}}",
            "jobs.fixed.users.alice: 20 is not allowed; expected a whole number <= 19",
        ),
        ("jobs:\n  share: {weight: -1}", "p.yaml:2: jobs.share.weight: -1 is not allowed; expected a number >= 0"),
        ("jobs: {share: {wieght: 1}}", 'jobs.share.wieght: unknown field; did you mean "weight"?'),
        ("jobs: {share: {users: {alice: 0}}}", "jobs.share.users.alice: 0 is not allowed; expected a number > 0"),
        ("jobs: {share: {window: 0s}}", 'jobs.share.window: "0s" is no time at all; write a duration above 0'),
        ("jobs: {waiting: {patience: 7}}", 'jobs.waiting.patience: "7" is not a duration; write e.g. 90s or 2h30m'),
        ("jobs: {share: {weight: .nan}}", 'jobs.share.weight: ".nan" is not allowed; expected a number'),
        ("resources: {fixed: {resources: {a: 100}}}", "resources.fixed.resources.a: 100 is not allowed"),
        ("resources: {usage: {last: 1.5}}", "resources.usage.last: 1.5 is not allowed; expected a number <= 1"),
        ("limits: {user: many}", 'limits.user: "many" is not allowed; expected a whole number'),
        ("kind: Job", 'kind: "Job" is not allowed; expected one of Policy'),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_is_allowed(text: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        load_policy("p.yaml", text)
    assert said in str(caught.value)


def test_the_page_shows_the_defaults_and_a_policy_that_loads() -> None:
    shown, example, *_ = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert load_policy("docs", shown) == SchedulingPolicy()
    assert load_policy("docs", example) != SchedulingPolicy()


def test_moves_are_set_as_the_rest_is() -> None:
    assert load_policy("p.yaml", "kind: Policy\nmoves: {wait: 10m}\n").moves == MoveSetting(wait="10m")
    with pytest.raises(SpecError, match=r"p\.yaml:2: moves\.observe: \"0s\" is no time at all"):
        load_policy("p.yaml", "kind: Policy\nmoves: {rate: 0.5, observe: 0s}\n")
    assert load_policy("p.yaml", "kind: Policy\nmoves: {wait: 0s}\n") == SchedulingPolicy()
