"""Pairs as a data set that TRL and the Hub read: a folder with `data/train.*`, and the push of it.

The rows hold an id and the three columns of TRL's conversational layout. Where the pairs come from stays out of the
rows (attempts and raw replies are nobody's training data) and goes to the card that lies beside them.

>>> licence_id("Apache-2.0"), licence_id("my-company-1.0")
(Licence(id='apache-2.0', name=None), Licence(id='other', name='my-company-1.0'))
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from anchorline.data.files import write_rows
from anchorline.data.formats import pair_to_row
from anchorline.data.jsonl import writing
from anchorline.errors import DataError, RecipeError
from anchorline.types import Pair

Form = Literal["jsonl", "parquet"]
CARD = "README.md"
DATA = "data/train.{}"
"""The file of rows, by its format."""

COLUMNS = ("id", "prompt", "chosen", "rejected")

# the identifiers of the Hub's documentation, page "Licenses"
HUB_LICENCES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl
    llama2 llama3 llama3.1 llama3.2 llama3.3 gemma unknown
    """.split()  # noqa: SIM905 - a list would be three times as long
)
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_EXAMPLES = (
    "such as apache-2.0, mit, cc-by-4.0, cc-by-nc-4.0, llama3.1, or the name of your own, such as acme-internal-1.0"
)


class Licence(NamedTuple):
    """What the card's front matter says: one of the Hub's identifiers, or `other` with a name."""

    id: str
    name: str | None = None


def licence_id(given: str | None) -> Licence:
    """The Hub's identifier of an SPDX or Hub id, whatever its capitals. RecipeError where none is given."""
    if given is None or not given.strip():
        raise RecipeError(
            f"a data set needs a licence, which only you can know: give --licence ID, {_EXAMPLES}; "
            "the terms of the prompts and of each model that wrote answers apply"
        )
    name = given.strip().casefold()
    if not _LICENCE.fullmatch(name) or name == "other":
        raise RecipeError(f"--licence {given!r}: expected an SPDX or Hub identifier, {_EXAMPLES}")
    known = re.sub(r"-(only|or-later)$", "", name)  # SPDX tells these apart, the Hub does not
    return Licence(known) if known in HUB_LICENCES else Licence("other", name)


def write_pairs(pairs: Sequence[Pair], folder: Path, *, form: Form) -> Path:
    """Write `data/train.jsonl` or `.parquet` into a folder that `check_folder` has let through."""
    file = folder / DATA.format(form)
    with writing(folder):
        file.parent.mkdir(parents=True, exist_ok=True)
    rows = (pair_to_row(pair) for pair in pairs)
    write_rows(file, ({name: row[name] for name in COLUMNS} for row in rows))
    for other in ("jsonl", "parquet"):
        if other != form:  # an earlier export in the other format would be read beside this one
            (folder / DATA.format(other)).unlink(missing_ok=True)
    return file


def check_folder(folder: Path) -> None:
    """DataError unless the folder is new, empty, or an earlier export, which is known by its card."""
    if folder.exists() and not folder.is_dir():
        raise DataError("is a file, expected a folder; name another one with --out", file=folder)
    files = {folder / CARD, *(folder / DATA.format(form) for form in ("jsonl", "parquet"))}
    ours = {folder / "data", *(files if _is_card(folder / CARD) else ())}
    strange = sorted(set(folder.rglob("*")) - ours) if folder.exists() else []
    if strange:
        raise DataError(
            f"holds {strange[0].relative_to(folder)}, which no export wrote; name a new folder with --out", file=folder
        )


def _is_card(file: Path) -> bool:
    """Whether it is the card of an export: what another wrote must not be replaced without a word."""
    try:
        front, _, _ = file.read_text(encoding="utf-8").partition("\n---\n")
    except (OSError, UnicodeDecodeError):
        return False
    return front.startswith("---\nlicense: ") and "- anchorline" in front.splitlines()
