"""The recipe file: what a run is made of, checked before anything starts.

>>> Recipe(model="embedded:smollm2-135m-instruct", prompts=Prompts(train="prompts.jsonl")).train.beta
0.1
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from anchorline.advise.settings import AdviseSettings
from anchorline.data.files import READABLE
from anchorline.data.hub import looks_like_hub_id
from anchorline.errors import RecipeError
from anchorline.evals.settings import EvalSettings
from anchorline.llm.settings import BudgetSettings, EndpointSettings
from anchorline.llm.types import SampleSettings
from anchorline.pairs.settings import PairSettings
from anchorline.recipe.grid import CompareSettings
from anchorline.textfile import read_text, yaml_problem
from anchorline.train.config import RetainSettings, TrainSettings

MAX_BYTES = 1_000_000
_NUMBER = re.compile(r"-?\d{1,9}(\.\d{1,9})?")
"""What is no key, whatever the setting."""


class Prompts(BaseModel):
    """Where the prompts come from: files (.jsonl, .json, .parquet) or hub ids."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: str | None = None
    """Prompts whose answers become pairs; not needed where answers or pairs are given."""
    heldout: str | float = 0.2
    """Prompts that evaluation uses: a file, or the share of `train` that is held out."""
    general: str | None = None
    """Prompts that have nothing to do with the style: drift is measured on them."""
    unstyled: str | None = None
    """Prompts where the style does not apply. Their pairs are turned round (the policy's own answer is chosen, its repair
    rejected), so that the model learns where to leave its answers alone. Not the `general` ones: those are for measuring."""
    system: str | None = None
    """A system message for each training and held-out prompt that has none. General prompts are left as they are."""
    limit: int | None = Field(None, ge=1)
    """Use only this many of the training prompts, the first ones."""
    decontaminate: tuple[str, ...] = ()
    """Evaluation sets: a training prompt that shares `decontaminate_words` words in a row with one of them is left out."""
    decontaminate_words: int = Field(13, ge=5, le=100)
    """How many words in a row count as an overlap."""


_POLICY_SAMPLING = {"temperature": "temperature", "top_p": "top_p", "max_tokens": "max_new_tokens"}


class Models(BaseModel):
    """The models that are asked beside the policy, and what they may cost."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    policy: EndpointSettings | None = None
    """The policy, where a server answers for it (vLLM, say); null: it is sampled in this process."""
    reviser: EndpointSettings | None = None
    """Revises the policy's answers (clair with `pairs.reviser: llm`)."""
    judge: EndpointSettings | None = None
    """Says which answer is better (`pairs.judge: llm`, `pairs.verify: llm`)."""
    stronger: EndpointSettings | None = None
    """Writes an answer of its own (maker stronger)."""
    others: tuple[EndpointSettings, ...] = ()
    """Two or more models whose answers are judged (maker off_policy)."""
    cache: str | None = None
    """The file that keeps every reply; null: requests.sqlite in the run folder. Several runs may share one."""
    budget: BudgetSettings = BudgetSettings()

    @field_validator("policy")
    @classmethod
    def _sampled_by_sample(cls, policy: EndpointSettings | None) -> EndpointSettings | None:
        """A resolved recipe holds the defaults, so these are let through."""
        for name in policy.model_dump(include={*_POLICY_SAMPLING}, exclude_defaults=True) if policy else ():
            raise ValueError(
                f"{name} has no effect here; how the policy is sampled is set by sample.{_POLICY_SAMPLING[name]}"
            )
        return policy


class Recipe(BaseModel):
    """One run, from prompts to an aligned model and a report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("run", pattern=r"^[\w][\w.-]{0,63}$")
    """Names the run folder: runs/NAME."""
    model: str | None = None
    """The policy: embedded:smollm2-135m-instruct, a hub id, or a folder."""
    style: str | None = None
    """The style's YAML file."""
    trust_code: bool = False
    """Let the style's rules of kind `python` import and run the functions that they name."""
    strict: bool = False
    """Stop at the first malformed row instead of reporting it and going on."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Of sampling, the order of the pairs, and the adapter's first weights."""
    prompts: Prompts | None = None
    sample: SampleSettings = SampleSettings()
    llm: Models = Models()
    pairs: PairSettings = PairSettings()
    advise: AdviseSettings = AdviseSettings()
    train: TrainSettings = TrainSettings()
    retain: RetainSettings | None = None
    """Prompts whose answers are to stay as they are, whatever the objective."""
    eval: EvalSettings = EvalSettings()
    compare: CompareSettings | None = None
    """The grid of `anchorline compare`."""


