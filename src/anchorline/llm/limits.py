"""How many calls at once, and how many a minute: an adaptive number of slots, and token buckets. Nothing here polls.

The slots start at a moderate number and double each round trip while nothing pushes back; afterwards they grow by one
per `GROW_EVERY` successes, and faster back to where they were. Being throttled, or latency that rises, takes a quarter of
them away, once per round trip. Waiting is first come, first served; a pause that the endpoint asked for holds everybody.

>>> asyncio.run(Slots(most=8).acquire()) > 0
True
"""

from __future__ import annotations

import asyncio
from collections import deque

START = 16
GROW_EVERY = 4
RECOVER = 0.9
"""After being throttled, slots come back with each success up to this share of what they were, then one by one. Else calls
that are turned away at random (one in ten, by a quota that is shared) would pin the slots to a handful."""
SHRINK = 0.75
LATENCY_RATIO = 2.0
"""Latency has risen when the mean over a window (a quarter of a round trip) is this many times the usual one."""
HELPED = 0.9
"""A cut has helped when latency fell to this share of what it was."""
FALL, RISE = 0.1, 0.01
"""The weights of a faster and a slower window in the usual latency: near the fast end of what windows vary by, without
being fixed for ever by the luckiest one."""
WINDOW = 32
"""The least calls of a window: single replies vary by a lot."""
LONGEST_ROUND = 5.0
"""Seconds: an endpoint that takes a minute a call is not pressed for a minute before the next cut."""
LONGEST_PAUSE = 30.0


class Slots:
    """An adaptive limit of calls at once. Times are the running event loop's."""

    def __init__(self, *, most: int) -> None:
        self.most = most
        self.limit = float(min(START, most))
        self.in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._doubling = True
        self._successes = 0
        self._last_cut = self._last_trouble = float("-inf")
        self._rounds = 0
        self._round_trip = self._recover_to = 0.0
        self._resume_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._closed: Exception | None = None
        self._latency: dict[str, _Latency] = {}

    async def acquire(self) -> float:
        """Wait for a slot. Gives the time at which it was had; `close` makes it raise."""
        if self._closed is not None:
            raise self._closed.with_traceback(None)  # one error for all: its traceback must not grow with each
        loop = asyncio.get_running_loop()
        if self._waiting or self.in_flight >= int(self.limit) or loop.time() < self._resume_at:
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append(turn)
            self._wake()
            try:
                await turn  # whoever wakes it has taken the slot for it
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled() and turn.exception() is None:
                    self.release()
                raise
        else:
            self.in_flight += 1
        return loop.time()

    async def resumed(self) -> None:
        """Wait, with a slot, until no pause is on; `close` makes it raise."""
        loop = asyncio.get_running_loop()
        while self._closed is None and loop.time() < self._resume_at:
            await asyncio.sleep(self._resume_at - loop.time())
        if self._closed is not None:
            raise self._closed.with_traceback(None)

    def release(self) -> None:
        """Give a slot back."""
        self.in_flight -= 1
        self._wake()

    def success(self, started: float, *, stage: str) -> None:
        """A call that began at `started` was answered."""
        self._rounds = 0
        now = asyncio.get_running_loop().time()
        self._round_trip += 0.1 * (now - started - self._round_trip)
        # calls of one stage are alike; a judge's short reply says nothing about a reviser's long one
        window = self._latency.setdefault(stage, _Latency())
        if started < self._last_cut:
            window.before(now - started)
            return
        if window.has_risen(now - started, size=max(WINDOW, int(self.limit) // 4)):
            self._recover_to = 0.0
            self._cut(started, now)
        elif self.in_flight >= int(self.limit):  # spare slots prove nothing
            self._successes += 1
            if self._doubling or self.limit < self._recover_to or self._successes >= GROW_EVERY:
                self._successes = 0
                self.limit = min(self.limit + 1, self.most)

    def throttled(self, started: float, retry_after: float | None) -> None:
        """A call that began at `started` was turned away."""
        now = asyncio.get_running_loop().time()
        before = self.limit
        if self._cut(started, now):
            self._recover_to = RECOVER * max(before, self._recover_to)
        if retry_after is None:
            self.trouble(started)
        else:
            self._pause(now + retry_after)

    def trouble(self, started: float) -> None:
        """A call failed. With no success since the round trip before, everybody waits, longer each time."""
        now = asyncio.get_running_loop().time()
        if self._same_round(started, now, self._last_trouble):
            return
        self._last_trouble = now
        if self._rounds:
            self._pause(now + min(LONGEST_PAUSE, 0.25 * 2**self._rounds))
        self._rounds += 1

    def close(self, error: Exception) -> None:
        """Nobody gets a slot any more: those who wait and those who come get `error`."""
        self._closed = error
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(error)

    def _cut(self, started: float, now: float) -> bool:
        if self._same_round(started, now, self._last_cut):
            return False
        self._last_cut, self._doubling, self._successes = now, False, 0
        self.limit = max(1.0, self.limit * SHRINK)
        return True

    def _same_round(self, started: float, now: float, last: float) -> bool:
        """Whether a call set out before `last`, or so soon after it that nothing can have changed yet.

        Being turned away takes no time, while the calls that fill the endpoint take a round trip to leave it.
        """
        return started < last or now < last + min(self._round_trip, LONGEST_ROUND)

    def _pause(self, until: float) -> None:
        self._resume_at = max(self._resume_at, until)

    def _wake(self) -> None:
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._resume_at:
            if self._timer is None:
                self._timer = loop.call_at(self._resume_at, self._resume)
            return
        while self._waiting and self.in_flight < int(self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self.in_flight += 1
                turn.set_result(None)

    def _resume(self) -> None:
        self._timer = None
        self._wake()  # the pause may have been made longer meanwhile: then this sets the next timer


class _Latency:
    """Mean latency over windows of calls, beside the usual one."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0
        self._usual: float | None = None
        self._cut = False
        self._before: float | None = None

    def before(self, seconds: float) -> None:
        """Count a call that set out before the last cut: the latest of them tell how things were at the cut."""
        self._before = seconds if self._before is None else 0.8 * self._before + 0.2 * seconds

    def has_risen(self, seconds: float, *, size: int) -> bool:
        """Count one call; true where it ends a window that was slow."""
        self._sum += seconds
        self._count += 1
        if self._count < size:
            return False
        mean = self._sum / self._count
        self._sum, self._count = 0.0, 0
        before, self._before = self._before or mean, None
        if self._usual is None:
            self._usual = mean
        if mean <= LATENCY_RATIO * self._usual:
            self._cut = False
            self._usual += (mean - self._usual) * (FALL if mean < self._usual else RISE)
        elif self._cut and mean > HELPED * before:
            # fewer calls did not make them faster, so it is not their number: this is what calls take now
            self._cut = False
            self._usual = mean
        else:
            self._cut = True
        return self._cut


class Bucket:
    """So much a minute, at most a second's worth at once. It goes into debt, so that waiting takes one sleep.

    In any minute at most the limit and one second's worth of it (or one request) passes.
    """

    def __init__(self, per_minute: float) -> None:
        self._rate = per_minute / 60
        self._room = max(1.0, self._rate)
        self._level = self._room
        self._at: float | None = None

    def take(self, amount: float) -> float:
        """Take `amount` and learn for how many seconds to wait before using it. Less than nothing gives back."""
        now = asyncio.get_running_loop().time()
        if self._at is not None:
            self._level = min(self._room, self._level + (now - self._at) * self._rate)
        self._at = now
        self._level -= amount
        return max(0.0, -self._level / self._rate)
