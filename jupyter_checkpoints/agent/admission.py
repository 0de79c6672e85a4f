"""Who may use the agent, and for whom a request is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from ..errors import NotAllowed
from .audit import Peer
from .identity import Identity, group_ids, identity_named, identity_of
from .records import Caller

#: Seconds for which what the user database said is believed.
_FRESH = 30.0


class Admission:
    """Turns the process at the other end of a socket into a :class:`Caller`; made once.

    Parameters
    ----------
    uids, groups:
        The users, and the groups whose members, may use the agent, besides root.
    """

    def __init__(self, uids: Sequence[int], groups: Sequence[str]) -> None:
        self._uids = frozenset(uids)
        self._groups = list(groups)
        self._known: dict[int, tuple[float, Identity, bool]] = {}

    async def caller(self, peer: Peer, named: str | None) -> Caller:
        """Who asks; ``named``: the user that the request is for, if it says so.

        Raises
        ------
        NotAllowed
            If the user may not use the agent, or is not root and names another.
        InvalidRequest
            If there is no user of that name.
        """
        if peer.uid == 0:
            if named is None:
                return Caller(0)
            identity = await asyncio.to_thread(identity_named, named)
            return Caller(identity.uid, identity)
        identity, admitted = await self._look_up(peer)
        if not admitted:
            groups = " or ".join(self._groups) or "(none is configured)"
            raise NotAllowed(
                f"User {peer.uid} may not use runtime checkpoints on this host.",
                reason=f"The agent serves members of the group {groups}.",
                hint="Ask an administrator to run `sudo usermod --append --groups "
                f"{(self._groups or ['GROUP'])[0]} USER`, and log in again.",
            )
        if named is not None:
            raise NotAllowed("Only root may act for another user.")
        return Caller(peer.uid, identity)

    async def _look_up(self, peer: Peer) -> tuple[Identity, bool]:
        now = time.monotonic()
        known = self._known.get(peer.uid)
        if known is not None and known[0] > now:
            return known[1], known[2]
        identity, admitted = await asyncio.to_thread(self._ask_database, peer)
        self._known[peer.uid] = (now + _FRESH, identity, admitted)
        return identity, admitted

    def _ask_database(self, peer: Peer) -> tuple[Identity, bool]:
        identity = identity_of(peer.uid, peer.gid)
        admitted = peer.uid in self._uids or not group_ids(self._groups).isdisjoint(
            [identity.gid, *identity.groups]
        )
        return identity, admitted
