"""The cache of decoding holds what transformers' own holds, whatever is done to it."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

from autottt.ttt_core.model.kv_cache import RESERVED_TOKENS, GrowingLayer, cache_arguments, check_cache, new_cache
from autottt.ttt_core.testing import tiny_model


def test_it_holds_what_the_usual_cache_holds() -> None:
    torch.manual_seed(0)
    mine, usual = new_cache(tiny_model("llama").config), DynamicCache(config=tiny_model("llama").config)
    assert all(type(layer) is GrowingLayer for layer in mine.layers)

    def both(rows: int, tokens: int) -> None:
        keys, values = torch.randn(2, rows, 3, tokens, 4)
        for got, wanted in zip(mine.update(keys, values, 0), usual.update(keys, values, 0), strict=True):
            assert torch.equal(got, wanted)

    both(2, 9)
    both(2, 1)
    for cache in (mine, usual):
        cache.crop(-4)
    both(2, 3)
    branch, usual_branch = copy.deepcopy(mine), copy.deepcopy(usual)
    both(2, 1)
    before = [t.clone() for t in (mine.layers[0].keys, mine.layers[0].values)]
    branch.update(*torch.randn(2, 2, 3, 1, 4), 0)  # a copy does not write into the other's room
    assert all(torch.equal(a, b) for a, b in zip(before, (mine.layers[0].keys, mine.layers[0].values), strict=True))
    mine, usual = copy.deepcopy(branch), usual_branch
    usual.update(branch.layers[0].keys[..., -1:, :], branch.layers[0].values[..., -1:, :], 0)
    for cache in (mine, usual):
        cache.batch_repeat_interleave(3)
    both(6, 1)
    for cache in (mine, usual):
        cache.batch_select_indices(torch.tensor([5, 0]))
    for _ in range(2 * RESERVED_TOKENS):
        both(2, 1)
    assert mine.get_seq_length() == usual.get_seq_length() == 11 + 2 * RESERVED_TOKENS


def test_a_token_more_is_written_where_the_others_are() -> None:
    layer = GrowingLayer()
    layer.update(*torch.randn(2, 1, 1, 5, 2))
    layer.update(*torch.randn(2, 1, 1, 1, 2))
    place = layer.keys.data_ptr()
    for _ in range(RESERVED_TOKENS - 1):
        layer.update(*torch.randn(2, 1, 1, 1, 2))
        assert layer.keys.data_ptr() == place
    layer.crop(-3)
    layer.update(*torch.randn(2, 1, 1, 2, 2))
    assert layer.keys.data_ptr() == place


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_is_handed_over_by_the_name_that_a_model_gives_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of 5.24, and before; a model of the other version would read without what was kept, or not at all."""
    model = tiny_model("llama")
    known = {"cache": lambda ids, cache=None: None, "past_key_values": lambda ids, past_key_values=None: None}
    monkeypatch.setattr(model, "forward", known[name])
    check_cache(model)
    kept = new_cache(model.config)
    assert cache_arguments(model, kept) == {name: kept, "use_cache": True}


def test_layers_that_slide_stay_as_they_are() -> None:
    kinds = {type(layer).__name__ for layer in new_cache(tiny_model("gemma2").config).layers}
    assert "DynamicSlidingWindowLayer" in kinds
