"""The stages of a run, in their order: what each reads, what it writes, and which settings it depends on.

    prompts    prompts.jsonl, unstyled-prompts.jsonl, evals/prompts.jsonl, evals/general-prompts.jsonl
    sample     answers.jsonl, unstyled-answers.jsonl    the policy answers the training prompts
    resample   more-answers.jsonl               on_policy only: it answers them again
    answers    answers.jsonl, candidates.jsonl  with `pairs.answers`: they are read from a file instead
    baseline   evals/before.jsonl, evals/general.jsonl    it answers the held-out and the general ones
    pairs      pairs.jsonl                      answers become pairs (or `given`: pairs are read from a file)
    pairs:clair, pairs:on_policy, …    sets/MAKER/pairs.jsonl    the same answers by one maker, beside the run's own pairs
    measure    measure.json                     how contrastive the pairs are
    advise     advise.json                      with `train.objective: auto`: which objective fits
    retain     retain-answers.jsonl             with `retain`: the reference answers the prompts that are to stay
    train      train/, model/
    evaluate   evals/*.json                     before against after
    report     report.html, README.md, summary.json

>>> [stage.name for stage in STAGES][:3]
['prompts', 'sample', 'baseline']
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from anchorline.data import (
    Candidates,
    answer_from_row,
    answer_to_row,
    candidates_to_row,
    failure_to_row,
    pair_from_row,
    pair_to_row,
    prompt_to_row,
    read_appended,
    unpaired_from_row,
    unpaired_to_row,
    write_json,
    write_jsonl,
)
from anchorline.errors import DataError
from anchorline.llm.device import measuring_dtype
from anchorline.llm.settings import EndpointSettings
from anchorline.llm.types import SampleSettings
from anchorline.pairs import clair_pairs, no_pair
from anchorline.pairs.settings import MAKERS, Maker
from anchorline.recipe.advising import ADVICE, ANSWERED, JUDGED, advise_set, decided
from anchorline.recipe.config import Recipe
from anchorline.recipe.context import RunContext
from anchorline.recipe.counts import SAMPLING, Counts
from anchorline.recipe.desk import settings_of
from anchorline.recipe.making import CANDIDATES, MORE, make_set, needed_endpoints, unverified_rules
from anchorline.recipe.manifest import content_hash, read_manifest
from anchorline.recipe.sampling import RESAMPLE, ask_policy
from anchorline.recipe.sources import Given, Retain, Sources, read_answers, read_given, read_retained, read_sources
from anchorline.style import Style
from anchorline.train.config import AUTO
from anchorline.train.processes import led
from anchorline.types import Answer, Failure, Pair, Prompt, Unpaired

SETS = "sets"
"""The folder of the makers' sets."""
RETAINED = "retain-answers.jsonl"
TRAIN = "train"
"""What the leading process says to the others when all of them train."""


AGAIN = 2**19
"""Added to the seed of further samples: prompts in the same places would have the luck of the first."""


class Stage(NamedTuple):
    """One step of a run."""

    name: str
    help: str
    inputs: tuple[str, ...]
    """Files of the run folder that it reads."""
    outputs: tuple[str, ...]
    """What it writes; removed before it starts over."""
    settings: Callable[[RunContext], dict[str, Any]]
    """What it reads besides: settings, and hashes of files outside the run folder."""
    act: Callable[[RunContext], list[Failure]]
    """Do it; the rows that fell out."""
    wanted: Callable[[Recipe], bool] = lambda _: True
    """Whether this recipe has the stage."""
    after: tuple[str, ...] = ()
    """Files of the run folder that it reads in part; what it uses of them is in `settings`."""


def malformed(problem: DataError, stage: str) -> Failure:
    """A row that could not be read, as one that fell out."""
    file, line, field = str(problem.file), problem.line, problem.field
    return Failure(f"{file}:{line}", stage, "malformed", str(problem), {"file": file, "line": line, "field": field})


