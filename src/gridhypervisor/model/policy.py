"""What an administrator writes to say who goes first and where work goes: the scheduling policy.

Validation only; what the settings mean is decided in `planning/policies`. The file and the API's request are one
struct, as with `JobSpec`. Every field has a default, so an empty policy (`kind: Policy`) is a good one. Weights say how
much a contribution counts, which is between 0 and 1 whatever its unit; a weight of 0 switches its policy off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from gridhypervisor.model.spec import Duration, parse_duration

URGENT = 20
"""The fixed priority of a job that goes before all others; only who is named in `FixedJobs.urgent` may ask for it."""

Weight = Annotated[float, msgspec.Meta(ge=0, le=1000)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1_000_000)]
JobPriority = Annotated[int, msgspec.Meta(ge=0, le=19)]
ResourcePriority = Annotated[int, msgspec.Meta(ge=0, le=99)]
Limit = Annotated[int, msgspec.Meta(ge=0)]


class FixedJobs(msgspec.Struct, frozen=True):
    """A priority from 0 to 19 by who submits: the user's, else the project's, else the default."""

    weight: Weight = 1.0
    default: JobPriority = 0
    users: dict[str, JobPriority] = msgspec.field(default_factory=dict)
    projects: dict[str, JobPriority] = msgspec.field(default_factory=dict)
    urgent: tuple[str, ...] = ()  # users whose jobs may ask for priority 20, before all others

    def of(self, user: str, project: str) -> int:
        return self.users.get(user, self.projects.get(project, self.default))


class ShareSetting(msgspec.Struct, frozen=True):
    """Who has had less of a share goes first. Shares are relative: 4 is twice 2."""

    weight: Weight = 1.0
    default: Share = 5.0
    users: dict[str, Share] = msgspec.field(default_factory=dict)
    projects: dict[str, Share] = msgspec.field(default_factory=dict)
    project_weight: Fraction = 0.5  # how much of it is between projects; the rest is between users
    window: Duration = "1d"  # use is remembered by windows of this length,
    windows: Annotated[int, msgspec.Meta(ge=1, le=10)] = 5  # so many of them, each counting less than the one after it


class WaitingSetting(msgspec.Struct, frozen=True):
    """Who has waited longer goes first. Whatever the weights, no job starves: see `patience`."""

    weight: Weight = 0.0
    patience: Duration = "7d"  # after it, a user's longest waiting job goes before all others that are not urgent


class DeadlineSetting(msgspec.Struct, frozen=True):
    """Whose deadline is nearer goes first."""

    weight: Weight = 1.0
    half: Duration = "1d"  # so long before its deadline a job has half of what it has at the deadline


class JobPolicies(msgspec.Struct, frozen=True):
    fixed: FixedJobs = msgspec.field(default_factory=FixedJobs)
    share: ShareSetting = msgspec.field(default_factory=ShareSetting)
    waiting: WaitingSetting = WaitingSetting()
    deadline: DeadlineSetting = DeadlineSetting()


class FixedResources(msgspec.Struct, frozen=True):
    """A priority from 1 to 99 by resource: the node's, else its site's, else the default. 0: never used."""

    weight: Weight = 1.0
    default: ResourcePriority = 1
    resources: dict[str, ResourcePriority] = msgspec.field(default_factory=dict)

    def of(self, name: str, site: str) -> int:
        return self.resources.get(name, self.resources.get(site, self.default))


class RankSetting(msgspec.Struct, frozen=True):
    """What the job's own `rank` says of a resource."""

    weight: Weight = 1.0


class UsageSetting(msgspec.Struct, frozen=True):
    """Where the user's jobs have taken less time."""

    weight: Weight = 0.0  # 1 is what GridWay does
    history: Duration = "3d"  # the mean is over this long
    last: Fraction = 0.25  # how much the last job counts against that mean


class FailureSetting(msgspec.Struct, frozen=True):
    """Where fewer of the user's jobs have failed; and the ban that follows on a failure."""

    weight: Weight = 0.0
    ban: Duration = "0s"  # the longest; 0s: no bans; 1h is what GridWay does
    growth: Duration = "650s"  # the time constant with which bans grow from the first failure on


