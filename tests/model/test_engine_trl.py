"""TRL 1.16's own trainers and our engine on TRL's own batch: losses, log-probs and every gradient, for six kinds of models.

TRL tokenises, collates, runs its forward and its loss; ours gets the batch's tokens, packs them and runs its own.
"""

from __future__ import annotations

import copy
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from test_train_toys import PAD, SIZES, pair, template, tiny, tokenizer, words

from anchorline.errors import ModelError
from anchorline.objectives.table import loss
from anchorline.train.attention import PACKED, refuse_unpackable
from anchorline.train.forward import check_forward, example_logps
from anchorline.train.tokenise import Example, tokenise
from anchorline.train.trainer import batch_logps
from anchorline.types import Unpaired

pytestmark = pytest.mark.model

BETA = 0.1
PAIRS = [pair(i, chosen=words(6 + i, first=11 * i), rejected=words(9 - i, first=40 + i)) for i in range(4)]
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "n_inner": 64}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {}),
    "Qwen3": ("Qwen3", {"head_dim": 8}),
    # the first layer sees four tokens back, the second all
    "Gemma3": (
        "Gemma3Text",
        {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "Phi3": ("Phi3", {"pad_token_id": PAD}),
    "Olmo2": ("Olmo2", {}),
    "GPT2": ("GPT2", GPT2),
}
LIMITS = {torch.float64: 1e-6, torch.float32: 1e-4}
"""On the norm of the difference, as a share of the whole gradient's."""
OBJECTIVES = {"apo_zero": "apo_zero", "apo_down": "apo_down", "dpo": "sigmoid", "sft": "sft"}


def network(kind: str, dtype: torch.dtype, *, seed: int) -> Any:
    """A tiny random model; the policy and the reference are of two seeds."""
    name, sizes = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **sizes})
    model = getattr(transformers, f"{name.removesuffix('Text')}{'LMHeadModel' if name == 'GPT2' else 'ForCausalLM'}")
    # Gemma's norms stay in float32, whatever the model's dtype
    return tiny(config, model, seed=seed).to(dtype) if kind == "Gemma3" else tiny(config, model, dtype=dtype, seed=seed)


def limit_of(kind: str, dtype: torch.dtype) -> float:
    return 10 * LIMITS[dtype] if kind == "Gemma3" else LIMITS[dtype]


def arguments(config: Any, folder: Any, **more: Any) -> Any:
    return config(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        beta=BETA,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **more,
    )


