"""When to stop asking an endpoint that goes on failing, so that the remaining requests are not burnt.

>>> Breaker().failure(EndpointError("500"), now=0.0) is None
True
"""

from __future__ import annotations

from collections import Counter, deque

from anchorline.errors import CircuitOpen, EndpointError, RequestRefused, Throttled

IN_A_ROW = 20
"""So many failures with no success between them, and …"""
SECONDS = 60.0
"""… so long without a success: a hiccup of a few seconds stops nothing. Throttling alone may last longer."""
THROTTLED_SECONDS = 600.0
REFUSALS = 200
"""So many refusals in a row stop at once, whatever they are about. Rows are seldom all refused for what they hold."""
WINDOW = 200
SHARE = 0.9
"""Or this share of the last `WINDOW` finished calls failed, throttled ones left out."""
LONGEST_RETRY_AFTER = 600.0
"""An endpoint that asks for a longer wait than this (a daily quota) ends the run at once."""


class Breaker:
    """Counts what finished. `failure` gives the error that opens the circuit, or None."""

    def __init__(self) -> None:
        self._row: Counter[str] = Counter()
        self._of_all = 0
        self._last_success: float | None = None
        self._first: float | None = None
        self._recent: deque[tuple[float, bool]] = deque(maxlen=WINDOW)
        self._failed = 0
        self.open: CircuitOpen | None = None

    def success(self, now: float) -> None:
        """A call was answered."""
        self._last_success = now
        self._row.clear()
        self._of_all = 0
        self._note(now, failed=False)

    def failure(self, error: EndpointError, now: float) -> CircuitOpen | None:
        """A call failed."""
        if self.open is None:
            self._row[error.kind] += 1
            self._of_all += isinstance(error, RequestRefused) and error.of_all
            if self._first is None:
                self._first = now
            if not isinstance(error, Throttled):
                self._note(now, failed=True)
            seen = self._seen(error, now)
            if seen:
                self.open = CircuitOpen(
                    f"{seen}; the last said: {error}. The run stops here and keeps what was answered: see to the "
                    "endpoint, then run the same command again (--retry-failed asks the failed requests once more)"
                )
        return self.open

    def _seen(self, error: EndpointError, now: float) -> str | None:
        if isinstance(error, Throttled) and (error.retry_after or 0.0) > LONGEST_RETRY_AFTER:
            return f"the endpoint asks to wait {error.retry_after:.0f} s before the next request"
        in_a_row = self._row.total()
        if in_a_row >= IN_A_ROW:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self._row.most_common())
            assert self._first is not None
            quiet = now - (self._first if self._last_success is None else self._last_success)
            if self._row[RequestRefused.kind] == in_a_row:
                # where they may be about what the rows hold (too long, all of them), it takes more of them, not time
                if self._of_all == in_a_row or in_a_row >= REFUSALS:
                    return f"the endpoint refused {in_a_row} requests in a row"
            elif quiet >= (THROTTLED_SECONDS if self._row[Throttled.kind] == in_a_row else SECONDS):
                return f"no request was answered for {quiet:.0f} s ({in_a_row} failures in a row: {kinds})"
        recent = len(self._recent)
        if recent == WINDOW and self._failed >= SHARE * recent and now - self._recent[0][0] >= SECONDS:
            return f"{self._failed} of the last {recent} requests failed"
        return None

    def _note(self, now: float, *, failed: bool) -> None:
        if len(self._recent) == WINDOW:
            self._failed -= self._recent[0][1]
        self._recent.append((now, failed))
        self._failed += failed