SECRET = (("llm",), ("judge",), ("train", "arguments"))
"""Groups of settings whose values are not shown: a key may stand there by mistake. `judge` is that of `eval --model`."""
PATHS = (
    ("model",),
    ("style",),
    ("prompts", "train"),
    ("prompts", "heldout"),
    ("prompts", "general"),
    ("prompts", "unstyled"),
    ("prompts", "decontaminate"),
    ("retain", "prompts"),
    ("pairs", "file"),
    ("pairs", "answers"),
    ("pairs", "prompt"),
    ("pairs", "judge_prompt"),
    ("llm", "cache"),
    ("train", "reference_cache"),
)
"""Settings that may name a file or folder: relative ones are looked up beside the recipe. So are models of `llm` that run in
process."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and lay `key=value` overrides over it (`train.epochs=2`; values are YAML).

    Relative paths of files in the recipe are taken from the recipe's folder; those in overrides, and in the resolved
    recipe of a run folder (which may be named instead of a file), from the current one.

    Raises:
        RecipeError: one line that names the file, the setting, what was got and what was expected.

    """
    path = Path(path)
    resolved = path.is_dir() and (path / "recipe.yaml").is_file()
    path = path / "recipe.yaml" if resolved else path
    data = _read(path)
    if not resolved:
        for keys in PATHS:
            _beside(data, keys, path.parent)
        for endpoint in _endpoints(data.get("llm")):
            if endpoint.get("engine") == "transformers":
                _beside(endpoint, ("model",), path.parent)
    for override in overrides:
        override_setting(data, override)
    return parse_recipe(data, source=str(path))


def parse_recipe(data: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
    """Check a mapping; `source` opens the error messages."""
    try:
        return Recipe.model_validate(dict(data))
    except ValidationError as error:
        raise RecipeError(f"{source}: {problem(error)}") from error


def override_setting(data: dict[str, Any], override: str) -> None:
    """Lay one `a.b=value` over a recipe's data. A mapping that is named by one of its keys is made where it is missing."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override}: expected key=value, such as train.epochs=2")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        shown = f"{key}=…" if _secret(parts) else override
        raise RecipeError(f"--set {shown}: the value is not YAML ({yaml_problem(error)})") from error
    place = data
    for part in parts[:-1]:
        inner = place.get(part)
        if inner is None:
            inner = {}
        if not isinstance(inner, dict):
            got = "a value that is not shown" if _secret(parts) else repr(inner)
            shown = f"{key}=…" if _secret(parts) else override
            raise RecipeError(f"--set {shown}: {part} is {got}, not a group of settings")
        place[part] = inner = dict(inner)
        place = inner
    place[parts[-1]] = value


def problem(error: ValidationError) -> str:
    """The first of pydantic's complaints as a line; how many more there are."""
    first, *more = error.errors()
    place = ".".join(str(part) for part in first["loc"])
    value = first.get("input")
    hidden = _secret(first["loc"]) and not _NUMBER.fullmatch(str(value))
    got = "a value that is not shown" if hidden else _short(value)
    if first["type"] == "extra_forbidden":
        text = f"unknown setting {place!r}; see the recipe's settings in docs/recipe.md"
    elif first["type"] == "value_error":
        text = f"{place}: {first['msg'].removeprefix('Value error, ')}"
    elif first["type"] == "missing":
        text = f"{place}: is missing; see the recipe's settings in docs/recipe.md"
    else:
        expected = first["msg"][0].lower() + first["msg"][1:]
        text = f"{place}: got {got}, but {expected}"
    return text + (f" (and {len(more)} more)" if more else "")


def _secret(place: Sequence[str | int]) -> bool:
    """Whether what stands at this place of a recipe may be a key, or hold one."""
    return any(all(one == other for one, other in zip(place, group, strict=False)) for group in SECRET)


def _read(path: Path) -> dict[str, Any]:
    text = read_text(path, what="recipe", kind="YAML file", most=MAX_BYTES, error=RecipeError)
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RecipeError(f"{path}: is not YAML: {yaml_problem(error)}") from None
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise RecipeError(f"{path}: holds {_kind(data)} at its top, expected settings such as `model:` and `prompts:`")
    return data


def _beside(data: dict[str, Any], keys: tuple[str, ...], folder: Path) -> None:
    place: Any = data
    for key in keys[:-1]:
        place = place.get(key) if isinstance(place, dict) else None
    value = place.get(keys[-1]) if isinstance(place, dict) else None
    if isinstance(value, list) and keys[-1] == "decontaminate":
        place[keys[-1]] = [_path_beside(keys, one, folder) for one in value]
    elif value is not None:
        place[keys[-1]] = _path_beside(keys, value, folder)


def _endpoints(llm: Any) -> list[dict[str, Any]]:
    groups = list(llm.values()) if isinstance(llm, dict) else []
    many = [one for group in groups for one in (group if isinstance(group, list) else [group])]
    return [one for one in many if isinstance(one, dict)]


def _path_beside(keys: tuple[str, ...], value: Any, folder: Path) -> Any:
    """The path as it lies beside the recipe; what is no path, or may be a hub id, as it is."""
    if not isinstance(value, str) or "\0" in value:
        return value
    try:
        beside = folder / Path(value).expanduser()
    except RuntimeError:
        raise RecipeError(f"{'.'.join(keys)}: got {value!r}, but there is no such home folder; write it out") from None
    # a model or data set may be a hub id: only what lies there, or can only be a file, is a path
    if keys[-1] in ("model", "file", "answers") and not beside.exists():
        return value
    may_be_id = looks_like_hub_id(value) and Path(value).suffix.lower() not in READABLE
    if keys[0] in ("prompts", "retain") and not beside.exists() and may_be_id:
        return value
    return str(beside)


def _kind(value: Any) -> str:
    return {"list": "a list", "dict": "names that are no text", "NoneType": "nothing"}.get(
        type(value).__name__, "one value"
    )


def _short(value: Any) -> str:
    # few items of few levels: the whole text of nested YAML aliases may be larger than the memory
    shortener = reprlib.Repr()
    shortener.maxlevel = 2
    return shortener.repr(value)[:200]
