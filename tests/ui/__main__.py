"""``python -m tests.ui [ARGUMENTS of playwright test]``: the browser's tests alone."""

from __future__ import annotations

import os
import sys

from .lab import browse

sys.exit(browse(f"10.{128 + os.getpid() % 100}.0.0/16", sys.argv[1:]))
