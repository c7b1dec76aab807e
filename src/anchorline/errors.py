"""Every error that anchorline raises on purpose.

    AnchorlineError            exit code 1
    ├── UserError              exit code 2: something that the user can put right; also a ValueError
    │   ├── RecipeError        the recipe or a setting
    │   ├── StyleError         a style file
    │   │   └── RuleConflict   two rules that no answer can keep together
    │   ├── DataError          a data file or a row in it: file, line, field
    │   ├── ModelError         a model that is missing, unknown, or of a kind that the engine refuses
    │   ├── CacheError         a request cache that cannot be read or written; it ends the run
    │   ├── KeyRefused         an endpoint that does not take the API key (401, or 403 before any answer)
    │   └── RunFolderError     a run folder that cannot be written, or that is in use
    ├── EndpointError          one request that an endpoint did not answer; `kind` is a short word for counting
    │   ├── Throttled          "throttled": 429 or 503; `retry_after` in seconds, if it named a time
    │   ├── ServerError        "server": the endpoint's own trouble (any other 5xx)
    │   ├── EndpointTimeout    "timeout": no answer in time; also a TimeoutError
    │   ├── ConnectionLost     "connection": no connection, or one that broke; also a ConnectionError
    │   ├── BadReply           "bad_reply": an answer that cannot be read; also a ValueError
    │   └── RequestRefused     "refused_request": a 4xx that asking again will not mend
    ├── BudgetReached          the run's limit of money or tokens; it ends the run cleanly
    ├── CircuitOpen            an endpoint that goes on failing; it ends the run cleanly
    ├── TrainingError          training that cannot go on
    │   └── Diverged           a loss or a gradient that is not a number; `what`, without the way out
    ├── EndedElsewhere         another process of the run failed first, and has said why; nothing is printed
    └── MissingExtra           a part that is not installed, with the command that installs it; also an ImportError

A message says what was got, what was expected, and what to do.
"""

from __future__ import annotations

from pathlib import Path


class AnchorlineError(Exception):
    """The root of the tree above."""

    exit_code = 1


class UserError(AnchorlineError, ValueError):
    """Something that the user can put right."""

    exit_code = 2


class RecipeError(UserError):
    """A recipe, or a setting given on the command line, that cannot be used."""


class StyleError(UserError):
    """A style file that cannot be used."""


class RuleConflict(StyleError):
    """Two rules that no answer can keep together; the message names both."""


class DataError(UserError):
    """A data file, or one row of it, that cannot be used.

    >>> str(DataError("is empty", file="a.jsonl", line=3, field="prompt"))
    'a.jsonl:3: prompt: is empty'
    """

    def __init__(
        self, message: str, *, file: str | Path | None = None, line: int | None = None, field: str | None = None
    ) -> None:
        place = "" if file is None else f"{file}:{line}: " if line is not None else f"{file}: "
        super().__init__(place + (f"{field}: " if field else "") + message)
        self.file, self.line, self.field = file, line, field


class CacheError(UserError):
    """A request cache that cannot be read or written: no row's own fault, and every further reply would be paid and lost."""


class ModelError(UserError):
    """A model that is missing, unknown, or of a kind that the engine refuses."""


class KeyRefused(UserError):
    """An endpoint that does not take the API key; every further request would be refused too."""


class RunFolderError(UserError):
    """A run folder that cannot be written, or that another run is using."""


class EndpointError(AnchorlineError):
    """One request that an endpoint did not answer. The row it was for is a failure; the run goes on."""

    kind: str = "endpoint"


class Throttled(EndpointError):
    """Too many requests. `retry_after` is the wait in seconds that the endpoint asked for, if it named one."""

    kind = "throttled"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServerError(EndpointError):
    """The endpoint's own trouble: 5xx."""

    kind = "server"


class EndpointTimeout(EndpointError, TimeoutError):
    """No answer in time."""

    kind = "timeout"


class ConnectionLost(EndpointError, ConnectionError):
    """No connection, or one that broke before the answer was there."""

    kind = "connection"


class BadReply(EndpointError, ValueError):
    """An answer that is not what the interface promises: broken JSON, no choice, no text.

    `used` is what the endpoint wants paid for it all the same, in tokens of prompt and reply, if it told.
    """

    kind = "bad_reply"

    def __init__(self, message: str, *, used: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.used = used


class RequestRefused(EndpointError):
    """A request that the endpoint refuses (4xx): asking again will not mend it, before the user has mended something.

    `of_all` where it says nothing about this request: no credit, no such model.
    """

    kind = "refused_request"

    def __init__(self, message: str, *, of_all: bool = False) -> None:
        super().__init__(message)
        self.of_all = of_all


UNANSWERED = frozenset(
    e.kind for e in (EndpointError, Throttled, ServerError, EndpointTimeout, ConnectionLost, BadReply, RequestRefused)
)
"""Kinds of failed rows that may get an answer when they are asked for again (`--retry-failed`)."""


class BudgetReached(AnchorlineError):
    """The run's limit of money or tokens is reached. What was answered is kept; the message says how to go on."""


class CircuitOpen(AnchorlineError):
    """An endpoint goes on failing, so the run stops instead of burning its remaining requests."""


class TrainingError(AnchorlineError, RuntimeError):
    """Training that cannot go on."""


class Diverged(TrainingError):
    """A loss or a gradient that is not a number."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}; lower train.learning_rate, or set train.dtype to float32")
        self.what = what


class EndedElsewhere(AnchorlineError):
    """Another process of the same run failed before this one, and has said why."""


class MissingExtra(AnchorlineError, ImportError):
    """A part that is not installed."""

    exit_code = 2

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs packages that are not installed; in anchorline's checkout: "
            f"pip install -c constraints.txt '.[{extra}]'"
        )
