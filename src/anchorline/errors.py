"""Every error that anchorline raises on purpose.

    AnchorlineError            exit code 1
    ├── UserError              exit code 2: something that the user can put right; also a ValueError
    │   ├── RecipeError        the recipe or a setting
    │   ├── StyleError         a style file
    │   │   └── RuleConflict   two rules that no answer can keep together
    │   ├── DataError          a data file or a row in it: file, line, field
    │   ├── ModelError         a model that is missing, unknown, or of a kind that the engine refuses
    │   └── RunFolderError     a run folder that cannot be written, or that is in use
    ├── TrainingError          training that cannot go on (a loss that is not a number)
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


class ModelError(UserError):
    """A model that is missing, unknown, or of a kind that the engine refuses."""


class RunFolderError(UserError):
    """A run folder that cannot be written, or that another run is using."""


class TrainingError(AnchorlineError, RuntimeError):
    """Training that cannot go on."""


class MissingExtra(AnchorlineError, ImportError):
    """A part that is not installed."""

    exit_code = 2

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs packages that are not installed: pip install 'anchorline[{extra}]'")