def _left_out(found: Sources | Given | Retain, stage: str) -> list[Failure]:
    """What came from outside and is not trained on, and the rows that could not be used."""
    why = "evaluation uses the prompt, so it is not trained on"
    return [
        *(Failure(prompt.id, stage, "heldout", why) for prompt in found.dropped),
        *(
            Failure(overlap.prompt.id, stage, "contaminated", f"shares words with {file}: {overlap.ngram!r}")
            for file, overlap in found.contaminated
        ),
        *(malformed(problem, stage) for problem in found.problems),
    ]


def _prompts(run: RunContext) -> list[Failure]:
    sources = read_sources(run.recipe)
    run.write("prompts.jsonl", sources.train, prompt_to_row)
    run.write("unstyled-prompts.jsonl", sources.unstyled, prompt_to_row)
    run.write("evals/prompts.jsonl", sources.heldout, prompt_to_row)
    run.write("evals/general-prompts.jsonl", sources.general, prompt_to_row)
    return _left_out(sources, "prompts")


def _prompts_settings(run: RunContext) -> dict[str, Any]:
    sources = run.recipe.prompts
    assert sources is not None
    names = ("train", "heldout", "general", "unstyled")
    return {
        "prompts": sources.model_dump(exclude={*names, "decontaminate"}),
        "seed": run.recipe.seed,
        "strict": run.recipe.strict,
        **{name: _source(getattr(sources, name)) for name in names},
        "decontaminated": [_source(source) for source in sources.decontaminate],
    }


def _source(source: str | float | None) -> Any:
    """What a stage's key holds of a source: a file's content, wherever it lies; a hub id; a share."""
    if not isinstance(source, str):
        return source
    path = Path(source).expanduser()
    return content_hash(path) if path.is_file() else source


def _sample(run: RunContext) -> list[Failure]:
    failures = _answered(run, run.prompts("prompts.jsonl"), run.recipe.sample, "answers.jsonl")
    unstyled = run.prompts("unstyled-prompts.jsonl")
    if unstyled:
        failures += _answered(run, unstyled, as_it_is(run.recipe.sample), "unstyled-answers.jsonl")
    return failures


def as_it_is(settings: SampleSettings) -> SampleSettings:
    """Sampling from the policy's own distribution, for answers that are to stay as likely as they are.

    Imitating samples of that very distribution leaves it alone on average; samples of a lower temperature sharpen it.
    """
    return settings.model_copy(update={"temperature": 1.0, "top_p": 1.0})


def _resample(run: RunContext) -> list[Failure]:
    first = run.prompts("prompts.jsonl")
    again = [replace(prompt, id=f"{prompt.id}#{n}") for n in range(1, run.recipe.pairs.samples) for prompt in first]
    return _answered(run, again, run.recipe.sample, MORE, RESAMPLE, salt=AGAIN)


def _answered(
    run: RunContext,
    prompts: list[Prompt],
    settings: SampleSettings,
    name: str,
    stage: str = "sample",
    *,
    salt: int = 0,
) -> list[Failure]:
    """Let the policy answer, where it is; the rows without an answer. `salt` is for the model in this process only."""
    if run.recipe.llm.policy is not None:
        return ask_policy(run, prompts, settings, name, stage)  # which tells samples apart by their ids
    answers = run.answer(run.loaded(run.recipe.train.dtype), prompts, settings, name, salt=salt)
    return [_empty(answer) for answer in answers if not answer.text]


def _empty(answer: Answer) -> Failure:
    if answer.finish == "stop":
        return Failure(answer.id, "sample", "empty", "the model's answer is empty")
    why = "its prompt fills the model's window, or sample.max_new_tokens is too low"
    return Failure(answer.id, "sample", "truncated", f"the answer was cut before its first word: {why}")


def _given_answers(run: RunContext) -> list[Failure]:
    given = read_answers(run.recipe)
    run.write("answers.jsonl", [row for row in given.train if isinstance(row, Answer)], answer_to_row)
    run.write(CANDIDATES, [row for row in given.train if isinstance(row, Candidates)], candidates_to_row)
    _write_measured(run, given)
    return _left_out(given, "answers")


