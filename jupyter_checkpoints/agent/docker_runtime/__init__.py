"""The OCI runtime ``jupyter-checkpoints``, which Docker runs: two files that stand for themselves.

``setup --engine docker`` copies them to a place that only root may write (:mod:`..docker_setup`).
"""
