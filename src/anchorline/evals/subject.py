"""The trained model beside its reference, ready to be compared.

>>> subject = load_subject(folder / "model", "embedded:smollm2-135m-instruct", dtype="float32", packed=True)  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from anchorline.llm.device import DtypeName
from anchorline.llm.models import Loaded, adapter_base, end_of_turn, load
from anchorline.train.attention import PACKED
from anchorline.train.policy import autocast
from anchorline.train.tokenise import Template


class Subject(NamedTuple):
    """A trained model and its reference. With an adapter both are one model, and `switched_off` is the reference."""

    policy: Loaded
    reference: Any
    switched_off: Callable[[], AbstractContextManager[Any]]
    packed: bool

    @property
    def template(self) -> Template:
        """The tokenizer and the ids that end a turn."""
        return Template(self.policy.tokenizer, end_of_turn(self.policy))

    @property
    def pad(self) -> int:
        """The padding token's id."""
        pad = self.policy.tokenizer.pad_token_id
        assert isinstance(pad, int)
        return pad

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """The number format in which both models compute their log-probs."""
        apart = self.reference is not self.policy.model
        with autocast(self.policy), autocast(self.policy._replace(model=self.reference)) if apart else nullcontext():
            yield


def load_subject(trained: Path, model: str, *, dtype: DtypeName, packed: bool) -> Subject:
    """Load what training wrote, and its reference `model`, both in `dtype`."""
    policy = load(str(trained), dtype=dtype)
    if adapter_base(trained):
        return Subject(policy, policy.model, policy.model.disable_adapter, packed)
    return Subject(policy, load(model, dtype=dtype).model, nullcontext, packed)


def attend(subject: Subject, how: str) -> None:
    """Let both models attend "packed" (for log-probs) or "plain" (for answering)."""
    if subject.packed:
        for model in (subject.policy.model, subject.reference):
            model.set_attn_implementation(PACKED if how == "packed" else "sdpa")
