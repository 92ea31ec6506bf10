"""What GridHypervisor costs, measured: one module a figure. `python -m benchmarks [NAME…]`; see `__main__`."""
