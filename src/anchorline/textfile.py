"""A small text file of the user's (a recipe, a style, a prompt template), read whole; every mistake is one line.

>>> import tempfile
>>> file = Path(tempfile.mkdtemp()) / "calm.yaml"
>>> _ = file.write_bytes(b"name: calm")
>>> read_text(file, what="style", kind="YAML file", most=1000, error=ValueError)
'name: calm'
>>> read_text(file, what="style", kind="YAML file", most=4, error=ValueError)
Traceback (most recent call last):
ValueError: .../calm.yaml: has 10 bytes, a style at most 4; is this a style?
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import yaml


def read_text(path: str | Path, *, what: str, kind: str, most: int, error: Callable[[str], Exception]) -> str:
    """The file's text, without a byte-order mark. `what` it is and which `kind` of file it should be stand in messages.

    Raises what `error` makes of a message: the file cannot be read, is larger than `most` bytes, or is not UTF-8.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as problem:
        reason = problem.strerror or problem
        raise error(f"{path}: cannot read the {what} ({reason}); give the path of a {kind}") from None
    if len(raw) > most:
        raise error(f"{path}: has {len(raw)} bytes, a {what} at most {most}; is this a {what}?")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path}: is not UTF-8 (byte {problem.start + 1}); save it as UTF-8") from None


def yaml_problem(error: Exception) -> str:
    """What YAML's reader complains of, and where. Never the line itself: it may hold a key.

    >>> try:
    ...     yaml.safe_load("a: b: secret")
    ... except yaml.YAMLError as error:
    ...     yaml_problem(error)
    'line 1, column 5: mapping values are not allowed here'
    """
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return type(error).__name__ if isinstance(error, yaml.YAMLError) else " ".join(str(error).split())[:200]
