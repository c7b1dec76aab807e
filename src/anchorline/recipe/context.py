"""What the stages of one run share: the recipe, the run folder, the style, the loaded model, the progress display.

>>> run = RunContext(recipe, Path("runs/harbour"))  # doctest: +SKIP
>>> run.path("pairs.jsonl")  # doctest: +SKIP
PosixPath('runs/harbour/pairs.jsonl')
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from anchorline.data import (
    prompt_from_row,
    read_jsonl,
    write_jsonl,
)
from anchorline.errors import RecipeError
from anchorline.llm.types import SampleSettings
from anchorline.progress import SILENT, Progress
from anchorline.recipe.config import Recipe
from anchorline.style import Style, load_style
from anchorline.types import Answer, Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from anchorline.llm.device import DtypeName
    from anchorline.llm.models import Loaded
    from anchorline.train.tokenise import Example

T = TypeVar("T")


class Calls(NamedTuple):
    """How models are asked this time; what comes out does not depend on it."""

    retry_failed: bool = False
    """Ask again what failed."""
    batch: bool = False
    """Order replies by the endpoints' batch interface, at half the price."""


AS_USUAL = Calls()


class RunContext:
    """One run's recipe and folder; it loads the style and the model at first use."""

    def __init__(
        self, recipe: Recipe, folder: Path, *, progress: Progress = SILENT, calls: Calls = AS_USUAL, run_id: str = ""
    ) -> None:
        """`run_id` is what the run's payments are kept under."""
        self.recipe, self.folder, self.progress, self.calls, self.id = recipe, folder, progress, calls, run_id
        self.made: dict[str, Any] = {}
        """What became of the rows of the makers that ran, by stage, for the manifest."""
        self.reference_states: dict[tuple[Example, ...], list[Tensor]] = {}
        """What the reference made of the general prompts' answers, for one policy after the other (`drift`)."""
        self._loaded: tuple[DtypeName, Loaded] | None = None

    def path(self, name: str) -> Path:
        """A file in the run folder."""
        return self.folder / name

    def need(self, value: T | None, setting: str) -> T:
        """The value, or a RecipeError that says which setting is lacking."""
        if value is None:
            raise RecipeError(f"the setting `{setting}` is lacking; put it into the recipe, or add --set {setting}=…")
        return value

    @property
    def model(self) -> str:
        """The policy's id."""
        return self.need(self.recipe.model, "model")

    @property
    def policy_name(self) -> str:
        """The policy's id, as pairs name it; "" where the answers came from elsewhere."""
        served = self.recipe.llm.policy
        return self.recipe.model or (served.model if served else "")

    @cached_property
    def model_fingerprint(self) -> str:
        """A hash of the policy's weights, tokenizer and template."""
        from anchorline.llm.models import fingerprint, resolve

        return fingerprint(resolve(self.model))

    @cached_property
    def style(self) -> Style:
        """The recipe's style."""
        return load_style(self.need(self.recipe.style, "style"), trust_code=self.recipe.trust_code)

    def loaded(self, dtype: DtypeName) -> Loaded:
        """The policy as it came, loaded once for the stages that ask it in one number format."""
        if self._loaded is None or self._loaded[0] != dtype:
            from anchorline.llm.models import load

            self.release()
            with self.progress.task(f"load {self.recipe.model}", total=1, unit="model") as advance:
                self._loaded = dtype, load(self.model, dtype=dtype)
                advance(1)
        return self._loaded[1]

    def release(self) -> None:
        """Forget the loaded model: the next stage has one of its own."""
        self._loaded = None

    def read(self, name: str, parse: Callable[..., T]) -> list[T]:
        """The rows of a file in the run folder, as `parse` reads them; none where there is no file."""
        file = self.path(name)
        return [parse(row) for _, row in read_jsonl(file)] if file.is_file() else []

    def write(self, name: str, rows: Iterable[T], render: Callable[[T], dict]) -> None:
        """Replace a file of rows in the run folder."""
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(self.path(name), [render(row) for row in rows])

    def prompts(self, name: str) -> list[Prompt]:
        """A file of prompts in the run folder."""
        return self.read(name, prompt_from_row)

    def answer(
        self, loaded: Loaded, prompts: Sequence[Prompt], settings: SampleSettings, name: str, *, salt: int = 0
    ) -> list[Answer]:
        """Answer the prompts into file `name`, keeping every finished batch in `name`.partial until all are there.

        A file that is there already was finished by this very stage before it was interrupted. Another `salt` gives the
        same prompts other luck.
        """
        from anchorline.evals.answers import answer_all

        seed = self.recipe.seed + salt
        return answer_all(self.path(name), loaded, prompts, settings, seed=seed, progress=self.progress)
