"""Parameters that get an adapter although no linear layer holds them: stacks of experts, and their routers.

transformers keeps the experts of a layer in parameters of three dimensions. PEFT adapts those of some architectures for
`all-linear`; this module takes the choice from PEFT. Knows nothing about weights of adapters or training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from torch import nn

from .. import lazy

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TargetParameter:
    """A matrix [d_out, d_in], or a stack of them [experts, d_out, d_in], whose values get an update."""

    value: nn.Parameter
    rank_factor: int
    """Rank of each update, in ranks of the recipe: 2 for fused gate and up projections."""

    @property
    def stack(self) -> tuple[int, ...]:
        """(experts,), or () for a single matrix."""
        return tuple(self.value.shape[:-2])

    @property
    def sizes(self) -> tuple[int, int]:
        """(d_in, d_out)."""
        d_out, d_in = self.value.shape[-2:]
        return d_in, d_out


@dataclass(frozen=True)
class AllLinear:
    """What PEFT adapts for `all-linear` in an architecture whose experts it adapts."""

    module_names: frozenset[str]
    """Last components of the paths of the linear layers. Names that PEFT gives to projections of experts are none of
    them, also where a linear layer has such a name."""
    parameters: dict[str, TargetParameter]
    """By path."""


def all_linear_of_peft(model: PreTrainedModel) -> AllLinear | None:
    """PEFT's choice for `all-linear`, or None for a model whose experts it does not adapt, or that has none."""
    if model not in _choices:
        _choices[model] = _all_linear(model)
    return _choices[model]


_choices: WeakKeyDictionary[nn.Module, AllLinear | None] = WeakKeyDictionary()


def _all_linear(model: PreTrainedModel) -> AllLinear | None:
    settings = vars(model.config.get_text_config())
    if not any("expert" in name for name in settings if not name.startswith("_")):  # every model has private ones
        return None
    # task_type says that the output head is not a classifier.
    config = lazy.peft.LoraConfig(r=1, lora_alpha=1, target_modules="all-linear", task_type="CAUSAL_LM")
    lazy.transformers_weight_conversion.convert_peft_config_for_transformers(config, model=model, conversions=None)
    if not config.target_parameters:
        return None
    parameters = {
        path: TargetParameter(value, pattern_value(config.rank_pattern, path, config.r))
        for path, value in model.named_parameters()
        if value.dim() in (2, 3) and value.is_floating_point() and is_named(path, config.target_parameters)
    }
    return AllLinear(frozenset(name.rpartition(".")[2] for name in config.target_modules), parameters)


def is_named(path: str, names: Any) -> bool:
    """Whether one of the names is the end of a path, in whole components."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def pattern_value(patterns: dict[str, Any], path: str, default: Any) -> Any:
    """The value that PEFT's `rank_pattern` or `alpha_pattern` gives to a path."""
    return patterns.get(lazy.other.get_pattern_key(patterns, path), default)
