"""How alike the policy's hidden states of chosen and rejected are: where they are, lowering one may lower the other.

The idea is the centred hidden embedding similarity (CHES) of Razin et al., "Unintentional Unalignment: Likelihood
Displacement in Direct Preference Optimization" (arXiv 2410.08847). With h_w and h_l the sums of the last hidden states
that predict an answer's tokens, CHES is ⟨h_w, h_l⟩ − ‖h_w‖². Here both are means over the tokens, so that long answers
compare with short ones; the higher, the more alike. Beside it the cosine of the two, which needs no other pair to be read.

>>> hidden_similarity(pairs, "embedded:smollm2-135m-instruct", TrainSettings())[0]  # doctest: +SKIP
{'id': 'p1', 'cosine': 0.97, 'ches': -41.2}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from anchorline.llm.models import end_of_turn
from anchorline.llm.quiet import quiet
from anchorline.progress import SILENT, Progress
from anchorline.train.config import TrainSettings
from anchorline.train.forward import by_branch, packed_hidden, rounds_to_half
from anchorline.train.layout import cut, pack
from anchorline.train.policy import autocast, load_policy
from anchorline.train.tokenise import Template, tokenise
from anchorline.types import Pair


def hidden_similarity(
    pairs: Sequence[Pair], model: str, settings: TrainSettings, *, progress: Progress = SILENT
) -> list[dict[str, Any]]:
    """Of each pair that can be tokenised: `id`, `cosine` (−1 to 1) and `ches` (squared units of the hidden state).

    Runs packed, whatever `settings.forward` says. Raises ModelError where the model does not run packed.
    """
    loaded = load_policy(model, settings.model_copy(update={"forward": "packed"}))
    template = Template(loaded.tokenizer, end_of_turn(loaded))
    examples = tokenise(pairs, template, max_tokens=settings.max_tokens, overlong="drop").examples
    found: dict[int, dict[str, Any]] = {}
    with (
        quiet(),
        autocast(loaded),
        torch.no_grad(),
        progress.task("hidden", total=len(examples), unit="pairs") as advance,
    ):
        for places in cut([e.tokens for e in examples], settings.tokens_per_row):
            row = [examples[i] for i in places]
            packed = pack(row, share=not rounds_to_half(loaded.model)).to(loaded.model.device)
            pieces = [piece.float().mean(dim=0) for piece in by_branch(packed_hidden(loaded.model, packed), row)]
            for i, chosen, rejected in zip(places, pieces[::2], pieces[1::2], strict=True):
                cosine = torch.cosine_similarity(chosen, rejected, dim=0)
                ches = chosen @ rejected - chosen @ chosen
                found[i] = {"id": examples[i].id, "cosine": float(cosine), "ches": float(ches)}
            advance(len(row))
    return [found[i] for i in range(len(examples))]
