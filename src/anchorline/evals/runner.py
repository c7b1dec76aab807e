"""What the evaluations of one model share: its answers, the model beside its reference, the judge, and the folder.

Answers lie in the folder under a name made of model, prompts and settings, a judge's replies in the request cache beside
them. So whatever was stopped goes on, and whatever was answered is not asked again.

>>> work = Evaluation(EvaluationSettings(model="embedded:smollm2-135m-instruct"), Path("runs/eval"))  # doctest: +SKIP
>>> work.answers("model", prompts, "held-out")  # doctest: +SKIP
[Answer(id='a1', ...), ...]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, NamedTuple

from anchorline.data import prompt_to_row, read_prompts, write_jsonl
from anchorline.errors import EndpointError, ModelError, UserError
from anchorline.evals.answers import answer_all
from anchorline.evals.settings import EvaluationSettings
from anchorline.evals.subject import Subject, load_subject
from anchorline.llm.build import build, check_endpoint
from anchorline.llm.cache import RequestCache
from anchorline.llm.device import measuring_dtype
from anchorline.llm.embedded import embedded_id
from anchorline.llm.models import Loaded, adapter_base, fingerprint, load, load_tokenizer, resolve
from anchorline.llm.types import Endpoint, SampleSettings
from anchorline.progress import SILENT, Progress
from anchorline.style import Style, load_style
from anchorline.types import Answer, Prompt

Side = Literal["model", "against"]
CACHE = "requests.sqlite"


class Asked(NamedTuple):
    """Prompts, and the group of each by its id: what its row says, else the file that it comes from."""

    prompts: list[Prompt]
    groups: dict[str, str]
    problems: list[str]


def _free(id: str, stem: str, taken: Mapping[str, str]) -> str:
    """The id; where it is taken, with its file's name before it, and a number where that is taken too."""
    candidates = chain((id, f"{stem}/{id}"), (f"{stem}/{id}-{n}" for n in count(2)))
    return next(free for free in candidates if free not in taken)


def _asked(sources: Sequence[str], limit: int | None) -> Asked:
    prompts: list[Prompt] = []
    groups: dict[str, str] = {}
    problems: list[str] = []
    for source in sources:
        found = read_prompts(source)
        stem = Path(source).stem
        # files number their rows each for itself: a second "1" is another prompt, and keeps its file's name with it
        said = {prompt.messages for prompt in prompts}
        rows = found.rows[:limit]
        new = [prompt for prompt in rows if prompt.messages not in said]
        for prompt in new:
            id = _free(prompt.id, stem, groups)
            prompts.append(replace(prompt, id=id))
            groups[id] = prompt.group or stem
        if left := len(rows) - len(new):
            problems.append(f"{source}: {left} prompts stand in an earlier file, too, and count there")
        problems += map(str, found.problems)
    return Asked(prompts, groups, problems)