def turns(row: Any, *answers: tuple[str, str]) -> dict[str, Any]:
    prompt = [{"role": m.role, "content": m.content} for m in row.prompt]
    return {"prompt": prompt} | {name: [{"role": "assistant", "content": text}] for name, text in answers}


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(params=LIMITS, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


def trainer_of(name: str, kind: str, dtype: torch.dtype, folder: Any) -> Any:
    """TRL's trainer around a copy of the policy, and our own copies of policy and reference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL's own
        import trl

        policy, reference = network(kind, dtype, seed=1), network(kind, dtype, seed=2)
        if name == "DPO":
            rows = [turns(p, ("chosen", p.chosen), ("rejected", p.rejected)) for p in PAIRS]
        else:
            rows = [turns(p, ("completion", p.chosen if i % 2 else p.rejected)) for i, p in enumerate(PAIRS)]
            rows = [{**row, "label": bool(i % 2)} for i, row in enumerate(rows)]
        made = getattr(trl, f"{name}Trainer")(
            model=copy.deepcopy(policy),
            ref_model=copy.deepcopy(reference),
            args=arguments(getattr(trl, f"{name}Config"), folder),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer(),
        )
        batch = next(iter(made.get_train_dataloader()))
    return SimpleNamespace(trainer=made, batch=batch, policy=policy, reference=reference)


def theirs(one: Any, batch: dict[str, Any]) -> Any:
    """TRL's loss, its log-probs of the batch's rows, and the gradient of each weight."""
    seen: list[torch.Tensor] = []
    hook = one.trainer.model.register_forward_hook(
        lambda module, inputs, out: seen.append(out.log_probs.sum(1).detach())
    )
    one.trainer.model.eval()  # no dropout
    one.trainer.model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = one.trainer.compute_loss(one.trainer.model, batch)
    hook.remove()
    value.backward()
    gradients = {n: p.grad.clone() for n, p in one.trainer.model.named_parameters() if p.grad is not None}
    return SimpleNamespace(loss=value.detach(), logps=seen[-1], gradients=gradients)


def ours(one: Any, examples: list[Example], objective: str, *, packed: bool) -> Any:
    """The same by the engine, as its trainer computes them."""
    for model in (one.policy, one.reference):
        model.set_attn_implementation(PACKED if packed else "sdpa")
    one.policy.zero_grad()
    policy = example_logps(one.policy, examples, packed=packed, pad=PAD)
    with torch.no_grad():
        reference = example_logps(one.reference, examples, packed=packed, pad=PAD)
    batch = batch_logps(examples, policy, reference)
    value = loss({objective: 1.0}, batch.rows, beta=BETA, reference_point=batch.reference_point).mean()
    value.backward()
    gradients = {n: p.grad.clone() for n, p in one.policy.named_parameters() if p.grad is not None}
    return SimpleNamespace(loss=value.detach(), logps=policy.detach(), gradients=gradients)


def split(ids: torch.Tensor, mask: torch.Tensor, attention: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    whole = ids[attention.bool()].tolist()
    start = int(mask.argmax())
    return tuple(whole[:start]), tuple(whole[start:])


def rows_of(batch: dict[str, Any], prefix: str = "") -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    names = [f"{prefix}{name}" for name in ("input_ids", "completion_mask", "attention_mask")]
    return [split(*row) for row in zip(*(batch[name] for name in names), strict=True)]


def pairs_of(batch: dict[str, Any]) -> list[Example]:
    rows = rows_of(batch)
    half = len(rows) // 2
    return [
        Example(str(i), c[0], (c[1], r[1]), (True, False))
        for i, (c, r) in enumerate(zip(rows[:half], rows[half:], strict=True))
    ]


def assert_same(mine: Any, their: Any, limit: float) -> None:
    assert abs(float(mine.loss - their.loss)) < limit * max(abs(float(their.loss)), 1)
    whole = torch.cat([g.flatten() for g in their.gradients.values()]).norm()
    assert whole > 1e-3
    assert mine.gradients.keys() == their.gradients.keys()
    for name, gradient in their.gradients.items():
        assert (mine.gradients[name] - gradient).norm() < limit * whole, name


@pytest.mark.parametrize("forward", ["packed", "plain"])
def test_a_batch_of_pairs_is_that_of_dpo_trainer(kind, dtype, forward, tmp_path):
    one = trainer_of("DPO", kind, dtype, tmp_path)
    examples, limit = pairs_of(one.batch), limit_of(kind, dtype)
    tokenised = tokenise(PAIRS, template(), max_tokens=99, overlong="error").examples
    assert sorted((e.prompt, e.responses) for e in examples) == sorted((e.prompt, e.responses) for e in tokenised)
    for objective, name in OBJECTIVES.items():
        one.trainer.loss_types, one.trainer.loss_weights = [name], [1.0]
        # TRL's sft is the mean over the batch's tokens, ours over its answers: the same for one pair
        parts = [slice(None)] if objective != "sft" else [slice(i, i + 1) for i in range(4)]
        for part in parts:
            keep = torch.arange(4)[part]
            batch = {k: v[torch.cat([keep, keep + 4])] for k, v in one.batch.items()}
            their = theirs(one, batch)
            mine = ours(one, examples[part], objective, packed=forward == "packed")
            assert_same(mine, their, limit)
            in_their_order = torch.cat([mine.logps[0::2], mine.logps[1::2]])
            torch.testing.assert_close(in_their_order, their.logps.to(mine.logps.dtype), rtol=limit, atol=limit)


@pytest.mark.parametrize("objective", ["apo_zero_unpaired", "kto"])
def test_a_batch_of_labelled_answers_is_that_of_kto_trainer(objective, kind, dtype, tmp_path):
    one = trainer_of("KTO", kind, dtype, tmp_path)
    one.trainer.loss_type, one.trainer.calculate_KL = objective, objective == "kto"
    labels = [bool(label) for label in one.batch["label"]]
    rows, other = rows_of(one.batch), rows_of(one.batch, "KL_")
    examples = [
        Example(str(i), prompt, (answer,), (label,))
        for i, ((prompt, answer), label) in enumerate(zip(rows, labels, strict=True))
    ]
    given = [Unpaired(p.id, p.prompt, p.chosen if i % 2 else p.rejected, bool(i % 2)) for i, p in enumerate(PAIRS)]
    tokenised = tokenise(given, template(), max_tokens=99, overlong="error").examples
    assert sorted((e.prompt, e.responses, e.labels) for e in examples) == sorted(
        (e.prompt, e.responses, e.labels) for e in tokenised
    )
    if objective == "kto":
        assert [prompt for prompt, _ in other] == [prompt for prompt, _ in rows]
        examples = [
            Example(e.id, e.prompt, (*e.responses, answer), (*e.labels, None))
            for e, (_, answer) in zip(examples, other, strict=True)
        ]
    mine, their = ours(one, examples, objective, packed=True), theirs(one, one.batch)
    limit = limit_of(kind, dtype)
    assert_same(mine, their, limit)
    own = mine.logps[:: len(examples[0].responses)]
    torch.testing.assert_close(own, their.logps.to(own.dtype), rtol=limit, atol=limit)


def test_the_models_pass_the_check_before_training(kind):
    model = network(kind, torch.float32, seed=1)
    refuse_unpackable(model)
    model.set_attn_implementation(PACKED)
    check_forward(model, tokenise(PAIRS, template(), max_tokens=99, overlong="error").examples[0], pad=PAD)


# ---- what does not pack ---------------------------------------------------------------------------------------------

MAMBA = {"vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 2}
SMALL = {**SIZES, "num_hidden_layers": 4}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "mamba": ("Mamba", {**MAMBA, "state_size": 4}),
    "mamba2": ("Mamba2", {**MAMBA, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1}),
    "jamba": ("Jamba", {**SMALL, "num_experts": 2, "use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1}),
    "qwen3_next": (
        "Qwen3Next",
        {**SMALL, "head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1, "linear_num_value_heads": 2,
         "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "moe_intermediate_size": 16,
         "shared_expert_intermediate_size": 16},
    ),
    "lfm2": ("Lfm2", {**SMALL, "layer_types": ["conv", "full_attention", "conv", "full_attention"]}),
    "recurrent_gemma": ("RecurrentGemma", {**SMALL, "lru_width": 32, "attention_window_size": 8, "conv1d_width": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_architectures_whose_state_flows_along_the_row_are_refused(name):
    kind, sizes = REFUSED[name]
    model = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**sizes))
    with pytest.raises(ModelError, match=rf"{name} does not run packed: .*; set train\.forward to plain") as told:
        refuse_unpackable(model)
    assert "\n" not in str(told.value)
