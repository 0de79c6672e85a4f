"""``python -m tests.ui [ARGUMENTS of playwright test]``: the browser's tests alone."""

from __future__ import annotations

import sys

from .lab import browse

sys.exit(browse(*sys.argv[1:]))
