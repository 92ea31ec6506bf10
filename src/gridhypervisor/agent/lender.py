"""The lender at a site: whose terms hold for an account, what is in use of them, and who is let in.

The terms are the first of three files that is there: `/etc/ghv/lender.d/ACCOUNT.toml`, `/etc/ghv/lender.toml`, and
`WORKDIR.lender.toml` beside the workdir. What is in use is counted from the spool, of all installations that share the
account: an entry with a manifest is a VM that waits, with a pilot's `owner` one that runs, with a sentinel one that is
over. A VM's time is charged before its entry is removed. What fits is decided by `wire.obstacle`.

All that is reserved is counted as if it were to be used, so the limits hold in whatever order VMs come and end. They
hold for all relays on one front-end, and as far as its file system has locks and shows files at once, on several.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import math
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gridhypervisor.agent import spool
from gridhypervisor.agent.charges import Charges
from gridhypervisor.agent.terms import TermsError, open_for, parse, period_start
from gridhypervisor.model import wire
from gridhypervisor.model.wire import (
    Charge,
    ExitRecord,
    Lending,
    Manifest,
    OwnerRecord,
    Share,
    Terms,
    Use,
    WireError,
    obstacle,
)

ETC = Path("/etc/ghv")
"""Where the site's administrators lend from."""

LONGEST = 1 << 20
"""Bytes of a lender's file."""

TURN = 10.0
"""Seconds to wait for the relay of another installation to let its VM in."""


