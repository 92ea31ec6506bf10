"""How the use of an account at a site is shown: who has how much of it, what is allowed, and what is left."""

from __future__ import annotations

from gridhypervisor.cli.output import RED, bold, dim, echo, paint, pairs, plain, size, table
from gridhypervisor.model.views import SiteUsage
from gridhypervisor.model.wire import NO_SHARE, Share, Terms

HEAD = ("USER", "INSTALLATION", "WHAT", "VMS", "CORES", "MEMORY", "VM-HOURS", "CORE-HOURS")


def show_usage(usage: SiteUsage) -> None:
    """Print it as a table; of time, what is used was spent in the lender's present period."""
    terms = usage.lender
    echo(f"{bold(usage.site)}  {_headline(usage)}")
    if terms is not None:
        pairs([(f"  {name}", words) for name, words in _further(terms)])
    rows = []
    for use in usage.uses:
        who = plain(use.owner) or "?", plain(use.installation)
        shares = ("used", use.used), ("reserved", use.reserved)
        rows += [(*who, what, *_amounts(share)) for what, share in shares if share != NO_SHARE]
    if terms is not None and not terms.problem:
        limits = terms.vms, terms.cores, terms.memory, terms.vm_seconds, terms.core_seconds
        taken = sum((use.used + use.reserved for use in usage.uses), NO_SHARE)
        has = taken.vms, taken.cores, taken.memory, taken.vm_seconds, taken.core_seconds
        left = tuple(None if limit is None else max(0, limit - h) for limit, h in zip(limits, has, strict=True))
        rows += [("", "", "allowed", *_cells(limits)), ("", "", "left", *_cells(left))]
    if rows:
        table(HEAD, rows, right=(3, 4, 5, 6, 7), indent="  ")


def _headline(usage: SiteUsage) -> str:
    terms = usage.lender
    if usage.problem:
        return paint(plain(usage.problem), RED)
    if terms is None:
        return dim("nobody limits the account" + ("" if usage.uses else "; nothing of it is in use"))
    if terms.problem:
        return f"{paint('nothing may start:', RED)} {plain(terms.problem)}"
    whose = "a cap of its own" if terms.own else f"lent by {plain(terms.holder)}"
    return f"{whose}: {plain(terms.file)}"


def _further(terms: Terms) -> list[tuple[str, str]]:
    """What the lender says that no table can hold."""
    hours = terms.vm_seconds is not None or terms.core_seconds is not None
    return [
        ("contact", plain(terms.contact)),
        ("hours are counted by", str(terms.period) if hours else ""),
        ("VMs run", "\n".join(plain(window) for window in terms.hours)),
        ("images", "none" if terms.images == () else "\n".join(plain(digest) for digest in terms.images or ())),
        ("bandwidth", f"{size(terms.bandwidth)} a second" if terms.bandwidth is not None else ""),
        ("a relay may listen", {True: "yes", False: "no", None: ""}[terms.listen]),
    ]


def _amounts(share: Share) -> tuple[str, ...]:
    return _cells((share.vms, share.cores, share.memory, share.vm_seconds, share.core_seconds))


def _cells(amounts: tuple[int | None, ...]) -> tuple[str, ...]:
    """VMs, cores, bytes, and two times in seconds, which are shown as hours."""
    vms, cores, memory, *times = amounts
    hours = ("-" if t is None else f"{t / 3600:.1f}" for t in times)
    counts = ("-" if n is None else str(n) for n in (vms, cores))
    return (*counts, "-" if memory is None else size(memory), *hours)
