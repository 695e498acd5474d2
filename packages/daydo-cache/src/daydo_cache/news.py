"""What was heard while a read was under way.

An answer of Redis and the news of an invalidation come over two connections, in any order. So whoever reads takes a
mark first, and keeps what was read only if nothing was heard of it since.
"""

from __future__ import annotations


class News:
    """Remembers the last ``bound`` names; of older ones it says that there may have been news."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._last: dict[str, int] = {}
        self._forgotten = 0
        self.mark = 0

    def note(self, name: str) -> None:
        """Something happened to ``name``."""
        self.mark += 1
        self._last.pop(name, None)
        self._last[name] = self.mark
        if len(self._last) > 2 * self._bound:
            # By the half, because taking one from the front of a dict gets slower with every one taken.
            for old in list(self._last)[: self._bound]:
                self._forgotten = self._last.pop(old)

    def note_all(self) -> None:
        """Something may have happened to any name."""
        self.mark += 1
        self._last.clear()
        self._forgotten = self.mark

    def quiet(self, name: str, mark: int) -> bool:
        """Whether nothing has happened to ``name`` since ``mark``."""
        return mark >= self._forgotten and self._last.get(name, 0) <= mark
