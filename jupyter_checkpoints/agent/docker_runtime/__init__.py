"""The OCI runtime ``jupyter-checkpoints``, which Docker runs.

``setup --engine docker`` copies it to a place that only root may write (:mod:`..docker_setup`),
with :mod:`..mounting`, the only thing outside of this package that it uses.
"""
