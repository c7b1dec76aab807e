"""Limits per minute, and concurrency that adapts, as a command keeps them: by what came to a real server, and when."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from chat import Running, rows_of

from anchorline.data import write_rows
from anchorline.llm.fake_server import Arrival
from anchorline.llm.limits import START

pytestmark = pytest.mark.e2e


def make(place: Path, fake: Running, rows: int, **settings: object) -> list[Arrival]:
    """Revise so many answers by a command in a process of its own; what came to the server."""
    text = "Your order left! Please wait for it."
    answers = [{"id": f"a{i}", "prompt": f"Where is order {i}?", "text": text} for i in range(rows)]
    write_rows(place / "answers.jsonl", answers)
    (place / "calm.yaml").write_text(json.dumps({"name": "calm", "rules": [{"kind": "no_exclamation"}]}))
    words = ["answers.jsonl", "--style", "calm.yaml", "--reviser", "m", "--base-url", fake.url, "--out", "out"]
    sets = [word for name, value in settings.items() for word in ("--set", f"llm.reviser.{name}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "anchorline", "pairs", "clair", *words, *sets],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OPENAI_API_KEY": "any"},
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert len(rows_of(place / "out/sets/clair/pairs.jsonl")) == rows
    return list(fake.server.arrivals)


def in_window(arrivals: list[Arrival], start: float, end: float) -> int:
    """How many came in these seconds after the first one."""
    return sum(start <= arrival.at - arrivals[0].at < end for arrival in arrivals)


def test_requests_per_minute(tmp_path: Path) -> None:
    """20 a second, and 20 at once: of 80, the last comes 3 seconds after the first, or later on a slow machine."""
    with Running() as fake:
        came = make(tmp_path, fake, 80, requests_per_minute=1200)
    assert len(came) == 80 and came[-1].at - came[0].at > 2.5
    assert 1 <= in_window(came, 0, 1) <= 60  # the last few of a second's may come late, with the next second's


def test_tokens_per_minute(tmp_path: Path) -> None:
    """A third of what all take in each second, as the server counts tokens."""
    with Running() as fake:
        free = tmp_path / "free"
        free.mkdir()
        came = make(free, fake, 60)
        without = came[-1].at - came[0].at
        taken = sum(
            payment["prompt_tokens"] + payment["completion_tokens"]
            for payment in json.loads((free / "out/manifest.json").read_text())["costs"]["stages"].values()
        )
    with Running() as fake:
        came = make(tmp_path, fake, 60, tokens_per_minute=60 * taken // 3)
    # a second's worth may pass at once
    assert came[-1].at - came[0].at > max(1.5, without) and in_window(came, 0, 1) < 60


def test_concurrency_shrinks_when_throttled_and_retry_after_is_honoured(tmp_path: Path) -> None:
    """A server that takes three at once and tells everybody else to come back in 1.2 seconds: calls come in waves."""
    with Running(most=3, retry_after=1.2, latency=0.05) as fake:
        came = make(tmp_path, fake, 30)
    assert sum(not arrival.turned_away for arrival in came) == 30
    waves = [[came[0]]]
    for before, arrival in itertools.pairwise(came):
        if arrival.at - before.at > 0.6:
            # nobody came before the time that the last one was told, as far as the answer's way takes no time
            assert arrival.at - before.at > 1.1
            waves.append([])
        waves[-1].append(arrival)
    assert len(waves[0]) == START and len(waves) > 4
    turned_away = [sum(arrival.turned_away for arrival in wave) for wave in waves]
    assert turned_away[:4] == sorted(turned_away[:4], reverse=True) and max(turned_away[4:]) <= START / 4
