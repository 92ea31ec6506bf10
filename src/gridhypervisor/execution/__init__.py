"""The loop observe → plan → commit → act. It carries out what `planning` decides and decides nothing itself."""
