"""Rows of a data set on the Hugging Face Hub, named `owner/name` or `owner/name:split`.

The one place that asks `datasets`, which is imported when it is first needed: it is slow to import, and a user of local
files never needs it.

>>> looks_like_hub_id("some-lab/preferences:test"), looks_like_hub_id("./pairs.jsonl")
(True, False)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from anchorline.errors import DataError

_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<split>[\w.-]+))?")
DEFAULT_SPLIT = "train"


def looks_like_hub_id(source: str) -> bool:
    """Whether the text has the form of a hub id. The caller looks for a file of that name first."""
    return _ID.fullmatch(source) is not None


def hub_rows(source: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number from 1 and row of each row of the split (default `train`)."""
    found = _ID.fullmatch(source)
    assert found, source
    split = found["split"] or DEFAULT_SPLIT
    try:
        import datasets

        rows = datasets.load_dataset(found["name"], split=split)
    except Exception as error:  # The library raises errors of many packages: network, cache, builder, file formats.
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        advice = (
            "check the name and the network; in offline mode (HF_HUB_OFFLINE=1) only data sets in the cache can be read"
        )
        raise DataError(f"no such file, and not readable as a hub data set: {first} ({advice})", file=source) from None
    for line, row in enumerate(rows, start=1):
        yield line, dict(row)
