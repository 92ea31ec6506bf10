"""What the controller tells a pilot, once: which guest, which program, how much of everything."""

from __future__ import annotations

from dataclasses import dataclass, field

from gridhypervisor.model.wire.checkpoints import Checkpoint
from gridhypervisor.model.wire.handover import HandOver


@dataclass(frozen=True)
class Layer:
    """One content-addressed part of an image.

    `digest` is the SHA-256 (hex) of the chunk list: the concatenation, in order, of the raw 32-byte SHA-256 digests
    of each `chunk_size`-byte piece of the data (the last may be shorter). So any part can be verified alone and many
    in parallel. The data lie in `cache/DIGEST`, the chunk list in `cache/DIGEST.chunks`.
    """

    digest: str
    size: int  # bytes
    role: str  # kernel | initrd | base | app | disk
    format: str  # raw | squashfs | erofs | qcow2
    mount: str = ""  # where an app layer appears in the guest, e.g. /opt
    chunk_size: int = 1 << 20


@dataclass(frozen=True)
class ImageManifest:
    """An image: what to boot and what to mount. Its digest is the SHA-256 of its canonical JSON (`canonical`)."""

    layers: tuple[Layer, ...]
    arch: str = "x86_64"
    cmdline: str = ""  # appended to the kernel's command line
    user: str = "root"  # whom the program runs as, in the guest
    path: str = ""  # prepended to PATH for the program, colon-separated
    description: str = ""


@dataclass(frozen=True)
class Input:
    """One input of the job, as it lies in `in/`."""

    path: str  # relative to the job's folder in the guest, and below in/ in the entry
    size: int
    sha256: str = ""
    mode: int = 0o644


@dataclass(frozen=True)
class Program:
    """What runs in the guest."""

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    inputs: tuple[Input, ...] = ()
    outputs: tuple[str, ...] = ()  # glob patterns relative to the job's folder
    restart: tuple[str, ...] = ()  # the same, of what is brought out when it is to go on in another attempt

    @property
    def leaves(self) -> bool:
        """Whether there may be anything to bring out."""
        return bool(self.outputs or self.restart)


@dataclass(frozen=True)
class Resources:
    """How much of everything the job gets."""

    cpus: int = 1
    memory: int = 512 << 20  # bytes, of the guest
    scratch: int = 2 << 30  # bytes, of the guest's scratch disk
    walltime: int = 1800  # seconds, of the batch job


MTU = 9000
"""Bytes of an IP packet, unless a network says otherwise: large, since each frame has its price and few are lost."""

MAX_MTU = 65000
"""The largest that the hypervisors' cards take."""


@dataclass(frozen=True)
class Nic:
    """A VM's card in one network."""

    network: int  # the network's number, of one installation
    member: int  # the VM's number in it, from 1 on
    name: str  # what the others call it
    mac: str  # 02:67:…, lower case, with colons
    address: str  # of IPv4
    prefix: int  # bits of the address that are the network's
    resolver: str  # the address at which names are asked for; nobody else has it
    domain: str  # behind every name
    mtu: int = MTU
    rate: int = 0  # bytes a second that the guest may send; 0: as many as it can


@dataclass(frozen=True)
class ReadyProbe:
    """How the guest finds out whether its program serves. Exactly one of `tcp`, `http` and `command` is given."""

    tcp: int = 0  # something accepts a connection to this port
    http: int = 0  # what listens on this port answers the path with success
    path: str = "/"
    command: tuple[str, ...] = ()  # it ends with 0
    interval: int = 2  # seconds between two tries
    limit: int = 10  # seconds of one try
    timeout: int = 0  # seconds after which whoever waits for it would know that it is not ready; 0: nobody does


@dataclass(frozen=True)
class Service:
    """The program is to run until it is stopped, and is of use from when it is ready."""

    ready: ReadyProbe | None = None  # None: it is ready when it has been started


@dataclass(frozen=True)
class Manifest:
    """All that a pilot must know. Written before the submission; the pilot trusts nothing else."""

    protocol: int
    installation: str
    entry: str  # the PilotJob's name: the spool folder, the batch job's name
    vm: str
    epoch: int
    allocation: str
    job: str
    image: ImageManifest
    image_digest: str
    program: Program
    resources: Resources
    network: str = "none"  # none | restricted | outbound
    nics: tuple[Nic, ...] = ()  # its cards in private networks
    listen: str = ""  # FIRST-LAST: ports of its node at which pilots of the same site may come; empty: none do
    boot_timeout: int = 180  # seconds until the guest must have reported ready
    stop_grace: int = 20  # seconds that the program has between TERM and KILL, and the guest to power off
    beat: int = 10  # seconds between heartbeats
    grant: int = 0  # seconds that the guest may run after a beat that was answered; 0: it needs no answers
    hypervisor: str = "auto"  # or a HypervisorKind
    cpu: str = ""  # the processor that the guest sees: `host`, a baseline, or a model of QEMU's; empty: whichever
    instant: str = "auto"  # or never: the guest boots though a snapshot of it may be there
    successor: bool = False  # wait, ready to begin, for the word which checkpoint to go on from; see `BEGIN` in layout
    hold: bool = False  # with its guest ready, wait for the word to begin; see `BEGIN` in layout
    hostname: str = "guest"  # what the guest calls itself
    owner: str = ""  # whose it is, as the installation calls its user; for the site's accounts
    service: Service | None = None  # of a VM of a virtual infrastructure
    restore: Checkpoint | None = None  # take this guest up instead of booting; if that cannot be: `checkpoint`
    checkpoints: bool = False  # it is to be saved now and then, so it needs a hypervisor that can
    handover: HandOver | None = None  # save it before the walltime is over, to go on in another batch job
    sealed: bool = False  # its files came with the entry, sealed; else they are among the account's checkpoints
    probe: bool = False  # boot nothing: look at the node, and report
    debug: dict[str, str] = field(default_factory=dict)  # faults to provoke, in tests only
