"""Events as log lines, until an audit log or an outbox wants them."""

from __future__ import annotations

import logging

from daydo_db import Tx
from daydo_kernel import Event

log = logging.getLogger("daydo.events")


class LogEvents:
    """An event sink that logs what happened; with ``tx`` only once it is committed."""

    async def emit(self, event: Event, tx: Tx | None = None) -> None:
        if tx is None:
            self._log(event)
        else:
            tx.after_commit(lambda: self._log(event))

    def _log(self, event: Event) -> None:
        facts = {"tenant": event.tenant, "subject": event.subject, **event.data}
        log.info(event.name, extra={"facts": facts})
