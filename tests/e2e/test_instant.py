"""Instant start: guests from a snapshot, what of them is their own, and snapshots that are not what they should be."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gridhypervisor.model import wire
from gridhypervisor.model.wire import ExitRecord, ImageManifest, Outcome
from tests.e2e import guestkit
from tests.e2e.guestkit import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site under the emulator, where a first guest has left a snapshot."""
    for made in guestkit.sites(tmp_path_factory.mktemp("instant"), "tcg"):
        first = made.run(made.prepare("echo first"))
        assert first.outcome is Outcome.COMPLETED, first.message
        assert boot(first).startswith("cold: no snapshot"), boot(first)
        assert len(kept(made)) == 1, (made.workdir / "spool/test-1/pilot.log").read_text()
        yield made


def boot(record: ExitRecord) -> str:
    assert record.hypervisor is not None
    return record.hypervisor.boot


def kept(site: Site) -> list[Path]:
    return [path for path in (site.workdir / wire.SNAPSHOTS).iterdir() if len(path.name) == 64]


def test_a_second_guest_is_taken_up_and_does_all_that_one_does_that_booted(site: Site) -> None:
    words = 'read -r a <given; echo "$a $X"; mkdir -p deep; echo made >deep/file; cat /proc/uptime >&2; exit 3'
    entry = site.prepare(words, inputs={"given": b"input\n"}, outputs=("deep/*",), environment={"X": "y"})
    record = site.run(entry)
    assert boot(record).startswith("restored from snapshot "), boot(record)
    assert (record.outcome, record.exit_code) == (Outcome.COMPLETED, 3), record.message
    assert (entry / wire.STDOUT).read_bytes() == b"input y\n"
    assert (entry / "out/deep/file").read_bytes() == b"made\n"
    site.is_clean(entry)


IDENTITY = """
printf 'boot_id '; cat /proc/sys/kernel/random/boot_id
printf 'urandom '; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
printf 'uuid '; cat /proc/sys/kernel/random/uuid
printf 'stack '; grep '\\[stack\\]' /proc/self/maps | cut -d- -f1
printf 'agent '; grep '\\[stack\\]' /proc/1/maps | cut -d- -f1
printf 'mapped '; grep '\\[vdso\\]' /proc/self/maps | cut -d- -f1
printf 'heap '; grep '\\[heap\\]' /proc/self/maps | cut -d- -f1
printf 'clock '; date +%s
keys() { name=$1; shift; /opt/keys/lib/ld-linux-x86-64.so.2 --library-path /opt/keys/lib /opt/keys/$name "$@"; }
printf 'openssl '; keys openssl rand -hex 32
keys ssh-keygen -q -t ed25519 -N '' -C '' -f host_key && printf 'host_key ' && cut -d' ' -f2 host_key.pub
"""
"""What a program can see of what makes its guest one of its own."""

CLONES = 20


def with_keys(site: Site, folder: Path) -> ImageManifest:
    """The site's image with this machine's `ssh-keygen` and `openssl` on a layer, and the libraries that they need."""
    tree = folder / "keys"
    (tree / "lib").mkdir(parents=True)
    for program in ("ssh-keygen", "openssl"):
        found = shutil.which(program)
        assert found is not None
        shutil.copy(found, tree / program)
        needed = subprocess.run(["ldd", found], check=True, capture_output=True, text=True).stdout
        for path in re.findall(r"(/\S+) \(0x", needed):
            shutil.copy(path, tree / "lib" / Path(path).name)
    packed = folder / "keys.sqfs"
    subprocess.run(
        ["mksquashfs", str(tree), str(packed), "-quiet", "-noappend", "-all-root", "-no-progress"],
        check=True, capture_output=True,
    )  # fmt: skip
    layer = guestkit.add_layer(site.workdir / "cache", packed.read_bytes(), "app", "squashfs", "/opt/keys")
    return dataclasses.replace(site.image, layers=(*site.image.layers, layer))


