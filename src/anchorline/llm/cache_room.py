"""A key/value cache that grows in blocks, so that a step of decoding does not copy what it holds.

transformers' dynamic layer concatenates at every token, which on a CPU costs about as much as the arithmetic.

>>> cache = roomy_cache(model.config, room=128)  # doctest: +SKIP
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values [batch, heads, tokens, width] as views into buffers with spare room behind them."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past, new = self.get_seq_length(), key_states.shape[-2]
        if self._buffers is None or past + new > self._buffers[0].shape[-2]:
            self._buffers = (self._enlarged(self.keys, key_states), self._enlarged(self.values, value_states))
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, past : past + new] = states
        self.keys, self.values = (buffer[:, :, : past + new] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if self._buffers is not None:
            past = self.get_seq_length()
            self._buffers = (self._buffers[0][indices], self._buffers[1][indices])
            self.keys, self.values = (buffer[:, :, :past] for buffer in self._buffers)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self._buffers is not None:
            past = self.get_seq_length()
            keys, values = self._buffers
            self._buffers = (keys.repeat_interleave(repeats, dim=0), values.repeat_interleave(repeats, dim=0))
            self.keys, self.values = (buffer[:, :, :past] for buffer in self._buffers)

    def _enlarged(self, held: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
        batch, heads, new, width = states.shape
        past = self.get_seq_length()
        buffer = states.new_empty(batch, heads, past + new + self.room, width)
        if past and held is not None:
            buffer[:, :, :past] = held
        return buffer


def roomy_cache(config: Any, *, room: int) -> DynamicCache:
    """A cache for `config` whose full-attention layers keep `room` tokens to spare; other layers stay as they are."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def can_repeat(cache: DynamicCache) -> bool:
    """Whether one row's cache can become the beginning of many rows: not with states other than keys and values."""
    return all(isinstance(layer, RoomyLayer) for layer in cache.layers)
