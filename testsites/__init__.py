"""Real test sites on one machine: Slurm, Grid Engine, HTCondor, PBS over Slurm; behind SSH, without Python or QEMU.

Used by the tests and the demos; the product never imports it. A site is one folder (its root) and one tree
of processes in name spaces of its own; it vanishes when its starter ends, however that happens. It needs root, because
it mounts and because batch systems start jobs as somebody else.
"""

from testsites.frontend import FrontEnd
from testsites.gridengine import GridEngineSite
from testsites.htcondor import HTCondorSite
from testsites.pbs import PbsSite
from testsites.slurm import SlurmSite

__all__ = ["FrontEnd", "GridEngineSite", "HTCondorSite", "PbsSite", "SlurmSite"]
