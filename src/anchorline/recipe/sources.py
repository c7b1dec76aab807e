"""What a recipe brings in from outside: its prompts, answers or pairs, split into training and held-out rows.

Read once before a run makes its folder, so that a mistake leaves nothing behind, and again by the stage that keeps them.

>>> sources = read_sources(recipe)  # doctest: +SKIP
>>> len(sources.train), len(sources.heldout), len(sources.problems)  # doctest: +SKIP
(300, 60, 0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, NamedTuple, TypeVar

from anchorline.data import (
    Candidates,
    Contaminated,
    Kept,
    distinct,
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
from anchorline.pairs.settings import Maker
from anchorline.recipe.config import Prompts, Recipe
from anchorline.train.config import AUTO
from anchorline.types import Answer, Message, Pair, Prompt, Unpaired

Row = TypeVar("Row", Answer, Candidates, Pair, Unpaired)


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


class Given(NamedTuple, Generic[Row]):
    """Answers or pairs that are given, split, with the prompts that evaluation uses, and what is left out."""

    train: list[Row]
    heldout: list[Row]
    prompts: list[Prompt]
    """The held-out ones: of the file `prompts.heldout`, else those of the held-out rows, each once."""
    general: list[Prompt]
    dropped: list[Prompt]
    contaminated: list[tuple[str, Contaminated]]
    problems: list[DataError]


class Retain(NamedTuple):
    """Prompts whose answers are to stay, those left out because evaluation uses them, and rows that could not be used."""

    prompts: list[Prompt]
    dropped: list[Prompt]
    contaminated: list[tuple[str, Contaminated]]
    problems: list[DataError]


def read_sources(recipe: Recipe) -> Sources:
    """Training, held-out, general and unstyled prompts.

    A prompt that evaluation uses is never trained on, whatever its capitals and spaces. General and unstyled prompts are
    compared without system messages, as the recipe's goes before the training and the held-out ones only.
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
        train, heldout = split(
            train, heldout=sources.heldout, seed=recipe.seed, file=sources.train, field="prompts.heldout"
        )
    general, unstyled = read(sources.general), read(sources.unstyled)
    train, measured = _unmeasured(train, general, file=sources.train)
    dropped = [*dropped, *measured]
    if unstyled:
        unstyled, measured = _unmeasured(unstyled, [*general, *heldout], file=sources.unstyled)
        dropped = [*dropped, *measured]
        taken = {prompt.id for prompt in train} & {prompt.id for prompt in unstyled}
        if taken:
            raise DataError(f"the id {min(taken)!r} is also in {sources.train}; make ids unique", file=sources.unstyled)
    train, contaminated = _decontaminated(train, sources, file=sources.train)
    unstyled, overlapping = _decontaminated(unstyled, sources, file=sources.unstyled)
    return Sources(train[: sources.limit], heldout, general, unstyled, dropped, [*contaminated, *overlapping], problems)


def _unmeasured(prompts: list[Prompt], measured: Sequence[Prompt], *, file: str | None) -> Kept:
    """The prompts of the file that evaluation does not measure, with whichever system message, and those that it does.

    Raises:
        DataError: none is left.

    """
    try:
        return drop_overlap(prompts, measured, system=False)
    except DataError:
        raise DataError("all its prompts are ones that evaluation measures; name others", file=file) from None


def _decontaminated(
    prompts: list[Prompt], sources: Prompts | None, *, file: str | None
) -> tuple[list[Prompt], list[tuple[str, Contaminated]]]:
    """The prompts of the file that overlap no evaluation set, and the others, each with the set's name.

    Raises:
        DataError: none is left.

    """
    kept, contaminated = prompts, []
    if sources:
        for name in sources.decontaminate:
            kept, overlapping = drop_contaminated(kept, evaluation_texts(name), n=sources.decontaminate_words)
            contaminated += [(name, found) for found in overlapping]
    if prompts and not kept:
        raise DataError("all its prompts overlap an evaluation set of prompts.decontaminate; name others", file=file)
    return kept, contaminated


def read_retained(recipe: Recipe, measured: Sequence[Prompt]) -> Retain:
    """The prompts of `retain.prompts`, without those that evaluation measures and those that overlap an evaluation set.

    Raises:
        DataError: none is left.

    """
    assert recipe.retain is not None
    loaded = read_prompts(recipe.retain.prompts, strict=recipe.strict)
    kept, dropped = _unmeasured(loaded.rows, measured, file=recipe.retain.prompts)
    kept, contaminated = _decontaminated(kept, recipe.prompts, file=recipe.retain.prompts)
    return Retain(kept, dropped, contaminated, loaded.problems)


