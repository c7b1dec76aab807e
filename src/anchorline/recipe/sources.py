"""What a recipe brings in from outside: its prompts, or its pairs, split into training and held-out rows.

Read once before a run makes its folder, so that a mistake leaves nothing behind, and again by the stage that keeps them.

>>> sources = read_sources(recipe)  # doctest: +SKIP
>>> len(sources.train), len(sources.heldout), len(sources.problems)  # doctest: +SKIP
(300, 60, 0)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from anchorline.data import (
    Candidates,
    Contaminated,
    drop_contaminated,
    drop_overlap,
    evaluation_texts,
    read_candidates,
    read_pairs,
    read_prompts,
    read_unpaired,
    scan_rows,
    split,
)
from anchorline.data import (
    read_answers as read_text_answers,
)
from anchorline.errors import DataError, RecipeError
from anchorline.objectives.names import DESCRIPTIONS
from anchorline.recipe.config import Recipe
from anchorline.train.config import AUTO
from anchorline.types import Answer, Pair, Prompt, Unpaired


class Sources(NamedTuple):
    """Prompts by their use, those left out because evaluation uses them, and the rows that could not be used."""

    train: list[Prompt]
    heldout: list[Prompt]
    general: list[Prompt]
    unstyled: list[Prompt]
    dropped: list[Prompt]
    contaminated: list[tuple[str, Contaminated]]
    """Prompts that overlap an evaluation set, with its name."""
    problems: list[DataError]


class GivenAnswers(NamedTuple):
    """What `pairs.answers` holds: an answer of the policy a row, or several answers of models."""

    answers: list[Answer]
    candidates: list[Candidates]
    problems: list[DataError]


class Given(NamedTuple):
    """What `pairs.file` and the general prompts hold, split, and the rows of them that could not be used."""

    train: Sequence[Pair | Unpaired]
    heldout: Sequence[Pair | Unpaired]
    prompts: list[Prompt]
    """Of the held-out rows."""
    general: list[Prompt]
    problems: list[DataError]


class Retain(NamedTuple):
    """Prompts whose answers are to stay, those left out because evaluation uses them, and rows that could not be used."""

    prompts: list[Prompt]
    dropped: list[Prompt]
    problems: list[DataError]


def read_sources(recipe: Recipe) -> Sources:
    """Training, held-out, general and unstyled prompts.

    A prompt that evaluation uses is never trained on, whatever its capitals and spaces.
    """
    sources, strict = recipe.prompts, recipe.strict
    assert sources is not None
    problems: list[DataError] = []

    def read(source: str | None, system: str | None = None) -> list[Prompt]:
        if source is None:
            return []
        loaded = read_prompts(source, strict=strict, system=system)
        problems.extend(loaded.problems)
        return loaded.rows

    train, dropped = read(sources.train, sources.system), []
    if isinstance(sources.heldout, str):
        heldout = read(sources.heldout, sources.system)
        train, dropped = drop_overlap(train, heldout)
    else:
        train, heldout = split(train, heldout=sources.heldout, seed=recipe.seed)
    general, unstyled = read(sources.general), read(sources.unstyled)
    if unstyled:
        unstyled, measured = drop_overlap(unstyled, [*general, *heldout])
        dropped = [*dropped, *measured]
        taken = {prompt.id for prompt in train} & {prompt.id for prompt in unstyled}
        if taken:
            raise DataError(f"the id {min(taken)!r} is also in {sources.train}; make ids unique", file=sources.unstyled)
    contaminated: list[tuple[str, Contaminated]] = []
    for file in sources.decontaminate:
        train, overlapping = drop_contaminated(train, evaluation_texts(file), n=sources.decontaminate_words)
        contaminated += [(file, found) for found in overlapping]
    return Sources(train[: sources.limit], heldout, general, unstyled, dropped, contaminated, problems)


def read_retained(recipe: Recipe, measured: Sequence[Prompt]) -> Retain:
    """The prompts of `retain.prompts`, without those that evaluation measures.

    Raises:
        DataError: none is left.

    """
    assert recipe.retain is not None
    loaded = read_prompts(recipe.retain.prompts, strict=recipe.strict)
    try:
        kept, dropped = drop_overlap(loaded.rows, measured)
    except DataError:
        why = "all its prompts are ones that evaluation measures; name others"
        raise DataError(why, file=recipe.retain.prompts) from None
    return Retain(kept, dropped, loaded.problems)


def read_answers(recipe: Recipe) -> GivenAnswers:
    """The answers that pairs are made of, where they are given.

    Raises:
        DataError: the file is not there, has no good row, or its rows do not fit the maker.

    """
    source, maker = recipe.pairs.answers, recipe.pairs.maker
    assert source is not None
    first = next((row for _, row in scan_rows(source) if isinstance(row, dict)), {})
    several = "completions" in first or "generations" in first
    wanted = "several `completions` a row" if maker in {"on_policy", "off_policy"} else "a prompt and a `text` a row"
    if several != (maker in {"on_policy", "off_policy"}):
        raise DataError(f"the maker {maker} takes {wanted}, got the columns {', '.join(first) or 'none'}", file=source)
    if several:
        found = read_candidates(source, strict=recipe.strict)
        return GivenAnswers([], found.rows, found.problems)
    read = read_text_answers(source, strict=recipe.strict)
    return GivenAnswers(read.rows, [], read.problems)


def read_given(recipe: Recipe) -> Given:
    """Pairs, or single labelled answers where the first row of `pairs.file` has a `completion`."""
    rows, problems = _given_rows(recipe)
    keys = split([Prompt(row.id, row.prompt) for row in rows], heldout=recipe.pairs.heldout, seed=recipe.seed)
    held = {prompt.id for prompt in keys.heldout}
    source = recipe.prompts.general if recipe.prompts else None
    general = read_prompts(source, strict=recipe.strict) if source else None
    return Given(
        [row for row in rows if row.id not in held],
        [row for row in rows if row.id in held],
        keys.heldout,
        general.rows if general else [],
        [*problems, *(general.problems if general else [])],
    )


def _given_rows(recipe: Recipe) -> tuple[Sequence[Pair | Unpaired], list[DataError]]:
    source = recipe.pairs.file
    assert source is not None
    first = next((row for _, row in scan_rows(source) if isinstance(row, dict)), {})
    reader = read_unpaired if "completion" in first else read_pairs
    loaded = reader(source, strict=recipe.strict)
    if recipe.train.objective == AUTO and loaded.rows and isinstance(loaded.rows[0], Unpaired):
        raise RecipeError(f"objective auto needs pairs, and {source} holds single labelled answers; name an objective")
    only_pairs = [
        name for name in recipe.train.objective if name in DESCRIPTIONS and DESCRIPTIONS[name].needs == "pairs"
    ]
    if only_pairs and loaded.rows and isinstance(loaded.rows[0], Unpaired):
        others = ", ".join(name for name, d in DESCRIPTIONS.items() if d.needs != "pairs")
        raise RecipeError(
            f"{', '.join(only_pairs)} needs pairs, and {source} holds single labelled answers; set train.objective to {others}"
        )
    return loaded.rows, loaded.problems
