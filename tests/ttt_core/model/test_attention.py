"""The attention for CPUs is SDPA: the same outputs and the same gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from autottt.ttt_core.model import attention as module
from autottt.ttt_core.model.attention import NAME, attention, use_cpu_attention
from autottt.ttt_core.model.kv_cache import GrowingLayer
from autottt.ttt_core.testing import tiny_model


class _Layer(nn.Module):
    is_causal = True

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [8, 5])
def test_outputs_and_gradients_are_those_of_sdpa(
    groups: int, masked: bool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where values have another size than keys, as in DeepSeek's models."""
    torch.manual_seed(0)
    query = torch.randn(2, 4, 7, 8, dtype=torch.float64)
    key = torch.randn(2, 4 // groups, 7, 8, dtype=torch.float64)
    value = torch.randn(2, 4 // groups, 7, size, dtype=torch.float64)
    mask = torch.ones(7, 7, dtype=torch.bool).tril()[None, None].repeat(2, 1, 1, 1)
    mask[1, :, :, :3] = False  # padding on the left: its own rows see nothing
    results = []
    for function in (sdpa_attention_forward, attention):
        if function is attention:
            monkeypatch.setattr(module, "sdpa_attention_forward", None)  # its own path, not the fallback
        leaves = [t.clone().requires_grad_(True) for t in (query, key, value)]
        output, _ = function(_Layer(groups), *leaves, mask if masked else None, scaling=0.3, use_cache=False)
        seen = output[1, 3:] if masked else output
        seen.square().sum().backward()
        results.append([seen.detach(), *(t.grad for t in leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("masked", [None, torch.bool, torch.float32])
@pytest.mark.parametrize("size", [8, 5])
def test_a_single_query_sees_what_it_sees_with_sdpa(
    groups: int, masked: torch.dtype | None, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 4, 1, 8)
    key, value = torch.randn(2, 4 // groups, 7, 8), torch.randn(2, 4 // groups, 7, size)
    mask = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    mask[1, :, :, :3] = False
    if masked == torch.float32:
        mask = torch.zeros(2, 1, 1, 7).masked_fill(~mask, torch.finfo(torch.float32).min)
    given = (_Layer(groups), query, key, value, mask if masked else None)
    expected, _ = sdpa_attention_forward(*given, scaling=0.3, is_causal=False)
    monkeypatch.setattr(module, "sdpa_attention_forward", None)  # its own path, not the fallback
    output, _ = attention(*given, scaling=0.3, use_cache=True)
    torch.testing.assert_close(output, expected)
    layer = GrowingLayer()
    layer.update(key[:, :, :-1], value[:, :, :-1])
    roomy = layer.update(key[:, :, -1:], value[:, :, -1:])
    assert not roomy[0].is_contiguous()
    output, _ = attention(*given[:2], *roomy, given[-1], scaling=0.3, use_cache=True)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_mask_of_numbers_may_be_in_another_precision(rows: int) -> None:
    """What it hides stays hidden, and rows that see nothing stay numbers."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, rows, 2, 6, 8).bfloat16()
    seen = torch.ones(6, 6, dtype=torch.bool).tril()[None, None].repeat(rows, 1, 1, 1)
    seen[:, :, 0] = False
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    query.requires_grad_(True)
    (as_numbers, _), (as_bool, _) = (attention(_Layer(1), query, key, value, m) for m in (mask, seen))
    assert as_numbers.isfinite().all()
    assert torch.equal(as_numbers, as_bool)


@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {"is_causal": False}, {"s_aux": torch.ones(4)}])
def test_unsupported_inputs_fall_back_to_sdpa(settings: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(module, "sdpa_attention_forward", lambda *a, **k: (calls.append(k), None))
    states = torch.randn(1, 2, 5, 4, dtype=torch.bfloat16, requires_grad=True)
    attention(_Layer(1), states, states, states, None, **settings)
    assert len(calls) == 1
    attention(_Layer(1), states[:, :, -2:], states, states, None)  # going on after a prefix
    attention(_Layer(1), states.detach(), states, states, None)  # no gradients
    attention(_Layer(1), *[states.detach().float().requires_grad_()] * 3, None)  # quick there in fp32
    both_ways = _Layer(1)
    both_ways.is_causal = False
    attention(both_ways, states, states, states, None)
    monkeypatch.setattr(module, "MOST_WEIGHTS", 49)
    attention(_Layer(1), states, states, states, None)  # too large
    assert len(calls) == 6


def test_models_with_an_attention_of_their_own_keep_it() -> None:
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    use_cpu_attention(model)
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    use_cpu_attention(model)
    assert model.config._attn_implementation == NAME