def read_answers(recipe: Recipe, makers: Sequence[Maker] = ()) -> Given[Answer] | Given[Candidates]:
    """The answers that `makers` make pairs of, where they are given: one of the policy a row, or several of models.

    Raises:
        UserError: the file is not there, has no good row, its rows do not fit a maker, or a setting of `prompts` has no
            meaning for given answers.

    """
    source = recipe.pairs.answers
    assert source is not None
    first = next((row for _, row in scan_rows(source) if isinstance(row, dict)), {})
    several = "completions" in first or "generations" in first
    for maker in makers:
        chooses = maker in {"on_policy", "off_policy"}
        if several != chooses:
            wanted = "several `completions` a row" if chooses else "a prompt and a `text` a row"
            raise DataError(
                f"the maker {maker} takes {wanted}, got the columns {', '.join(first) or 'none'}", file=source
            )
    share = recipe.prompts.heldout if recipe.prompts and isinstance(recipe.prompts.heldout, float) else None
    if several:
        found = read_candidates(source, strict=recipe.strict)
        return _sifted(recipe, found.rows, found.problems, share=share)
    read = read_text_answers(source, strict=recipe.strict)
    return _sifted(recipe, read.rows, read.problems, share=share)


def read_given(recipe: Recipe) -> Given[Pair] | Given[Unpaired]:
    """Pairs, or single labelled answers where the first row of `pairs.file` has a `completion`.

    Raises:
        UserError: the file is not there, has no good row, or a setting does not fit it.

    """
    source = recipe.pairs.file
    assert source is not None
    first = next((row for _, row in scan_rows(source) if isinstance(row, dict)), {})
    if "completion" not in first:
        pairs = read_pairs(source, strict=recipe.strict)
        return _sifted(recipe, pairs.rows, pairs.problems, share=recipe.pairs.heldout)
    labelled = read_unpaired(source, strict=recipe.strict)
    _check_objective(recipe, source)
    return _sifted(recipe, labelled.rows, labelled.problems, share=recipe.pairs.heldout)


def _sifted(recipe: Recipe, rows: list[Row], problems: list[DataError], *, share: float | None) -> Given[Row]:
    """What of the given rows is trained on and what is held out: by the recipe's `prompts` and the `share`.

    Raises:
        UserError: `prompts.unstyled` is set, whose answers would have to be sampled; or no row is left.

    """
    sources, heldout, general, dropped = recipe.prompts, None, [], []
    if sources:
        if sources.unstyled:
            raise RecipeError(
                "prompts.unstyled is for answers that are sampled, and here they are given (pairs.answers or pairs.file); "
                "leave it out: --set prompts.unstyled=null"
            )
        rows = [_asked_with(sources.system, row) for row in rows]
        if isinstance(sources.heldout, str):
            loaded = read_prompts(sources.heldout, strict=recipe.strict, system=sources.system)
            heldout, problems = loaded.rows, [*problems, *loaded.problems]
        if sources.general:
            loaded = read_prompts(sources.general, strict=recipe.strict)
            general, problems = loaded.rows, [*problems, *loaded.problems]
    train, held = [Prompt(row.id, row.prompt) for row in rows], []
    if heldout is not None:
        train, dropped = drop_overlap(train, heldout)
    if share is not None:
        file, field = recipe.pairs.file or recipe.pairs.answers, "pairs" if recipe.pairs.file else "prompts"
        train, held = split(train, heldout=share, seed=recipe.seed, file=file, field=f"{field}.heldout")
    train, measured = _unmeasured(train, general, file=recipe.pairs.file or recipe.pairs.answers)
    dropped = [*dropped, *measured]
    kept, contaminated = _decontaminated(train, sources, file=recipe.pairs.file or recipe.pairs.answers)
    ids, held_ids = {prompt.id for prompt in kept[: sources.limit if sources else None]}, {prompt.id for prompt in held}
    return Given(
        [row for row in rows if row.id in ids],
        [row for row in rows if row.id in held_ids],
        distinct(held) if heldout is None else heldout,
        general,
        dropped,
        contaminated,
        problems,
    )


def _asked_with(system: str | None, row: Row) -> Row:
    """The row, its prompt with the system message before it where it has none."""
    if system is None or row.prompt[0].role == "system":
        return row
    return replace(row, prompt=(Message("system", system), *row.prompt))


def _check_objective(recipe: Recipe, source: str) -> None:
    """Raise a RecipeError where the objective needs pairs, and the source holds labelled answers."""
    if recipe.train.objective == AUTO:
        raise RecipeError(f"objective auto needs pairs, and {source} holds single labelled answers; name an objective")
    only_pairs = [
        name for name in recipe.train.objective if name in DESCRIPTIONS and DESCRIPTIONS[name].needs == "pairs"
    ]
    if only_pairs:
        others = ", ".join(name for name, d in DESCRIPTIONS.items() if d.needs != "pairs")
        raise RecipeError(
            f"{', '.join(only_pairs)} needs pairs, and {source} holds single labelled answers; set train.objective to {others}"
        )