def test_twenty_clones_share_no_identity_and_no_randomness(site: Site, tmp_path: Path) -> None:
    """Two at a time, for that is what may race. What they do share is what ran before, see docs/hypervisors.md."""
    image, before = with_keys(site, tmp_path), kept(site)
    first = site.run(site.prepare("true", image=image))
    assert boot(first).startswith("cold: no snapshot"), boot(first)
    found: list[dict[str, str]] = []
    for _ in range(CLONES // 2):
        began = time.time()
        entries = [site.prepare(IDENTITY, image=image) for _ in range(2)]
        pilots = [site.start(entry) for entry in entries]
        for entry, pilot in zip(entries, pilots, strict=True):
            assert pilot.wait(240) == 0, (entry / wire.PILOT_LOG).read_text()
            assert boot(site.sentinel(entry)).startswith("restored"), boot(site.sentinel(entry))
            lines = (entry / wire.STDOUT).read_text().splitlines()
            assert all(len(line.split()) == 2 for line in lines), (lines, (entry / wire.STDERR).read_text())
            said = dict(line.split() for line in lines)
            # One that kept the snapshot's time would be behind by the snapshot's age, which is more than nothing.
            assert int(began) <= int(said.pop("clock")) <= time.time() + 1
            found.append(said)
    own = {"boot_id", "urandom", "uuid", "stack", "agent", "mapped", "heap", "openssl", "host_key"}
    assert found[0].keys() == own
    for what in found[0]:
        different = {said[what] for said in found}
        assert len(different) == CLONES, f"{CLONES - len(different)} clones have a {what} that another has: {different}"
    [other] = set(kept(site)) - set(before)
    shutil.rmtree(other)


def test_a_snapshot_that_is_not_what_it_should_be_costs_a_job_a_boot_and_no_more(site: Site, tmp_path: Path) -> None:
    """A bit changed; or all as its record says, and yet nothing that the hypervisor would know."""
    [folder] = kept(site)
    shutil.copytree(folder, tmp_path / "sound")
    # Of the last, QEMU says so or is gone before it is heard.
    for damage, why in ((flip, "is damaged in the"), (forge, "")):
        damage(folder)
        entry = site.prepare("echo booted")
        record = site.run(entry)
        assert record.outcome is Outcome.COMPLETED, record.message
        assert (entry / wire.STDOUT).read_bytes() == b"booted\n"
        assert boot(record).startswith("cold: snapshot ") and "is removed" in boot(record), boot(record)
        assert why in boot(record), boot(record)
        assert kept(site) == []
        site.is_clean(entry)
        shutil.copytree(tmp_path / "sound", folder)
    assert boot(site.run(site.prepare("echo sound"))).startswith("restored")


def test_guests_with_a_network_card_have_an_address_each_restored_or_not(site: Site) -> None:
    words = "cat /sys/class/net/eth0/address; ifconfig eth0 | grep -o 'inet addr:[0-9.]*'"
    before, addresses = kept(site), set()
    for begins in ("cold: no snapshot", "restored from"):
        entry = site.prepare(words, network="restricted")
        record = site.run(entry)
        assert record.outcome is Outcome.COMPLETED and boot(record).startswith(begins), (record.message, boot(record))
        hardware, internet = (entry / wire.STDOUT).read_text().splitlines()
        assert hardware.startswith("52:54:00:") and internet.endswith(":10.0.2.15"), (hardware, internet)
        addresses.add(hardware)
    assert len(addresses) == 2
    [other] = set(kept(site)) - set(before)
    shutil.rmtree(other)


def test_two_first_guests_at_once_leave_one_snapshot_and_neither_waits_for_the_other(site: Site) -> None:
    [folder] = kept(site)
    shutil.rmtree(folder)
    entries = [site.prepare("echo both") for _ in range(2)]
    pilots = [site.start(entry) for entry in entries]
    assert [pilot.wait(240) for pilot in pilots] == [0, 0]
    boots = [boot(site.sentinel(entry)) for entry in entries]
    assert not any(words.startswith("restored") for words in boots) or "saved for the next" in "".join(boots), boots
    assert [path.name for path in (site.workdir / wire.SNAPSHOTS).iterdir()] == [folder.name], (
        "nothing is left beside it"
    )
    assert boot(site.run(site.prepare("echo then"))).startswith("restored")


def test_a_running_clone_does_not_notice_what_becomes_of_its_snapshot(site: Site) -> None:
    """The account itself writes over it, and tries to write into what the hypervisor was given."""
    [folder] = kept(site)
    work = "sha256sum /bin/busybox | cut -c1-64"
    entry = site.prepare(f"{work}; trap '{work}; exit 0' TERM; echo up; while :; do sleep 0.1; done", stop_grace=60)
    pilot = site.start(entry)
    stdout = entry / wire.STDOUT
    guestkit.wait_for(lambda: stdout.exists() and stdout.read_text().endswith("up\n"), 120, "the program to run")
    for name in ("memory", "state"):
        with (folder / name).open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            file.write(b"\xff" * size)
    [hypervisor] = site.hypervisors(entry)
    given = [path for path in Path(f"/proc/{hypervisor}/fd").iterdir() if "memfd:" in os.readlink(path)]
    assert given, "the hypervisor was given memory without a name"
    for path in given:
        with path.open("r+b", buffering=0) as file, pytest.raises(PermissionError):
            file.write(b"\xff")
    (entry / wire.CONTROL / wire.CANCEL).touch()
    pilot.wait(240)
    record = site.sentinel(entry)
    assert record.reason is wire.Reason.CANCELLED, record.message
    before, up, after = stdout.read_text().split()
    assert (before, up) == (after, "up")


def flip(folder: Path) -> None:
    """Change one bit in the middle of the memory."""
    path = folder / "memory"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        [byte] = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


def forge(folder: Path) -> None:
    """Put something else in the place of the devices' state, with a record to it."""
    nonsense = b"not what QEMU wrote" * 100
    (folder / "state").write_bytes(nonsense)
    record = json.loads((folder / "snapshot.json").read_bytes())
    record["state"] = {"offset": 0, "length": len(nonsense), "sha256": hashlib.sha256(nonsense).hexdigest()}
    (folder / "snapshot.json").write_text(json.dumps(record))
