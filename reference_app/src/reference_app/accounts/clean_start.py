"""When an account changes hands: whoever proves a phone that somebody else had registered finds nothing of theirs.

Credits stay, and the books of them; it was daydo-auth that took away password, sessions, keys and roles. Nobody can get
in while this runs, and whatever fails here is done again by the next proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from daydo_db import Database, Tx
from daydo_kernel import Event, EventSink

from .privacy import Belongings
from .repository import Profiles
from .tables import Profile

_NOTHING: Final[dict[Any, None]] = {Profile.nickname: None, Profile.avatar: None, Profile.gender: None}


class CleanStart:
    """A :class:`daydo_auth.StartClean`: the profile is empty again, and what other domains keep is gone."""

    def __init__(
        self, db: Database, profiles: Profiles, belongings: Sequence[Belongings], *, events: EventSink
    ) -> None:
        self._db = db
        self._profiles = profiles
        self._belongings = belongings
        self._events = events

    async def __call__(self, tenant: str, subject: str) -> None:
        for domain in self._belongings:
            await domain.forget(tenant, subject)

        async def write(tx: Tx) -> None:
            await self._profiles.change(tenant, subject, _NOTHING, tx=tx)
            await self._events.emit(Event(name="account.started_clean", tenant=tenant, subject=subject), tx)

        await self._db.run(write)
