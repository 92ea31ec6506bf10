"""A PBS site: Slurm's own wrappers in Torque's dialect (Debian's slurm-wlm-torque) over the real Slurm of `slurm.py`.

They are what a login finds, with two exceptions, `torque/qsub` and `torque/qstat`: each says what the wrapper behind it
lacks of Torque. Wrappers are Perl, so the root holds that; there is still neither Python nor QEMU. What they show of
Torque is its language, not its daemons: how those behave when nodes or servers fail, nobody learns here.

The package cannot be installed beside Grid Engine's; `otherdebian.py` unpacks it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from testsites import otherdebian
from testsites.slurm import SlurmSite

SUITE = "bookworm"
PACKAGES = ("slurm-wlm-torque", "perl", "hostname")
COMMANDS = ("qsub", "qstat", "qdel", "qhold", "qrls", "pbsnodes")
ARCHITECTURE = Path("/usr/lib/x86_64-linux-gnu")
PROGRAMS = (Path("/usr/bin/perl"), Path("/usr/bin/hostname"))
PLUGINS = tuple(ARCHITECTURE / "perl5/5.36/auto" / name for name in ("Slurm/Slurm.so", "Slurmdb/Slurmdb.so"))
MODULES = (
    *(Path("/usr/bin") / name for name in COMMANDS),
    ARCHITECTURE / "perl-base",
    *(ARCHITECTURE / "perl5/5.36" / name for name in ("Slurm", "Slurm.pm", "Slurmdb.pm", "auto/Slurmdb/autosplit.ix")),
    *(Path("/usr/share/perl/5.36") / name for name in ("English.pm", "FindBin.pm", "autouse.pm")),
)
OURS = Path(__file__).with_name("torque")
BEHIND = "usr/lib/torque"
"""Where a wrapper is that one of ours stands before, with the sbatch that it looks for beside itself."""


class PbsSite(SlurmSite):
    """See `SlurmSite`: the same faults and administration behind another dialect."""

    kind = "pbs"

    def _make_root(self) -> None:
        super()._make_root()
        kept = otherdebian.made(SUITE, PACKAGES, PROGRAMS, PLUGINS, MODULES)
        shutil.copytree(kept / "usr", self.root / "usr", dirs_exist_ok=True)
        (self.root / BEHIND).mkdir()
        (self.root / BEHIND / "sbatch").symlink_to("/usr/bin/sbatch")
        for ours in OURS.iterdir():
            wrapper = self.root / "usr/bin" / ours.name
            wrapper.rename(self.root / BEHIND / ours.name)
            shutil.copy(ours, wrapper)