def _write_measured(run: RunContext, given: Given) -> None:
    run.write("evals/prompts.jsonl", given.prompts, prompt_to_row)
    run.write("evals/general-prompts.jsonl", given.general, prompt_to_row)


def _baseline(run: RunContext) -> list[Failure]:
    heldout, general = run.prompts("evals/prompts.jsonl"), run.prompts("evals/general-prompts.jsonl")
    dtype = measuring_dtype(run.recipe.eval.dtype)
    if heldout:
        run.answer(run.loaded(dtype), heldout, eval_sampling(run.recipe), "evals/before.jsonl")
    if general:
        settings = eval_sampling(run.recipe).model_copy(update={"max_new_tokens": run.recipe.eval.general_tokens})
        run.answer(run.loaded(dtype), general, settings, "evals/general.jsonl")
    return []


def eval_sampling(recipe: Recipe) -> SampleSettings:
    """How held-out prompts are answered, before and after."""
    asked = recipe.eval
    return SampleSettings(
        max_new_tokens=asked.max_new_tokens, temperature=asked.temperature, batch_size=asked.batch_size
    )


def _pairs(run: RunContext, maker: Maker, target: str, stage: str) -> list[Failure]:
    run.release()
    if not unverified_rules(run.recipe, maker):
        made = make_set(run, maker, stage=stage, target=target)
        run.made[stage] = made.counts
        if not made.pairs:
            keep_failures(run.folder, stage, made.failures)
            raise DataError(f"{no_pair(made.failures)}{_flips(made.counts)}; see failures.jsonl", file=run.path(target))
        return made.failures
    policy = run.policy_name
    made = clair_pairs(run.read("answers.jsonl", answer_from_row), run.style, policy=policy)
    if not made.pairs:
        keep_failures(run.folder, stage, made.failures)
        raise DataError(f"{no_pair(made.failures)}; see failures.jsonl", file=run.path("answers.jsonl"))
    # where the style does not apply, the policy's own answer is the better one; a set beside others has no such prompts
    unstyled = run.read("unstyled-answers.jsonl", answer_from_row) if stage == "pairs" else []
    other = clair_pairs(unstyled, run.style, policy=policy)
    pairs, failures = [*made.pairs, *map(_turned, other.pairs)], [*made.failures, *other.failures]
    run.write(target, pairs, pair_to_row)
    counts = Counts("clair")
    for result in (*pairs, *failures):
        counts.add(result)
    run.made[stage] = counts.row()
    return failures


def _flips(counts: dict[str, Any]) -> str:
    judge = counts.get("judge")
    if not judge or not judge["flips"]:
        return ""
    return f"; the judge's verdict turned with the order of the answers in {judge['flips']} of {judge['judged']} comparisons"


def _turned(pair: Pair) -> Pair:
    details = {**pair.provenance.details, "turned": True}
    return replace(pair.swap(), provenance=replace(pair.provenance, details=details))


def _given_pairs(run: RunContext) -> list[Failure]:
    given = read_given(run.recipe)
    run.write("pairs.jsonl", given.train, _row)
    run.write("evals/given-pairs.jsonl", [row for row in given.heldout if isinstance(row, Pair)], _row)
    _write_measured(run, given)
    return _left_out(given, "given")


def _row(row: Pair | Unpaired) -> dict[str, Any]:
    return pair_to_row(row) if isinstance(row, Pair) else unpaired_to_row(row)


def _trained_rows(run: RunContext) -> list[Pair] | list[Unpaired]:
    first = next(iter(run.read("pairs.jsonl", dict)), {})
    if "completion" in first:
        return run.read("pairs.jsonl", unpaired_from_row)
    return run.read("pairs.jsonl", pair_from_row)


