"""Which runtime checkpoints are kept, and which may go. Pure decisions on plain data.

Used by the server after each save, and by ``jupyter checkpoints prune``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from msgspec import Struct

from .models import CheckpointModel


class Policy(Struct, frozen=True, kw_only=True):
    """How much to keep. Zero means: this rule keeps nothing, or (quotas) there is no limit.

    Never deleted by it: pinned ones, and the newest of each runtime. Manual and named ones go
    only where a quota leaves no other choice.
    """

    last: int = 10
    """So many of the newest of each runtime."""
    hourly: int = 0
    """The newest of each of the last so many hours that have one; the same for the others."""
    daily: int = 7
    weekly: int = 4
    runtime_quota: int = 0
    """Bytes for each runtime."""
    user_quota: int = 0
    """Bytes for all of them."""


class Verdict(Struct, frozen=True, kw_only=True):
    """A checkpoint that may go, and why."""

    checkpoint: str
    runtime: str
    reason: str
    bytes: int
    """What deleting it frees."""


def prunable(
    checkpoints: Iterable[CheckpointModel], sizes: Mapping[str, int], policy: Policy
) -> list[Verdict]:
    """The checkpoints that ``policy`` does not keep, oldest first within each runtime.

    Checkpoints without a runtime belong to nobody's notebook and are left alone.

    Parameters
    ----------
    sizes:
        Bytes really held by each checkpoint, by id.
    """
    lines: dict[str, list[CheckpointModel]] = defaultdict(list)
    for checkpoint in sorted(checkpoints, key=lambda c: (c.created, c.id), reverse=True):
        if checkpoint.runtime:
            lines[checkpoint.runtime].append(checkpoint)
    verdicts: list[Verdict] = []
    remaining: list[CheckpointModel] = []
    for line in lines.values():
        kept = _kept(line, policy)
        doomed = [c for c in line if c.id not in kept and not _wanted(c)]
        verdicts += [_verdict(c, sizes, "not among those to keep") for c in reversed(doomed)]
        left = [c for c in line if c not in doomed]
        over = _over_quota([left], sizes, policy.runtime_quota)
        verdicts += [_verdict(c, sizes, "the runtime's quota is used up") for c in over]
        remaining += [c for c in left if c not in over]
    rest: dict[str, list[CheckpointModel]] = defaultdict(list)
    for checkpoint in remaining:
        rest[checkpoint.runtime].append(checkpoint)
    over = _over_quota(list(rest.values()), sizes, policy.user_quota)
    return verdicts + [_verdict(c, sizes, "the user's quota is used up") for c in over]


def _wanted(checkpoint: CheckpointModel) -> bool:
    """Somebody wanted this very one."""
    return checkpoint.pinned or bool(checkpoint.name) or checkpoint.trigger == "manual"


def _kept(line: Sequence[CheckpointModel], policy: Policy) -> set[str]:
    """The ids that a rule keeps, of one runtime, newest first."""
    kept = {c.id for c in line[: max(1, policy.last)]}
    for count, pattern in (
        (policy.hourly, "%Y-%m-%d %H"),
        (policy.daily, "%Y-%m-%d"),
        (policy.weekly, "%G-%V"),
    ):
        seen: set[str] = set()
        for checkpoint in line:
            period = datetime.fromisoformat(checkpoint.created).strftime(pattern)
            if period not in seen and len(seen) < count:
                seen.add(period)
                kept.add(checkpoint.id)
    return kept


def _over_quota(
    lines: Sequence[Sequence[CheckpointModel]], sizes: Mapping[str, int], quota: int
) -> list[CheckpointModel]:
    """What has to go so that ``lines`` (each newest first) fit: autosaves first, oldest first."""
    excess = sum(sizes.get(c.id, 0) for line in lines for c in line) - quota
    if not quota or excess <= 0:
        return []
    candidates = [c for line in lines for c in line[1:] if not c.pinned]
    candidates.sort(key=lambda c: (_wanted(c), c.created, c.id))
    over = []
    for checkpoint in candidates:
        if excess <= 0:
            break
        over.append(checkpoint)
        excess -= sizes.get(checkpoint.id, 0)
    return over


def _verdict(checkpoint: CheckpointModel, sizes: Mapping[str, int], reason: str) -> Verdict:
    return Verdict(
        checkpoint=checkpoint.id,
        runtime=checkpoint.runtime,
        reason=reason,
        bytes=sizes.get(checkpoint.id, 0),
    )
