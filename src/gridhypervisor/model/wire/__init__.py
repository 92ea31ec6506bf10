"""What crosses between the controller, the relay, the pilot and the guest's owner file: names, records, framing.

Both sides import it, so it uses the standard library alone (it travels in the bundle) and does no I/O. It says what the
bytes mean; who sends them when is decided in `planning` and carried out in `agent`. Each story has a module of its own:

    layout      where things lie in an account's workdir, and in an entry of its spool
    states      the closed sets of words: phases, how a pilot ended and why
    timings     how long what is done with a guest takes
    hypervisors the ways to run a guest, and what each of them can
    processors  what processors guests may be shown
    manifest    what the controller tells a pilot, once
    network     who is in a private network, and where
    node        what a probe job says of its node
    entry       what an entry says of its allocation: owner, status, sentinel
    checkpoints a running guest as files, to be taken up again
    handover    how a program goes on beyond its batch job's walltime
    sealing     the same where they leave their site
    requests    what a relay is asked for, and says unasked
    plain       records as JSON's own types and back, checked
    frames      messages on a pipe
    carrying    what a courier on a node asks of the relay, where nodes do not see the workdir
    outputs     which paths in a tar stream are outputs
    sharing     whom a pilot may serve that came with another's batch job
    lending     what a lender allows, what is in use of it, and whether one more VM fits

All that they define is found here too, and imported when it is first asked for: a guest's start waits for what its
pilot imports, and whoever types `ghv` for what that does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gridhypervisor.model.wire.carrying import *  # noqa: F403
    from gridhypervisor.model.wire.checkpoints import *  # noqa: F403
    from gridhypervisor.model.wire.entry import *  # noqa: F403
    from gridhypervisor.model.wire.frames import *  # noqa: F403
    from gridhypervisor.model.wire.handover import *  # noqa: F403
    from gridhypervisor.model.wire.hypervisors import *  # noqa: F403
    from gridhypervisor.model.wire.layout import *  # noqa: F403
    from gridhypervisor.model.wire.lending import *  # noqa: F403
    from gridhypervisor.model.wire.manifest import *  # noqa: F403
    from gridhypervisor.model.wire.network import *  # noqa: F403
    from gridhypervisor.model.wire.node import *  # noqa: F403
    from gridhypervisor.model.wire.outputs import *  # noqa: F403
    from gridhypervisor.model.wire.plain import *  # noqa: F403
    from gridhypervisor.model.wire.processors import *  # noqa: F403
    from gridhypervisor.model.wire.requests import *  # noqa: F403
    from gridhypervisor.model.wire.sealing import *  # noqa: F403
    from gridhypervisor.model.wire.sharing import *  # noqa: F403
    from gridhypervisor.model.wire.states import *  # noqa: F403
    from gridhypervisor.model.wire.timings import *  # noqa: F403

PROTOCOL = 1
"""Version of everything in this package. A relay or pilot of another version is refused, never guessed at."""

_STORIES = {
    "states": "Phase WRAPPER Outcome Reason RETRYABLE MOVES",
    "timings": "OperationKind Timing",
    "hypervisors": "HypervisorKind Capabilities CAPABILITIES Needs HypervisorUsed",
    "processors": "HOST COMMON BASELINES EMULATED UNKNOWN baseline_of reaches common qemu_words",
    "layout": (
        "MANIFEST TICKET OWNER STATUS EXIT STDOUT STDERR CONSOLE PILOT_LOG BATCH_LOG INPUTS OUTPUTS CONTROL CANCEL "
        "BEGIN GANG_MEMBERS GRANT SAVE SAVE_END SAVE_GO_ON SAVE_HAND_OVER SAVE_PAUSE SAVE_UNPAUSE NETWORK EXECUTE "
        "EXECUTIONS BURIED SPOOL CACHE BUNDLES CHARGES SNAPSHOTS CHECKPOINTS OPEN KEY SEALED"
    ),
    "manifest": "Layer ImageManifest Input Program Resources MTU MAX_MTU Nic ReadyProbe Service Manifest",
    "network": "Member Lan NetworkTable",
    "node": "Proven Reached NodeReport",
    "entry": (
        "OwnerRecord PhaseTime Effort LEAST_WANTED MOST_PRINTED MOST_INPUT LONGEST_COMMAND Execute Executed Status "
        "OutputFile CpuUsage ExitRecord EntryView"
    ),
    "checkpoints": "Part Checkpoint Saved",
    "handover": "SETTLE LEAST_RATE HandOver save_seconds",
    "sealing": "FRAME KEY_BYTES NONCE TAG SEAL frames_of sealed_size bound_to",
    "requests": "Op Note Command CommandResult",
    "plain": "WireError to_plain from_plain is_text canonical one_line",
    "frames": "MAX_LINE MAX_PAYLOAD encode Decoder",
    "carrying": (
        "Carry CANCEL_NOTE BEGIN_NOTE GRANT_NOTE SAVE_NOTE NETWORK_NOTE NOTES GATE_PORTS RELAY_NAME Ticket PIECE"
    ),
    "outputs": "declared leads_inside",
    "sharing": "suits",
    "lending": "Period Share NO_SHARE Terms Use Lending Charge obstacle",
}
_STORY_OF = {name: story for story, names in _STORIES.items() for name in names.split()}

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Import a name's story when the name is first asked for."""
        story = _STORY_OF.get(name)
        if story is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{story}"), name)
        globals()[name] = value
        return value
