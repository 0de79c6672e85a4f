"""With whom a checkpoint is shared, in words: numbers of users have names, and sharing has a price.

The agent grants, and knows users by number; the command line and REST say the rest with this.
"""

from __future__ import annotations

import pwd

from msgspec import Struct

from .models import CheckpointModel, Grantee

#: Told to whoever shares a checkpoint.
WARNING = """\
What the kernel had in memory is theirs to read: passwords, keys, tokens, other people's data.
Their kernels continue its random numbers, and may be known to other services as you."""


class Share(Struct, frozen=True, kw_only=True):
    """One of those who may copy a checkpoint."""

    user: Grantee
    """The number of a user of this host, or ``*`` for everybody who may use the agent."""
    name: str
    """His name; his number if he is gone, and ``*`` for everybody."""


def shares_of(checkpoint: CheckpointModel) -> list[Share]:
    """Who else may copy it. Blocks: looks users up."""
    return [Share(user=user, name=name_of(user)) for user in checkpoint.shares]


def name_of(user: Grantee) -> str:
    """What a user is called. Blocks: looks him up."""
    if user == "*":
        return user
    try:
        return pwd.getpwuid(int(user)).pw_name
    except KeyError:
        return str(user)