def _measure(run: RunContext) -> list[Failure]:
    from anchorline.llm.tokens import tokenize_with
    from anchorline.measure import measure_pair, summarise

    pairs = _trained_rows(run)
    tokenize = tokenize_with(run.recipe.model) if run.recipe.model else None
    rows, touched = [], []
    with run.progress.task("measure", total=len(pairs), unit="pairs") as advance:
        for pair in pairs:
            if isinstance(pair, Pair):
                rows.append(measure_pair(pair.chosen, pair.rejected, tokenize=tokenize))
                touched.append(pair.provenance.details.get("touched", []))
            advance(1)
    write_json(run.path("measure.json"), summarise(rows, touched=touched))
    return []


def _retain(run: RunContext) -> list[Failure]:
    asked = run.need(run.recipe.retain, "retain")
    measured = [prompt for name in _HELDOUT for prompt in run.prompts(name)]
    found = read_retained(run.recipe, measured)
    settings = as_it_is(SampleSettings(max_new_tokens=asked.max_new_tokens, batch_size=asked.batch_size))
    run.answer(run.loaded(run.recipe.train.dtype), found.prompts, settings, RETAINED)
    return _left_out(found, "retain")


def _train(run: RunContext) -> list[Failure]:
    led(lambda: TRAIN)  # the other processes of this run wait for this word
    return train_together(run)


def train_together(run: RunContext) -> list[Failure]:
    """Train with the pairs of the run folder; every process of the run calls it."""
    from anchorline.train.retain import Retained
    from anchorline.train.run import train

    run.release()
    recipe = run.recipe
    trained = train(
        _trained_rows(run),
        run.model,
        decided(recipe, run.folder),
        run.folder,
        heldout=run.read("evals/given-pairs.jsonl", pair_from_row),
        retain=Retained(run.read(RETAINED, answer_from_row), recipe.retain) if recipe.retain else None,
        seed=recipe.seed,
        progress=run.progress,
    )
    return trained.failures


def _evaluate(run: RunContext) -> list[Failure]:
    from anchorline.evals.drift import drift
    from anchorline.evals.preference import preference
    from anchorline.evals.style import side_by_side, style_table
    from anchorline.evals.subject import attend, load_subject

    recipe, failures = run.recipe, []
    dtype, packed = measuring_dtype(recipe.eval.dtype), recipe.train.forward == "packed"
    subject = load_subject(run.path("model"), run.model, dtype=dtype, packed=packed)
    before = run.read("evals/before.jsonl", answer_from_row)
    if before:
        heldout = run.prompts("evals/prompts.jsonl")
        after = run.answer(subject.policy, heldout, eval_sampling(recipe), "evals/after.jsonl")
        if recipe.style and run.style.rules:  # a guideline in words has nothing to count
            write_json(run.path("evals/style.json"), style_table(run.style, before, after))
            write_jsonl(run.path("evals/answers.jsonl"), side_by_side(run.style, before, after))
    attend(subject, "packed")
    pairs = run.read("evals/given-pairs.jsonl", pair_from_row)
    if _makes(recipe) and recipe.style:
        pairs = clair_pairs(before, run.style, policy=run.policy_name).pairs
    run.write("evals/pairs.jsonl", pairs, pair_to_row)
    if pairs:
        scored = preference(subject, pairs, decided(recipe, run.folder), progress=run.progress)
        write_json(run.path("evals/preference.json"), scored.table)
        write_jsonl(run.path("evals/preference.jsonl"), scored.rows)
        failures += scored.failures
    general = run.read("evals/general.jsonl", answer_from_row)
    if general:
        source = Path((recipe.prompts and recipe.prompts.general) or "general").stem
        groups = {prompt.id: prompt.group or source for prompt in run.prompts("evals/general-prompts.jsonl")}
        moved = drift(subject, general, seed=recipe.seed, groups=groups, progress=run.progress)
        write_json(run.path("evals/drift.json"), moved.table)
        write_jsonl(run.path("evals/drift.jsonl"), moved.rows)
    return failures


def _report(run: RunContext) -> list[Failure]:
    from anchorline.recipe.summary import write_summary
    from anchorline.report import write_card, write_report

    write_summary(run.folder, run.recipe)
    write_report(run.folder)
    write_card(run.folder)
    return []


