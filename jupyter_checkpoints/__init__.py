"""Runtime checkpoints for Jupyter: save a running kernel, and continue from it later."""

__version__ = "0.1.0"
