"""Data files: rows in and out, in the formats that TRL reads, with every bad row named by file, line and field.

>>> pair_to_row(pair_from_row({"prompt": "Hi", "chosen": "Good day.", "rejected": "Yo"}), layout="plain")["chosen"]
'Good day.'
"""

from __future__ import annotations

from anchorline.data.candidates import Candidate, Candidates, candidates_from_row, candidates_to_row
from anchorline.data.decontaminate import (
    Contaminated,
    Decontaminated,
    drop_contaminated,
    evaluation_texts,
)
from anchorline.data.export import Form, Licence, check_folder, licence_id, write_pairs
from anchorline.data.files import check_writable, scan_rows, write_rows
from anchorline.data.formats import (
    Layout,
    answer_from_row,
    answer_to_row,
    failure_from_row,
    failure_to_row,
    messages_to_rows,
    pair_from_row,
    pair_to_row,
    prompt_from_row,
    prompt_to_row,
    unpaired_from_row,
    unpaired_to_row,
)
from anchorline.data.hub import check_repository, push_folder
from anchorline.data.jsonl import (
    Appended,
    append_jsonl,
    check_place,
    read_appended,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
)
from anchorline.data.layouts import PairLayout
from anchorline.data.load import Loaded, read_answers, read_candidates, read_pairs, read_prompts, read_unpaired
from anchorline.data.split import Kept, Split, distinct, drop_overlap, split

__all__ = [
    "Appended",
    "Candidate",
    "Candidates",
    "Contaminated",
    "Decontaminated",
    "Form",
    "Kept",
    "Layout",
    "Licence",
    "Loaded",
    "PairLayout",
    "Split",
    "answer_from_row",
    "answer_to_row",
    "append_jsonl",
    "candidates_from_row",
    "candidates_to_row",
    "check_folder",
    "check_place",
    "check_repository",
    "check_writable",
    "distinct",
    "drop_contaminated",
    "drop_overlap",
    "evaluation_texts",
    "failure_from_row",
    "failure_to_row",
    "licence_id",
    "messages_to_rows",
    "pair_from_row",
    "pair_to_row",
    "prompt_from_row",
    "prompt_to_row",
    "push_folder",
    "read_answers",
    "read_appended",
    "read_candidates",
    "read_json",
    "read_jsonl",
    "read_pairs",
    "read_prompts",
    "read_unpaired",
    "scan_rows",
    "split",
    "unpaired_from_row",
    "unpaired_to_row",
    "write_json",
    "write_jsonl",
    "write_pairs",
    "write_rows",
]