def _model_settings(run: RunContext, *names: str) -> dict[str, Any]:
    settings = {name: getattr(run.recipe, name).model_dump() for name in names}
    return settings | {"model": run.model_fingerprint, "seed": run.recipe.seed}


def _style_settings(run: RunContext) -> dict[str, Any]:
    style = content_hash(Path(run.recipe.style)) if run.recipe.style else None
    return {"style": style, "trust_code": run.recipe.trust_code, **(code_of(run.style) if style else {})}


def code_of(style: Style) -> dict[str, Any]:
    """Hashes of the files whose functions are rules of the style; nothing where there are none."""
    files = {rule.function: rule.file() for rule in style.rules if rule.kind == "python"}
    return {"code": {name: content_hash(file) if file else None for name, file in files.items()}} if files else {}


def _advise_settings(run: RunContext) -> dict[str, Any]:
    asked, recipe = run.recipe.advise, run.recipe
    settings = _sample_settings(run) | _style_settings(run) | {"advise": asked.model_dump(), "seed": recipe.seed}
    settings["name"] = run.policy_name  # by it a pair's rejected answer is known to be the policy's own
    if asked.hidden and recipe.model:  # its weights are looked at here, whoever answers
        train = recipe.train
        settings |= {"model": run.model_fingerprint, "dtype": train.dtype, "max_tokens": train.max_tokens}
    if asked.judge == "llm":
        settings["judge"] = _asked(settings_of(run.recipe, "judge"))
        settings["template"] = _source(run.recipe.pairs.judge_prompt)
    return settings


def _train_settings(run: RunContext) -> dict[str, Any]:
    settings = _model_settings(run, "train")
    settings["train"]["objective"] = decided(run.recipe, run.folder).objective
    for name in ("save_steps", "save_total_limit", "reference_cache"):  # how it is interrupted, not what comes out
        del settings["train"][name]
    if retains(run.recipe):
        settings["retain"] = run.need(run.recipe.retain, "retain").model_dump(include={"weight", "per_step"})
    if recipe_evaluates(run.recipe):
        settings["heldout"] = content_hash(run.path("evals/given-pairs.jsonl"))
    return settings


def retains(recipe: Recipe) -> bool:
    """Whether answers are held in place while it trains."""
    return recipe.retain is not None and recipe.retain.weight > 0


def _retain_settings(run: RunContext) -> dict[str, Any]:
    asked = run.need(run.recipe.retain, "retain")
    used = _model_settings(run) | {"dtype": run.recipe.train.dtype, "strict": run.recipe.strict}
    settings = {"retain": asked.model_dump(include={"max_new_tokens", "batch_size"}), "prompts": _source(asked.prompts)}
    return used | settings | _decontamination(run.recipe)


def recipe_evaluates(recipe: Recipe) -> bool:
    """Whether held-out pairs are measured during training."""
    return recipe.train.arguments.get("eval_strategy", "no") != "no"


def _evaluate_settings(run: RunContext) -> dict[str, Any]:
    used = {"beta", "max_tokens", "forward"}
    return _model_settings(run, "eval") | _style_settings(run) | {"train": run.recipe.train.model_dump(include=used)}


def _report_settings(run: RunContext) -> dict[str, Any]:
    """Of the manifest, what the page and the card show and no input file holds."""
    return read_manifest(run.folder).model_dump(include={"name", "anchorline", "versions", "makers", "costs"})


def _makes(recipe: Recipe) -> bool:
    """Whether pairs are made, and not read from a file."""
    return recipe.pairs.file is None


def _samples(recipe: Recipe) -> bool:
    """Whether the policy is asked for the answers that pairs are made of."""
    return _makes(recipe) and recipe.pairs.answers is None


def _sample_settings(run: RunContext) -> dict[str, Any]:
    served = run.recipe.llm.policy
    if served is None:
        return _model_settings(run, "sample") | {"dtype": run.recipe.train.dtype}
    settings = run.recipe.sample.model_dump(exclude={"batch_size"})
    asked = {"sample": settings, "policy": _asked(served), "cut": run.recipe.sample.max_new_tokens}
    return asked | {"seed": run.recipe.seed}  # by which `ask_policy` numbers the samples


