"""What saving and resuming costs on this machine: ``python -m benchmarks``, or ``make bench``."""
