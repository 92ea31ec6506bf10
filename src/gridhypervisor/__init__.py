"""GridHypervisor: a grid of batch sites, used as one machine that runs virtual machines."""

__version__ = "0.1.0"