def _asked(settings: EndpointSettings) -> dict[str, Any]:
    """What of an endpoint's settings changes its replies."""
    return settings.model_dump(include={"model", "engine", "temperature", "top_p", "max_tokens", "extra_body"})


def _pairs_settings(run: RunContext, maker: Maker) -> dict[str, Any]:
    pairs, names = run.recipe.pairs, needed_endpoints(run.recipe, maker)
    if unverified_rules(run.recipe, maker):
        used = {"maker": maker, "reviser": "rules"}
    else:
        used = pairs.model_dump(exclude={"maker", "file", "answers", "heldout", "engine", "workers"}) | {"maker": maker}
        used |= {name: _source(getattr(pairs, name)) for name in ("prompt", "judge_prompt")}
    asked = {name: _asked(settings_of(run.recipe, name)) for name in names}
    return {"pairs": used, "asked": asked, "model": run.policy_name} | _style_settings(run)


def _answers_settings(run: RunContext) -> dict[str, Any]:
    return _sifting_settings(run) | {"answers": _source(run.recipe.pairs.answers)}


def _sifting_settings(run: RunContext) -> dict[str, Any]:
    """What decides which of the given rows are trained on, and what evaluation uses."""
    used: dict[str, Any] = {"seed": run.recipe.seed, "strict": run.recipe.strict}
    if sources := run.recipe.prompts:
        used |= {name: _source(getattr(sources, name)) for name in ("heldout", "general")}
        used |= sources.model_dump(include={"system", "limit"}) | _decontamination(run.recipe)
    return used


def _decontamination(recipe: Recipe) -> dict[str, Any]:
    sources = recipe.prompts
    if sources is None or not sources.decontaminate:
        return {}
    return {"decontaminated": list(map(_source, sources.decontaminate)), "words": sources.decontaminate_words}


def _pair_stages(maker: Maker) -> tuple[Stage, Stage]:
    """The run's own pairs by this maker, and the same as a set beside them."""

    def stage(name: str, target: str, wanted: Callable[[Recipe], bool]) -> Stage:
        return Stage(
            name,
            f"answers become pairs by the maker {maker}",
            _MADE_OF[maker],
            (target,),
            lambda run: _pairs_settings(run, maker),
            lambda run: _pairs(run, maker, target, name),
            wanted,
        )

    own = stage("pairs", "pairs.jsonl", lambda recipe: _makes(recipe) and recipe.pairs.maker == maker)
    return own, stage(set_stage(maker), f"{SETS}/{maker}/pairs.jsonl", _makes)


def set_stage(maker: Maker) -> str:
    """The stage that makes a maker's set beside the run's own pairs."""
    return f"pairs:{maker}"


def _given_settings(run: RunContext) -> dict[str, Any]:
    pairs = run.recipe.pairs
    return _sifting_settings(run) | {"pairs": _source(pairs.file), "share": pairs.heldout}


_TRAINING = ("prompts.jsonl", "unstyled-prompts.jsonl")
_ANSWERS = ("answers.jsonl", "unstyled-answers.jsonl")
_MADE_OF: dict[Maker, tuple[str, ...]] = {
    "clair": _ANSWERS,
    "stronger": ("answers.jsonl",),
    "on_policy": ("prompts.jsonl", "answers.jsonl", MORE, CANDIDATES),
    "off_policy": ("prompts.jsonl", CANDIDATES),
}
"""What each maker's rows are read from."""
_HELDOUT = ("evals/prompts.jsonl", "evals/general-prompts.jsonl")
_BASELINE = ("evals/before.jsonl", "evals/general.jsonl")
_EVALS = (
    "evals/after.jsonl",
    "evals/pairs.jsonl",
    "evals/style.json",
    "evals/answers.jsonl",
    "evals/preference.json",
    "evals/preference.jsonl",
    "evals/drift.json",
    "evals/drift.jsonl",
)

