"""Where things lie in an account's workdir, and what they are called in an entry of its spool.

One PilotJob has one folder, its *entry*, `WORKDIR/spool/NAME/`, mode 0700:

    manifest.json   written by the relay before the submission, never changed after
    ticket.json     of a probe, where the relay listens: by what the node comes in there; 0600
    in/             inputs, as the job names them
    owner           taken once, by link(2): whoever took it may act for the VM (pilot) or has ended it (controller)
    status.json     the pilot's last word, replaced whole at each phase and each beat
    stdout stderr   what the program printed, appended as it comes
    console.log     the guest's serial console
    pilot.log       the pilot's own log
    batch.log       what the batch script printed, e.g. why the bundle could not start
    control/        the controller's wishes, one file each: `cancel`; and `grant-N`: the beat of number N was answered
    out/            the outputs, complete before `exit.json` appears
    exit.json       the exit sentinel: written once, durably, last
"""

from __future__ import annotations

# The names inside an entry.
MANIFEST, TICKET, OWNER, STATUS, EXIT = "manifest.json", "ticket.json", "owner", "status.json", "exit.json"
STDOUT, STDERR, CONSOLE, PILOT_LOG, BATCH_LOG = "stdout", "stderr", "console.log", "pilot.log", "batch.log"
INPUTS, OUTPUTS, CONTROL, CANCEL = "in", "out", "control", "cancel"

GRANT = "grant-"
"""Before a beat's number, in control/. A name and no file's content: a listing is the freshest that a network file
system gives."""

BURIED = ".buried"
"""Below the spool: the names of removed entries, so that nothing late can bring one back to life."""

# The folders of an account's workdir.
SPOOL, CACHE, BUNDLES, CHARGES = "spool", "cache", "bundle", "charges"
