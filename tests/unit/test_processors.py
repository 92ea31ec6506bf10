"""Which processors guests are shown: what the names mean, what QEMU is told, and which one all sites have."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from gridhypervisor.model.records import Job, Site, SiteKind
from gridhypervisor.model.spec import JobSpec, ResourcesSpec, problems
from gridhypervisor.model.wire import HypervisorKind, ImageManifest, Needs, NodeReport, Proven
from gridhypervisor.model.wire import processors as names
from gridhypervisor.planning.processors import shown
from gridhypervisor.planning.travel import unfit
from gridhypervisor.planning.world import SiteFacts

V1 = {"lm", "cmov", "cx8", "fpu", "fxsr", "mmx", "syscall", "sse", "sse2"}
V2 = V1 | {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}
V3 = V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
KVM, UML, TCG = HypervisorKind
SPEC = JobSpec("image", ("true",), cpu="common")
JOB = Job("j1", "me", "default", "test", SPEC, "/home", "/home", ImageManifest(()), "0" * 64, 0.0)


def site(name: str, baseline: str, *, kvm: bool = True, processor: str = "EPYC", cpus: int = 8) -> SiteFacts:
    proven = (Proven(KVM, kvm, "it ran"), Proven(TCG, True, ""))
    report = NodeReport("n", "6.1", processor, 1, 1, 1, 1, "/w", "/s", 1, proven, baseline=baseline)
    return SiteFacts(name, up=True, site=Site(name, "me", "default", SiteKind.SLURM, probed=report), max_cpus=cpus)


def test_the_highest_baseline_of_a_processor_is_found() -> None:
    for flags, found in ((set(), ""), (V1 - {"sse2"}, ""), (V1, "x86-64-v1"), (V2, "x86-64-v2"), (V3, "x86-64-v3"),
                         (V3 - {"popcnt"}, "x86-64-v1")):  # fmt: skip
        assert names.baseline_of(flags | {"vmx"}) == found


def test_what_qemu_is_told() -> None:
    assert names.qemu_words("x86-64-v1", emulated=True) == "qemu64,-svm,enforce"
    second = names.qemu_words("x86-64-v2", emulated=False)
    assert second == "qemu64,-svm,+cx16,+lahf-lm,+popcnt,+pni,+sse4.1,+sse4.2,+ssse3,enforce"
    assert names.qemu_words("Nehalem", emulated=True) == "Nehalem"
    assert names.qemu_words("Nehalem", emulated=False) == "Nehalem,enforce"


@pytest.mark.parametrize(
    ("kind", "cpu", "words"),
    [
        (UML, "x86-64-v2", "node's own processor"),
        (UML, "host", ""),
        (TCG, "host", "emulates"),
        (TCG, "x86-64-v4", "up to x86-64-v3"),
        (TCG, "x86-64-v3", ""),
        (TCG, "Nehalem", ""),
        (KVM, "x86-64-v4", ""),
    ],
)
def test_what_a_hypervisor_cannot_show_is_said(kind: HypervisorKind, cpu: str, words: str) -> None:
    unmet = Needs(cpu=cpu).unmet(kind)
    assert (words in unmet) if words else not unmet


def test_the_common_one_is_that_of_all_who_can_ever_take_the_job() -> None:
    sites = [site("a", "x86-64-v4"), site("b", "x86-64-v3")]
    assert shown(JOB, sites) == "x86-64-v3"
    assert shown(JOB, [site("a", "x86-64-v4"), site("b", "x86-64-v1", kvm=False)]) == "x86-64-v3", (
        "there it is emulated"
    )
    assert shown(JOB, [*sites, SiteFacts("new", up=True)]) == "x86-64-v2", "nobody has looked"
    assert shown(JOB, []) == "x86-64-v2"
    small = site("small", "x86-64-v1", cpus=1)
    assert shown(JOB, [*sites, small]) == "x86-64-v1"
    large = msgspec.structs.replace(SPEC, resources=ResourcesSpec(cpus=2))
    assert shown(replace(JOB, spec=large), [*sites, small]) == "x86-64-v3", "it never goes there"
    assert shown(replace(JOB, spec=msgspec.structs.replace(SPEC, cpu="Nehalem")), sites) == "Nehalem"


def test_a_guest_goes_where_there_is_what_it_was_shown() -> None:
    there = site("there", "x86-64-v2", processor="EPYC")
    assert "on Xeon, and there is EPYC" in unfit(KVM, "", "Xeon", "", there)
    assert unfit(KVM, "", "EPYC", "host", there) == ""
    assert unfit(KVM, "", "Xeon", "x86-64-v2", there) == ""
    assert "shown a processor of x86-64-v3" in unfit(KVM, "", "Xeon", "x86-64-v3", there)
    assert unfit(TCG, "", "", "x86-64-v3", there) == ""
    assert "kvm, which does not work" in unfit(KVM, "", "", "", replace(there, lacks=frozenset({"kvm"})))
    assert "bundle bbb" in unfit(TCG, "b" * 64, "", "", replace(there, bundle="c" * 64))
    behind = replace(there, site=Site("there", "me", "default", SiteKind.SLURM, options={"control": "tcp"}))
    assert "do not see the workdir" in unfit(TCG, "", "", "", behind)


def test_what_makes_no_sense_in_a_file_is_said_with_what_does() -> None:
    told = dict(problems(msgspec.structs.replace(SPEC, cpu="x86-64-v5")))
    assert "x86-64-v4" in told["cpu"]
    told = dict(problems(msgspec.structs.replace(SPEC, cpu="host", hypervisor="tcg")))
    assert "tcg emulates" in told["hypervisor"]
    told = dict(problems(msgspec.structs.replace(SPEC, copy_checkpoints=True, hypervisor="uml")))
    assert "cannot be saved" in told["copy_checkpoints"]
    assert not problems(SPEC)
