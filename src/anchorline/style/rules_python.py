"""A rule in Python: a function `(prompt, answer) -> repaired answer` of a module that can be imported.

    def sign(prompt, answer):
        return answer if "Harbour" in answer else answer + " Harbour"

It runs with the user's rights, so a style that names one is refused unless the user trusts it (`--trust-code`).
"""

from __future__ import annotations

import importlib.util
import reprlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import StringConstraints

from anchorline.errors import StyleError
from anchorline.style.frame import Frame
from anchorline.style.rule import BaseRule, Name
from anchorline.types import Messages

Repairer = Callable[[Messages, str], object]


class Python(BaseRule):
    """The function leaves the answer as it is. Repair: what the function returns."""

    kind: Literal["python"] = "python"
    name: Name = "python"
    function: Annotated[str, StringConstraints(max_length=300, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """`module:function`; the module is imported as Python finds it (`PYTHONPATH`, installed packages)."""

    def kept(self, prompt: Messages, text: str) -> bool:
        return self._called(prompt, text) == text

    def repaired(self, prompt: Messages, text: str, frame: Frame) -> str:
        return self._called(prompt, text)

    def load(self) -> Repairer:
        """The function itself."""
        try:
            return _loaded(self.function)
        except StyleError as error:
            raise StyleError(f"rule {self.name!r}: {error}") from error.__cause__

    def file(self) -> Path | None:
        """The file of the module that is named; None where it has none. Modules that it imports are not looked at."""
        spec = importlib.util.find_spec(self.function.partition(":")[0])
        return Path(spec.origin) if spec and spec.has_location and spec.origin else None

    def _called(self, prompt: Messages, text: str) -> str:
        function = self.load()
        try:
            result = function(prompt, text)
        except Exception as error:
            what = f"raised {type(error).__name__}: {error}"
            raise StyleError(
                f"{self._at(prompt, text)} {what}; mend it, or let it return the answer as it is"
            ) from error
        if not isinstance(result, str):
            raise StyleError(f"{self._at(prompt, text)} returned {type(result).__name__}; return the answer as str")
        return result

    def _at(self, prompt: Messages, text: str) -> str:
        asked = reprlib.repr(prompt[-1].content if prompt else "")
        return f"rule {self.name!r}: on the prompt {asked} with the answer {reprlib.repr(text)}, {self.function}"


@lru_cache(maxsize=64)
def _loaded(spec: str) -> Repairer:
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise StyleError(f"cannot import {module_name!r} ({what}); put its folder on PYTHONPATH or mend it") from error
    function = vars(module).get(name)
    if not callable(function):
        raise StyleError(f"the module {module_name!r} has no function {name!r}; write one that takes (prompt, answer)")
    return function
