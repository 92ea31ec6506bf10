"""`python -m gridhypervisor.cli`: the same as `ghv`."""

from gridhypervisor.cli.main import main

main()
