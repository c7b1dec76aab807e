"""Data sets on the Hugging Face Hub: the rows of one, named `owner/name` or `owner/name:split`, and a folder pushed to one.

The one place that asks `datasets` and `huggingface_hub`, which are imported when they are first needed: they are slow to
import, and a user of local files never needs them. The token is theirs: it never passes through here.

>>> looks_like_hub_id("some-lab/preferences:test"), looks_like_hub_id("./pairs.jsonl")
(True, False)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anchorline.errors import DataError, RecipeError

_ID = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(:(?P<split>[\w.-]+))?")
_TOKEN = re.compile(r"hf_\w{4,}")
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


def check_repository(repository: str) -> None:
    """RecipeError unless the name is one that a folder can be pushed to."""
    if not looks_like_hub_id(repository) or ":" in repository:
        raise RecipeError(f"--push-to-hub {repository!r}: expected owner/name")


def push_folder(folder: Path, repository: str, *, private: bool) -> str:
    """Make the data set if it is not there, upload the card and `data/`, and return its address.

    A data set that is there and public is refused where `private` is asked: the Hub would leave it public.
    """
    check_repository(repository)
    try:
        from huggingface_hub import HfApi

        api = HfApi()
        # without the wish for privacy, the default of the owner's account holds
        api.create_repo(repository, repo_type="dataset", private=private or None, exist_ok=True)
        public = private and not api.repo_info(repository, repo_type="dataset").private
        if not public:
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                repo_type="dataset",
                commit_message="Pairs by anchorline",
                allow_patterns=["README.md", "data/*"],
                delete_patterns=["data/train.*"],
            )
    except Exception as error:  # Errors of many packages: network, HTTP status, name, token.
        first = _TOKEN.sub("hf_…", (str(error).strip() or type(error).__name__).splitlines()[0])
        raise DataError(
            f"could not be pushed: {first} (log in with `hf auth login` or set HF_TOKEN, then run the same command again)",
            file=repository,
        ) from None
    if public:
        raise DataError(
            "is there already and public; make it private on the Hub, or leave --private out", file=repository
        )
    return f"https://huggingface.co/datasets/{repository}"
