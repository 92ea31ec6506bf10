"""Where things lie in an account's workdir, and what they are called in an entry of its spool.

One PilotJob has one folder, its *entry*, `WORKDIR/spool/NAME/`, mode 0700:

    manifest.json   written by the relay before the submission, never changed after
    ticket.json     where the relay listens, of a probe: by what the node comes in there; and of a VM with a private
                    network: by what its pilot and others know each other; 0600
    checkpoint.key  where a copy of a checkpoint came along: the key that opens it, in hex; 0600
    checkpoint/     that copy: its parts, sealed; see sealing
    in/             inputs, as the job names them
    owner           taken once, by link(2): whoever took it may act for the VM (pilot) or has ended it (controller)
    status.json     the pilot's last word, replaced whole at each phase and each beat
    stdout stderr   what the program printed, appended as it comes
    console.log     the guest's serial console
    pilot.log       the pilot's own log
    batch.log       what the batch script printed, e.g. why the bundle could not start
    control/        the controller's words, one file each: `cancel`, in which stands why (where that begins with
                    `moved`, the job is to go on elsewhere); `begin`: all of its gang are ready, and who they are; or of
                    a successor: the checkpoint from which it goes on, as JSON;
                    `grant-N`: the beat of number N was answered; `save-N`: save the guest, and `end: WHY`,
                    `go-on: WHY` or `hand-over: WHY`; N counts up from 1; `network-N`: version N of who is in the
                    VM's private networks; and `exec-N`: run a command in the guest, beside its program (`Execute`); N
                    grows, and the pilot removes it when it has taken it
    exec/           of each of the last commands N: what it printed, in `N.out` and `N.err`; when it has ended, `N.json`
    out/            the outputs, complete before `exit.json` appears
    exit.json       the exit sentinel: written once, durably, last
"""

from __future__ import annotations

# The names inside an entry.
MANIFEST, TICKET, OWNER, STATUS, EXIT = "manifest.json", "ticket.json", "owner", "status.json", "exit.json"
STDOUT, STDERR, CONSOLE, PILOT_LOG, BATCH_LOG = "stdout", "stderr", "console.log", "pilot.log", "batch.log"
INPUTS, OUTPUTS, CONTROL, CANCEL = "in", "out", "control", "cancel"
KEY, SEALED = "checkpoint.key", "checkpoint"

BEGIN = "begin"
"""In control/: the guests of all members of the gang are ready. It holds a line for each, which the guest gets as its
`GHV_GANG_MEMBERS`: index, name, site and node, with a space between. Of a successor: nothing of the attempt before it
can run any more. It holds the checkpoint from which it goes on."""

GANG_MEMBERS = "/run/ghv/gang"
"""In the guest: that list."""

GRANT = "grant-"
"""Before a beat's number, in control/. A name and no file's content: a listing is the freshest that a network file
system gives."""

SAVE, SAVE_END, SAVE_GO_ON, SAVE_HAND_OVER = "save-", "end", "go-on", "hand-over"
"""Before a wish's number, in control/; and how its content begins. Saved to the end, the guest is suspended: its pilot
ends. To go on: a checkpoint. For a hand-over its pilot ends, too: the next one waits. `cancel` goes before all."""

SAVE_PAUSE, SAVE_UNPAUSE = "pause", "unpause"
"""Contents of such a wish by which nothing is saved: the guest stands still in its place, or goes on."""

EXECUTE, EXECUTIONS = "exec-", "exec"
"""Before a command's number, in control/; and the folder for what commands have printed and how they ended."""

NETWORK = "network-"
"""Before a version's number, in control/; what stands in it is a `NetworkTable`. Older ones are removed."""

BURIED = ".buried"
"""Below the spool: the names of removed entries, so that nothing late can bring one back to life."""

# The folders of an account's workdir.
SPOOL, CACHE, BUNDLES, CHARGES = "spool", "cache", "bundle", "charges"
SNAPSHOTS, CHECKPOINTS = "snapshots", "checkpoints"

OPEN = "open"
"""Another: `open/POOL/ENTRY`, an empty file, says that a pilot of this pool may serve this entry, whichever batch job
it came with. Only a hint: who takes `owner` has it. Whoever finds it taken or gone removes this."""