class Evaluation:
    """See the module."""

    def __init__(self, settings: EvaluationSettings, folder: Path, *, progress: Progress = SILENT) -> None:
        self.settings, self.folder, self.progress = settings, folder, progress
        self._loaded: tuple[str, Loaded] | None = None

    @property
    def against(self) -> str | None:
        """The model to compare with: the one that is named, else an adapter's base."""
        return self.settings.against or adapter_base(resolve(self.settings.model))

    @property
    def against_shown(self) -> str | None:
        """Its name for readers: of an embedded model the id, not the folder on this machine that an adapter names."""
        return self.against and (embedded_id(self.against) or self.against)

    @cached_property
    def style(self) -> Style:
        """The style, which a task asked for."""
        return load_style(self.need(self.settings.style, "--style"), trust_code=self.settings.trust_code)

    @cached_property
    def asked(self) -> Asked:
        """The prompts of all files."""
        return _asked(self.settings.prompts or (self.need(None, "--prompts"),), self.settings.limit)

    @cached_property
    def general(self) -> Asked:
        """The prompts on which drift is measured: those of `general`, else all."""
        return _asked(self.settings.general, self.settings.limit) if self.settings.general else self.asked

    def need(self, value: str | None, option: str) -> str:
        """The value, or a UserError that names the option."""
        if value is None:
            raise UserError(
                f"{option} is lacking, which one of the tasks {', '.join(self.settings.tasks)} needs; add it"
            )
        return value

    def need_judge(self) -> None:
        """Raise a UserError where no model judges, its key is not set, or it is not here."""
        if self.settings.judge is None:
            self.need(None, "--judge")
        else:
            check_endpoint(self.settings.judge)

    def need_same_tokens(self) -> None:
        """Raise a UserError where there is no model to compare with, or one whose tokens are others."""
        model, against = self.settings.model, self.need(self.against, "--against")
        if load_tokenizer(model).get_vocab() != load_tokenizer(against).get_vocab():
            raise ModelError(
                f"{model} and {against} have different tokenizers, so log-probs of the same tokens cannot be compared; "
                "leave out the tasks preference and drift, or name a model with the same tokenizer"
            )

    def name(self, side: Side) -> str:
        """The side's model, as it was named."""
        return self.settings.model if side == "model" else self.need(self.against, "--against")

    def key(self, side: Side, *settings: Any) -> str:
        """What names a file of the model's replies: the model, its number format, and what it was asked with."""
        parts = [fingerprint(resolve(self.name(side))), self.settings.eval.dtype, *settings]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    def loaded(self, side: Side) -> Loaded:
        """The side's model; one at a time is kept."""
        name = self.name(side)
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None
            self._loaded = name, load(name, dtype=measuring_dtype(self.settings.eval.dtype))
        return self._loaded[1]

    def answers(
        self, side: Side, prompts: Sequence[Prompt], name: str, *, max_new_tokens: int | None = None
    ) -> list[Answer]:
        """The side's answers to the prompts, from its file where they are there."""
        asked = self.settings.eval
        sampling = SampleSettings(
            max_new_tokens=max_new_tokens or asked.max_new_tokens,
            temperature=asked.temperature,
            batch_size=asked.batch_size,
        )
        key = self.key(side, sampling.model_dump(), self.settings.seed, [prompt_to_row(prompt) for prompt in prompts])
        file = self.folder / "answers" / f"{name}-{side}-{key}.jsonl"
        return answer_all(file, self.loaded(side), prompts, sampling, seed=self.settings.seed, progress=self.progress)

    def subject(self) -> Subject:
        """The model beside its reference, for log-probs by the plain forward, which every architecture has."""
        model, against, dtype = self.settings.model, self.need(self.against, "--against"), self.settings.eval.dtype
        self._loaded = None
        trained = resolve(model)
        base = adapter_base(trained)
        exact = measuring_dtype(dtype)
        if base is not None and resolve(base) == resolve(against):
            return load_subject(trained, against, dtype=exact, packed=False)
        return Subject(load(model, dtype=exact), load(against, dtype=exact).model, nullcontext, packed=False)

    def keep(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """The rows behind a figure, as NAME.jsonl in the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_jsonl(self.folder / f"{name}.jsonl", rows)

    @asynccontextmanager
    async def judge(self) -> AsyncIterator[Endpoint]:
        """The model that judges, behind the cache in the folder."""
        settings = self.settings.judge
        assert settings is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        with RequestCache(self.folder / CACHE) as cache:
            async with build(settings, cache=cache, run="eval", retry_failed=True) as endpoint:
                yield endpoint

    def silent(self, n: int, what: str, reason: str) -> EndpointError:
        """The error where the judge said nothing that counts: a figure of no verdict, or of lots alone, is none."""
        judge = self.settings.judge
        return EndpointError(f"{judge.model if judge else 'the judge'} judged none of {n} {what}: {reason}")