class Unlent(Exception):
    """The lender does not let it in: why, and what to do."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.hint = hint


@dataclass
class _Vm:
    """What is known of one entry. `owner` and the charge never change once they are there."""

    installation: str
    owner: str
    want: Share
    walltime: int
    running: bool = False
    over: bool = False
    charge: Charge | None = None


class Lender:
    """For one account. Blocking; may be used from several threads. `etc` is the folder of the site's own files."""

    def __init__(self, workdir: Path, *, etc: Path = ETC) -> None:
        beside = workdir.with_name(f"{workdir.name}.lender.toml")
        self._files = (etc / "lender.d" / f"{account()}.toml", etc / "lender.toml", beside)
        self._spool, self._lock_file = workdir / wire.SPOOL, workdir / wire.CHARGES / ".turn"
        self.charges = Charges(workdir / wire.CHARGES)
        self._lock = threading.Lock()
        self._terms: tuple[object, Terms] | None = None
        self._vms: dict[str, _Vm] = {}

    # -- the terms -------------------------------------------------------------------------------------------------

    def terms(self) -> Terms | None:
        """The terms that hold now; None: nobody limits the account. A file that cannot be read or understood lets
        nothing start, and says why."""
        for path in self._files:
            try:
                status = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                return Terms(str(path), problem=_unreadable(path, error))
            signature = (path, status.st_ino, status.st_ctime_ns, status.st_mtime_ns, status.st_size)
            known = self._terms
            if known is None or known[0] != signature:
                try:
                    known = signature, _read_terms(path, name_of(status.st_uid))
                except OSError as error:
                    return Terms(str(path), problem=_unreadable(path, error))
                self._terms = known
            return known[1]
        return None

    # -- what is in use --------------------------------------------------------------------------------------------

    def uses(self, terms: Terms | None) -> list[Use]:
        """What each user of each installation has, sorted.

        Raises:
            OSError: the spool or the charges cannot be read, so nobody knows.
        """
        with self._lock:
            return self._uses(terms or Terms(""))

    def lending(self, installation: str) -> Lending | None:
        """What to tell a controller. Raises OSError, like `uses`."""
        terms = self.terms()
        if terms is None:
            return None
        left = open_for(terms.hours, time.localtime())
        return _lending(terms, self.uses(terms), installation, left)

    def admit(self, entry: Path, manifest: Manifest, write: Callable[[], None]) -> None:
        """Let a VM in: `write` writes down its manifest, unless the terms do not allow it.

        Raises:
            Unlent: they do not.
            OSError: nobody knows, or `write` failed.
        """
        terms = self.terms()
        if terms is None or (entry / wire.MANIFEST).exists():  # sent again: it was let in
            write()
            return
        with self._lock, self._turn():
            wants, now = manifest.resources, time.localtime()
            lending = _lending(terms, self._uses(terms), manifest.installation, open_for(terms.hours, now))
            image = _digest(manifest) if terms.images is not None else ""
            want = Share.of(wants.cpus, wants.memory, wants.walltime)
            why = obstacle(terms, lending.taken(), want, image, wants.walltime, lending.open_for)
            if why := why or _listening(terms, manifest):
                raise Unlent(why, terms.hint)
            write()

    def settle(self, entry: Path) -> None:
        """Charge the time of a VM whose entry is about to be removed; again, where it was charged before, is no harm.

        Raises:
            OSError: it could not be written down; the entry must stay.
        """
        if self.terms() is None:
            return
        with self._lock:
            self._look_at(entry.name)
            vm = self._vms.get(entry.name)
            if vm is None:
                return
            charge = vm.charge
            if charge is None and vm.running:  # it left no sentinel: it cannot have run for longer than this
                with contextlib.suppress(FileNotFoundError):
                    begun, now = (entry / wire.MANIFEST).stat().st_mtime, time.time()
                    with contextlib.suppress(OSError):  # on a full disk it is charged by this machine's clock
                        now = spool.file_time(self._spool)
                    charge = _charge(entry.name, vm, max(0.0, now - begun), now)
            if charge is not None:
                self.charges.add(charge)

    # -- counting --------------------------------------------------------------------------------------------------

    def _uses(self, terms: Terms) -> list[Use]:
        names: set[str] = set()
        with contextlib.suppress(FileNotFoundError):  # it is made with the first hello
            names = {item.name for item in os.scandir(self._spool) if not item.name.startswith(".")}
        for gone in self._vms.keys() - names:
            del self._vms[gone]
        for name in names:
            self._look_at(name)
        # The spool was listed first: who is not in it any more was charged before, and is found here.
        charges = self.charges.read()
        charges |= {n: vm.charge for n, vm in self._vms.items() if vm.charge is not None and n not in charges}
        since = time.mktime(period_start(terms.period, time.localtime()))
        found: dict[tuple[str, str], tuple[Share, Share]] = {}

        def add(installation: str, owner: str, used: Share, reserved: Share) -> None:
            before = found.get((installation, owner), (Share(), Share()))
            found[installation, owner] = before[0] + used, before[1] + reserved

        spent: dict[tuple[str, str], tuple[int, int]] = {}  # there may be very many charges
        for charge in charges.values():
            if charge.ended >= since:
                who = charge.installation, charge.owner
                vm_seconds, core_seconds = spent.get(who, (0, 0))
                spent[who] = vm_seconds + charge.seconds, core_seconds + charge.cores * charge.seconds
        for who, (vm_seconds, core_seconds) in spent.items():
            add(*who, Share(vm_seconds=vm_seconds, core_seconds=core_seconds), Share())
        for name, vm in self._vms.items():
            if vm.over or name in charges:
                continue
            time_left = Share(vm_seconds=vm.want.vm_seconds, core_seconds=vm.want.core_seconds)
            at_once = replace(vm.want, vm_seconds=0, core_seconds=0)
            add(vm.installation, vm.owner, *((at_once, time_left) if vm.running else (Share(), vm.want)))
        return [Use(*who, *shares) for who, shares in sorted(found.items())]

    def _look_at(self, name: str) -> None:
        """Look at one entry, unless all is known of it. What a pilot or a remover wrote never changes."""
        vm, entry = self._vms.get(name), self._spool / name
        if vm is None:
            try:
                manifest = spool.read_json(entry / wire.MANIFEST, Manifest)
            except (WireError, NotADirectoryError):
                return  # no pilot can act on it
            if manifest is None:
                return
            wants = manifest.resources
            want = Share.of(wants.cpus, wants.memory, wants.walltime)
            vm = self._vms[name] = _Vm(manifest.installation, manifest.owner, want, wants.walltime)
        if vm.over:
            return
        try:
            present = {item.name for item in os.scandir(entry)}
        except FileNotFoundError:
            self._vms.pop(name, None)
            return
        if wire.OWNER in present and not vm.running:
            try:
                owner = spool.read_json(entry / wire.OWNER, OwnerRecord)
            except WireError:
                owner = None
            vm.over = owner is not None and owner.by == "controller"  # it never runs
            vm.running = not vm.over
        if wire.EXIT in present and not vm.over:
            with contextlib.suppress(FileNotFoundError):
                ended = (entry / wire.EXIT).stat().st_mtime
                try:
                    record = spool.read_json(entry / wire.EXIT, ExitRecord)
                except WireError:
                    record = None
                vm.charge = _charge(name, vm, record.elapsed if record is not None else math.inf, ended)
                vm.over, vm.running = True, False

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One relay of the account after another."""
        self._lock_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + TURN
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        why = f"another relay of this account has held it for {TURN:.0f} s"
                        raise TimeoutError(f"lock {self._lock_file}: {why}") from error
                    time.sleep(0.02)
                except OSError:  # no locks on this file system: docs/lender.md says what that costs
                    break
            yield
        finally:
            os.close(descriptor)


def forbidden(workdir: Path, manifest: Manifest) -> tuple[str, str] | None:
    """Why a VM must not start on this node, by the files that are seen here, and what to do; None: it may.

    What the relay has let in is not counted again: image, hours and ports alone can have become wrong on the way.
    """
    terms = Lender(workdir).terms()
    if terms is None:
        return None
    alone = replace(terms, vms=None, cores=None, memory=None, vm_seconds=None, core_seconds=None)
    wants, left = manifest.resources, open_for(terms.hours, time.localtime())
    want = Share.of(wants.cpus, wants.memory, wants.walltime)
    why = obstacle(alone, Share(), want, _digest(manifest), wants.walltime, left)
    return (why, terms.hint) if (why := why or _listening(terms, manifest)) else None


def _listening(terms: Terms, manifest: Manifest) -> str:
    """Why its pilot must not hear other nodes' pilots, where it would."""
    refused = bool(manifest.listen) and terms.listen is False
    return "pilots must not accept connections here (`listen`)" if refused else ""


