"""The toys of the training tests (a model, a tokenizer, examples), and that they are what those tests take them for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from anchorline.train.tokenise import Example, Template
from anchorline.types import Message, Pair

SPECIALS = ["<pad>", "<unk>", "<user>", "<assistant>", "<end>"]
PAD, END = 0, 4
VOCABULARY = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # large weights, so that attention looks at some tokens more than at others
    "initializer_range": 0.3,
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": END,
}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny(config: Any = None, kind: Any = LlamaForCausalLM, *, dtype=torch.float32, seed=0) -> Any:
    """A random two-layer model, in eval mode."""
    torch.manual_seed(seed)
    model = kind(config or llama())
    if dtype == torch.float64:
        exact_norms(model)
    return model.to(dtype).eval()


def exact_norms(model: torch.nn.Module) -> None:
    """Norms that stay in float64: transformers' own go through float32, whatever the model's dtype."""
    child: Any
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(parent, name, torch.nn.RMSNorm(len(child.weight), eps=child.variance_epsilon))


def llama(**changes: Any) -> LlamaConfig:
    """The tiny Llama's config."""
    return LlamaConfig(**{**SIZES, "tie_word_embeddings": True, **changes})


def words(count: int, *, first: int = 0) -> str:
    """`count` words of the tiny vocabulary."""
    return " ".join(f"w{(first + i * 7) % 90}" for i in range(count))


def tokenizer(template: str = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a word: w0 … w91, the special tokens before them."""
    vocabulary = {word: i for i, word in enumerate([*SPECIALS, *(f"w{i}" for i in range(VOCABULARY - len(SPECIALS)))])}
    words_only = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=words_only, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", padding_side="left"
    )
    fast.chat_template = template
    return fast


def template(text: str = TEMPLATE) -> Template:
    """The tiny tokenizer with a chat template and its end of turn."""
    return Template(tokenizer(text), frozenset({END}))


def pair(number: int, *, chosen: str = "", rejected: str = "", prompt: str = "") -> Pair:
    """A pair of a few words, another one for each number."""
    return Pair(
        f"p{number}",
        (Message("user", prompt or words(3 + number % 3, first=number)),),
        chosen or words(4 + number % 4, first=number + 11),
        rejected or words(3 + number % 5, first=number + 40),
    )


def save_tiny(folder: Path, *, seed: int = 0) -> str:
    """A tiny chat model on disk."""
    model = tiny(seed=seed)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def example(prompt: list[int], *responses: list[int]) -> Example:
    """An example from bare tokens."""
    labels = ((True,), (True, False), (True, False, None))[len(responses) - 1]
    return Example("e", tuple(prompt), tuple(map(tuple, responses)), labels)


def random_example(generator: torch.Generator, *, responses: int = 2, longest: int = 9) -> Example:
    """An example of random lengths and tokens."""

    def some() -> list[int]:
        count = int(torch.randint(1, longest + 1, (), generator=generator))
        return torch.randint(0, VOCABULARY, (count,), generator=generator).tolist()

    return example(some(), *(some() for _ in range(responses)))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """The length of the difference as a share of the length of `b`: what rounding can explain."""
    return float((a - b).norm() / b.norm())


def test_the_tiny_tokenizer_knows_every_word_and_its_special_tokens():
    ids = tokenizer()("<user> w0 w91 <end>")["input_ids"]
    assert ids == [2, 5, 96, END] and tokenizer().pad_token_id == PAD


def test_the_tiny_model_shares_key_heads_and_prefers_some_words_strongly():
    model = tiny()
    assert model.config.num_attention_heads > model.config.num_key_value_heads > 1
    probs = model(torch.tensor([[2, 5, 9, 40]])).logits.softmax(-1)
    assert probs.max() > 10 / VOCABULARY