class ResourcePolicies(msgspec.Struct, frozen=True):
    fixed: FixedResources = msgspec.field(default_factory=FixedResources)
    rank: RankSetting = RankSetting()
    usage: UsageSetting = UsageSetting()
    failure: FailureSetting = FailureSetting()


class Limits(msgspec.Struct, frozen=True):
    """How many jobs at once, queued at sites and running; 0: no limit but what the sites themselves set."""

    cycle: Limit = 0  # jobs that one planning cycle gives away
    user: Limit = 0
    project: Limit = 0
    site: Limit = 0
    users: dict[str, Limit] = msgspec.field(default_factory=dict)
    projects: dict[str, Limit] = msgspec.field(default_factory=dict)
    sites: dict[str, Limit] = msgspec.field(default_factory=dict)

    def of_user(self, name: str) -> float:
        return _limit(self.users, name, self.user)

    def of_project(self, name: str) -> float:
        return _limit(self.projects, name, self.project)

    def of_site(self, name: str) -> float:
        return _limit(self.sites, name, self.site)


class MoveSetting(msgspec.Struct, frozen=True):
    """When a job that has a place is given another; what a job's own file says goes before this. 0s, or 0: never."""

    wait: Duration = "0s"  # in a site's queue, before it is sent elsewhere; 10m is what GridWay does
    rate: Fraction = 0.0  # of the predicted speed, below which it runs too slowly; 0.5 is what GridWay does
    observe: Duration = "10m"  # before its speed is judged
    look: Duration = "0s"  # how often a running job looks for a better place
    settled: Duration = "1h"  # once it has run so long it no longer looks


class SchedulingPolicy(msgspec.Struct, frozen=True):
    kind: Literal["Policy"] = "Policy"
    jobs: JobPolicies = msgspec.field(default_factory=JobPolicies)
    resources: ResourcePolicies = msgspec.field(default_factory=ResourcePolicies)
    limits: Limits = msgspec.field(default_factory=Limits)
    moves: MoveSetting = MoveSetting()


class PolicyView(msgspec.Struct, frozen=True):
    """The scheduling policy that holds."""

    policy: SchedulingPolicy
    version: int = 0  # 0: the defaults, which nobody has set
    at: float = 0.0  # when it was set, in seconds since the epoch
    by: str = ""


@dataclass(frozen=True)
class PolicyRecord:
    """A policy as it was set: versions count from 1, and a decision names the version by which it was taken."""

    policy: SchedulingPolicy
    version: int = 0  # 0: the defaults, which nobody has set
    at: float = 0.0  # seconds since the epoch, on the controller's clock
    by: str = ""


def problems(policy: SchedulingPolicy) -> list[tuple[str, str]]:
    """What types alone cannot say: (path of the field, what is wrong and what is allowed) for each fault."""
    lengths = {
        "jobs.share.window": policy.jobs.share.window,
        "jobs.waiting.patience": policy.jobs.waiting.patience,
        "jobs.deadline.half": policy.jobs.deadline.half,
        "resources.usage.history": policy.resources.usage.history,
        "resources.failure.growth": policy.resources.failure.growth,
        "moves.observe": policy.moves.observe,
    }
    return [
        (field, f'"{text}" is no time at all; write a duration above 0, e.g. 1d or 90s')
        for field, text in lengths.items()
        if parse_duration(text) == 0
    ]


def load_policy(path: str, text: str) -> SchedulingPolicy:
    """Read a policy as it is written in YAML (of which JSON is a part); `path` is for messages.

    Raises:
        SpecError: it is none; names every problem with its line, its field, and what is allowed there.
    """
    from gridhypervisor.model.yamlspec import load  # who only asks for a policy need not wait for it

    return load(path, text, SchedulingPolicy, problems)


def show_policy(policy: SchedulingPolicy) -> str:
    """The policy in YAML with every setting, as `load_policy` reads it."""
    import yaml

    return yaml.safe_dump(msgspec.to_builtins(policy), sort_keys=False, allow_unicode=True)


def _limit(named: Mapping[str, int], name: str, default: int) -> float:
    return named.get(name, default) or math.inf
