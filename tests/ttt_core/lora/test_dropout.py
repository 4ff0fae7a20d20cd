"""Dropout: as much as was asked for, at random, and the same whatever is beside it."""

from __future__ import annotations

import pytest
import torch

from autottt.ttt_core.lora.dropout import Dropout


def dropout(share: float, rows: list[int]) -> Dropout:
    return Dropout(share, torch.tensor(rows))


def test_the_mask_of_a_row_does_not_depend_on_other_rows() -> None:
    x = torch.ones(2, 7, 400)
    both = dropout(0.25, [5, 9])(x, 3)
    assert torch.equal(both[0], dropout(0.25, [5])(x[:1], 3)[0])
    assert torch.equal(both[1, :4], dropout(0.25, [9])(x[1:, :4], 3)[0]), "whatever is behind it"
    assert torch.equal(both[0], dropout(0.25, [5])(x[0], 3)), "rows and tokens in one axis"
    assert not torch.equal(both[0], both[1]), "another number"
    assert not torch.equal(both[0], dropout(0.25, [5])(x[:1], 4)[0]), "another layer"


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.9])
def test_the_share_is_dropped_and_the_mean_preserved(share: float) -> None:
    output = dropout(share, [(1 << 62) + 1, 2, 3, 4])(torch.ones(4, 200, 300), 77)
    assert (output == 0).float().mean() == pytest.approx(share, abs=0.005)
    assert output.mean() == pytest.approx(1.0, abs=0.03)


def test_the_mask_has_no_pattern() -> None:
    """Tokens, features, neighbours and the four corners of rectangles are as independent as coins are."""
    dropped = (dropout(0.5, [1, 2])(torch.ones(2, 256, 512), 5) == 0).double() * 2 - 1
    lines = [dropped.mean(1).flatten(), dropped.mean(2).flatten()]  # each of 256 and of 512 coins
    assert lines[0].std() == pytest.approx(256**-0.5, rel=0.1)
    assert lines[1].std() == pytest.approx(512**-0.5, rel=0.1)
    alone = 4 / dropped.numel() ** 0.5  # four standard errors of a mean of that many coins
    assert abs(dropped[0] * dropped[1]).mean() == 1
    for other in (dropped.roll(1, 1), dropped.roll(1, 2), dropped.roll((3, 5), (1, 2)), dropped.flip(0)):
        assert abs((dropped * other).mean()) < alone
    corners = dropped * dropped.roll(1, 1) * dropped.roll(1, 2) * dropped.roll((1, 1), (1, 2))
    assert abs(corners.mean()) < alone


def test_gradients_are_those_of_inputs_that_were_not_dropped() -> None:
    x = torch.ones(1, 3, 5, dtype=torch.bfloat16, requires_grad=True)
    output = dropout(0.5, [1])(x, 1)
    output.sum().backward()
    assert output.dtype == torch.bfloat16
    assert torch.equal(x.grad, output.detach())
