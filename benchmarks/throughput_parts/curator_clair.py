"""CLAIR with Bespoke Curator: its `LLM` class with the paper's prompt and markers, and the settings that were fastest.

python curator_clair.py URL ROWS.jsonl REVISIONS.jsonl FOLDER   runs in the environment of Curator, not in ours
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ |= {
    "CURATOR_DISABLE_CACHE": "1",
    "CURATOR_DISABLE_RICH_DISPLAY": "1",
    "TELEMETRY_ENABLED": "0",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "HF_HUB_OFFLINE": "1",
    "OPENAI_API_KEY": "none",
    "LOGURU_LEVEL": "ERROR",
}

# names the folder of the token table that litellm brings, which Curator's openai backend would otherwise download
import litellm.litellm_core_utils.default_encoding  # noqa: F401
from bespokelabs import curator
from rows import read_rows, write_revisions

SYSTEM = "You are a teacher and your task is to minimally improve a student's answer."
PROMPT = """{{task}}: {task}

{{student_solution}}: {answer}

-----------------

Revise the {{student_solution}} such that it is clearer, more correct, and more engaging. Copy what needs no correction.
Let's first think step by step with a {{teacher_reasoning}}, then give the {{corrected_student_solution}}. Mention both
identifiers to structure your answer."""
MARKER = "{corrected_student_solution}:"
PLENTY = 10**9
"""Its own limits never hold it back."""
CONCURRENCY = 128


class Clair(curator.LLM):
    """One revision a row."""

    def prompt(self, input: dict) -> str:
        return PROMPT.format(task=input["question"], answer=input["answer"])

    def parse(self, input: dict, response: str) -> dict:
        return {"number": input["number"], "revision": response.partition(MARKER)[2].strip() or None}


def main(url: str, rows: Path, out: Path, folder: Path) -> None:
    """Make the revisions."""
    clair = Clair(
        model_name="fake",
        backend="openai",
        system_prompt=SYSTEM,
        generation_params={"max_tokens": 4096, "temperature": 0.7},
        backend_params={
            "base_url": url,
            "max_concurrent_requests": CONCURRENCY,
            "max_requests_per_minute": PLENTY,
            "max_tokens_per_minute": PLENTY,
        },
    )
    made = clair(list(read_rows(rows)), working_dir=str(folder)).dataset
    write_revisions(out, zip(made["number"], made["revision"], strict=True))


if __name__ == "__main__":
    main(sys.argv[1], *map(Path, sys.argv[2:5]))