def account() -> str:
    """This account's name."""
    return os.environ.get("USER") or os.environ.get("LOGNAME") or name_of(os.getuid())


def name_of(uid: int) -> str:
    """A user's name. Not by the account database: its modules are the site's, for another C library than ours. Its
    oldest file will do."""
    with contextlib.suppress(OSError):
        for line in Path("/etc/passwd").read_text(errors="replace").splitlines():
            if (words := line.split(":"))[2:3] == [str(uid)]:
                return words[0]
    return f"uid {uid}"


def _read_terms(path: Path, holder: str) -> Terms:
    with path.open("rb") as file:
        data = file.read(LONGEST + 1)
    own = _in_hand(path)
    try:
        if not data or len(data) > LONGEST:  # it may be about to be written: then it does not allow everything
            raise TermsError(f"{path}: it is empty" if not data else f"{path}: larger than {LONGEST} bytes")
        return parse(data.decode(), str(path), holder, own=own)
    except UnicodeDecodeError as error:
        return Terms(str(path), holder, own, problem=f"{path}: not UTF-8: {error}")
    except TermsError as error:
        return Terms(str(path), holder, own, problem=str(error))


def _in_hand(path: Path) -> bool:
    """Whether this account can change a file, or put another in its place."""
    me = os.geteuid()
    for way in {path.absolute(), path.resolve()}:
        below: Path | None = None
        for part in (way, *way.parents):
            status = part.stat()
            mine = status.st_uid == me or os.access(part, os.W_OK, effective_ids=True)
            # In a folder such as /tmp everybody may make files, and move only their own.
            sticky = below is not None and status.st_mode & stat.S_ISVTX and status.st_uid != me
            if mine and not (sticky and below is not None and below.lstat().st_uid != me):
                return True
            below = part
    return False


def _unreadable(path: Path, error: OSError) -> str:
    return f"{path}: {error.strerror or error}; the account must be able to read it"


def _lending(terms: Terms, uses: list[Use], installation: str, left: float | None) -> Lending:
    mine, rest = Share(), Share()
    for use in uses:
        spent = Share(vm_seconds=use.used.vm_seconds, core_seconds=use.used.core_seconds)
        live = replace(use.used, vm_seconds=0, core_seconds=0) + use.reserved
        rest += spent
        if use.installation == installation:
            mine += live
        else:
            rest += live
    return Lending(terms, mine, rest, left)


def _charge(entry: str, vm: _Vm, seconds: float, ended: float) -> Charge:
    """For no longer than its walltime: so much was reserved."""
    lasted = vm.walltime if seconds >= vm.walltime else math.ceil(seconds)
    return Charge(entry, vm.installation, vm.owner, vm.want.cores, lasted, ended)


def _digest(manifest: Manifest) -> str:
    """Of the image that is booted, by its content; empty where none is."""
    return "" if manifest.probe else hashlib.sha256(wire.canonical(manifest.image)).hexdigest()