STAGES: tuple[Stage, ...] = (
    Stage("prompts", "read the prompts", (), (*_TRAINING, *_HELDOUT), _prompts_settings, _prompts, _samples),
    Stage(
        "sample",
        "the policy answers the training prompts",
        _TRAINING,
        _ANSWERS,
        _sample_settings,
        _sample,
        _samples,
    ),
    Stage(
        "resample",
        "the policy answers the training prompts again",
        ("prompts.jsonl",),
        (MORE,),
        lambda run: _sample_settings(run) | {"samples": run.recipe.pairs.samples, "salt": AGAIN},
        _resample,
        _samples,
    ),
    Stage(
        "answers",
        "read the given answers",
        (),
        ("answers.jsonl", CANDIDATES, *_HELDOUT),
        _answers_settings,
        _given_answers,
        lambda recipe: _makes(recipe) and recipe.pairs.answers is not None,
    ),
    Stage(
        "given",
        "read the given pairs",
        (),
        ("pairs.jsonl", "evals/given-pairs.jsonl", *_HELDOUT),
        _given_settings,
        _given_pairs,
        lambda recipe: not _makes(recipe),
    ),
    Stage(
        "baseline",
        "the policy answers the held-out and the general prompts",
        _HELDOUT,
        _BASELINE,
        lambda run: _model_settings(run, "eval"),
        _baseline,
        lambda recipe: recipe.model is not None,
    ),
    *(stage for maker in MAKERS for stage in _pair_stages(maker)),
    Stage(
        "measure",
        "how contrastive the pairs are",
        ("pairs.jsonl",),
        ("measure.json",),
        lambda run: {"model": run.model_fingerprint if run.recipe.model else None},
        _measure,
    ),
    Stage(
        "advise",
        "where the policy stands to the pairs, and the objective that follows",
        ("pairs.jsonl",),
        (ADVICE, ANSWERED, JUDGED),
        _advise_settings,
        advise_set,
        lambda recipe: recipe.train.objective == AUTO,
    ),
    Stage(
        "retain",
        "the reference answers the prompts that are to stay",
        _HELDOUT,
        (RETAINED,),
        _retain_settings,
        _retain,
        retains,
    ),
    Stage(
        "train",
        "train the policy",
        ("pairs.jsonl", RETAINED),
        ("train", "model"),
        _train_settings,
        _train,
        after=(ADVICE,),
    ),
    Stage(
        "evaluate",
        "before against after",
        ("model", *_BASELINE, *_HELDOUT, "evals/given-pairs.jsonl"),
        _EVALS,
        _evaluate_settings,
        _evaluate,
    ),
    Stage(
        "report",
        "one self-contained page",
        ("pairs.jsonl", "failures.jsonl", "measure.json", ADVICE, "train", *_EVALS, "recipe.yaml"),
        ("report.html", "README.md", "summary.json"),
        _report_settings,
        _report,
    ),
)


def asks_models(stage: Stage, recipe: Recipe) -> bool:
    """Whether the stage asks endpoints, some of which may have failed."""
    if stage.name in SAMPLING:
        return recipe.llm.policy is not None
    if stage.name == "advise":
        return recipe.llm.policy is not None or recipe.advise.judge == "llm"
    return stage.name.startswith("pairs")


def rivals(stage: Stage) -> list[Stage]:
    """Other stages that write some of the same files (`pairs` and `given`): what they wrote is gone when this one runs."""
    return [other for other in STAGES if other.name != stage.name and set(other.outputs) & set(stage.outputs)]


def remove_outputs(stage: Stage, folder: Path) -> None:
    """Forget what an earlier run of the stage wrote, finished or not."""
    for name in stage.outputs:
        for path in (folder / name, folder / (name + ".partial")):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def keep_failures(folder: Path, stage: str, failures: list[Failure]) -> None:
    """Put a stage's failures in the place of its earlier ones in `failures.jsonl`."""
    file = folder / "failures.jsonl"
    others = [row for _, row in read_appended(file).rows if row["stage"] != stage]
    write_jsonl(file, [*others, *(failure_to_row(replace(failure, stage=stage)) for failure in failures)])
