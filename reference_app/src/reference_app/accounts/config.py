"""Whose users these are, what they pay with, and the settings of invite codes."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from daydo_kernel import Config

TENANT: Final = "main"
CREDITS: Final = "credits"
FRESH_S: Final = 900.0
"""How long ago somebody may have proven who they are, for what cannot be taken back."""


class SignUpCredits(msgspec.Struct, frozen=True, kw_only=True):
    """What a new user is given: ``welcome`` once, ``daily`` each day by Beijing's clock, gone at its end; 0 is none."""

    welcome: int = 0
    daily: int = 0


class InvitesConfig(Config, frozen=True, kw_only=True):
    """Invite codes and what they are worth.

    Attributes:
        pool_size: codes that lie ready; one of the workers makes the missing ones.
        refill_s: how often a worker looks whether any are missing.
        open_max: codes that one user may have and nobody has used yet.
        claim_within_s: how long after registering somebody may still say who invited them.
        inviter_credits, invited_credits: granted to whose code was used, and to who used it.
        drain_s: how long leaving waits for a refill.
    """

    pool_size: Annotated[int, Meta(ge=1, le=100_000)] = 1_000
    refill_s: Annotated[float, Meta(ge=0.1, le=3_600)] = 10.0
    open_max: Annotated[int, Meta(ge=1, le=1_000)] = 20
    claim_within_s: Annotated[float, Meta(ge=0, le=31_536_000)] = 604_800.0
    inviter_credits: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    invited_credits: Annotated[int, Meta(ge=0, le=1_000_000)] = 0
    drain_s: Annotated[float, Meta(ge=0, le=60)] = 5.0
