"""A job's inputs, from where the user keeps them to files on this machine with known digests. Nothing goes to a site.

`inputs` turns what the spec says into names and sources, and those into files; `fetch` brings what a URL names, resumed
and verified, through `http` or `s3`. These are synchronous and meant for a worker thread; memory stays bounded whatever
the size. `stager` runs them for many jobs at once, and `keeping` bounds the cache. They raise InputError where trying
again is of no use, OSError where this machine's disk is at fault.
"""

from gridhypervisor.staging.fetch import Fetched, fetch
from gridhypervisor.staging.inputs import Planned, Staged, digest, expand, stage
from gridhypervisor.staging.stager import Stager

__all__ = ["Fetched", "Planned", "Staged", "Stager", "digest", "expand", "fetch", "stage"]
