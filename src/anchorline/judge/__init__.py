"""Judges: what says which of two answers is better, a model that reads a rubric or a style's own checks.

>>> import asyncio
>>> from anchorline.style import parse_style
>>> judge = style_judge(parse_style({"name": "calm", "rules": [{"kind": "no_exclamation"}]}))
>>> asyncio.run(judge((), "It left.", "It left!")).winner
'a'
"""

from __future__ import annotations

from anchorline.judge.pairwise import judge_pair, pairwise_judge
from anchorline.judge.rubric import GENERAL, rubric
from anchorline.judge.sampling import Sampling
from anchorline.judge.score import Score, score_answer, score_judge, score_scorer
from anchorline.judge.style_judge import style_judge, style_scorer
from anchorline.judge.template import Template, load_template, packaged_template, parse_template, render
from anchorline.judge.verdict import Judge, Scored, Scorer, Unreadable, count_verdicts, verdict_to_row

__all__ = [
    "GENERAL",
    "Judge",
    "Sampling",
    "Score",
    "Scored",
    "Scorer",
    "Template",
    "Unreadable",
    "count_verdicts",
    "judge_pair",
    "load_template",
    "packaged_template",
    "pairwise_judge",
    "parse_template",
    "render",
    "rubric",
    "score_answer",
    "score_judge",
    "score_scorer",
    "style_judge",
    "style_scorer",
    "verdict_to_row",
]
