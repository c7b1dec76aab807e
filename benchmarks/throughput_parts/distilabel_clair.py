"""distilabel's CLAIR task in a pipeline of its own, as its documentation has it, with the settings that were fastest.

python distilabel_clair.py URL ROWS.jsonl REVISIONS.jsonl FOLDER   runs in the environment of distilabel, not in ours
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ |= {
    "DISTILABEL_LOG_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import CLAIR
from rows import read_rows, write_revisions


def main(url: str, rows: Path, out: Path, folder: Path) -> None:
    """Make the revisions."""
    data = [
        {"number": row["number"], "task": row["question"], "student_solution": row["answer"]} for row in read_rows(rows)
    ]
    with Pipeline(name="clair", cache_dir=folder) as pipeline:
        # a batch waits for its slowest request before the next one starts: one batch of all rows is by far the fastest
        load = LoadDataFromDicts(data=data, batch_size=len(data))
        clair = CLAIR(
            llm=OpenAILLM(
                model="fake",
                base_url=url,
                api_key="none",
                generation_kwargs={"max_new_tokens": 4096, "temperature": 0.7},
            ),
            input_batch_size=len(data),
            add_raw_input=False,
            add_raw_output=False,
        )
        load >> clair
    made = pipeline.run(use_cache=False)["default"]["train"]
    write_revisions(out, zip(made["number"], made["revision"], strict=True))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:5]))
