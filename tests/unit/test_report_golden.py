"""Checks that a change that should not change the report leaves it as it is, byte for byte.

After a wanted change, write the file again with `ANCHORLINE_UPDATE_GOLDEN=1 pytest tests/unit/test_report_golden.py`,
open it in a browser, and commit it with the change.
"""

from __future__ import annotations

import os
from itertools import zip_longest
from pathlib import Path

import pytest
from report_folder import build_run_folder

from anchorline.report import build_report, read_run_folder

GOLDEN = Path(__file__).parents[1] / "golden" / "report.html"


def test_the_report_is_the_golden_one(tmp_path: Path) -> None:
    page = build_report(read_run_folder(build_run_folder(tmp_path)))
    if os.environ.get("ANCHORLINE_UPDATE_GOLDEN"):
        GOLDEN.write_text(page, encoding="utf-8")
    golden = GOLDEN.read_text(encoding="utf-8")
    if page != golden:
        lines = enumerate(zip_longest(golden.splitlines(), page.splitlines()), start=1)
        line, (expected, got) = next((at, pair) for at, pair in lines if pair[0] != pair[1])
        pytest.fail(f"{GOLDEN.name}:{line}\nexpected {expected!r}\ngot      {got!r}")
