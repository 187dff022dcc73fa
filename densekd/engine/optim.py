"""The optimiser of a student and its distillers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper

from densekd.errors import ConfigError
from densekd.registry import check_arguments
from densekd.wrappers.model import DistillModel


def build_for_distillation(model: DistillModel, config: dict[str, Any]) -> OptimWrapper:
    """Builds the student's own optimiser, then adds the distillers' parameters as a group apart.

    The student's constructor runs on the bare student: its parameter names carry no prefix, as
    constructors of layer-wise decay expect, and its groups are those of plain training. Gradients
    are clipped apart too: a large gradient of a connector must not shrink the student's step.

    Args:
        model: The model.
        config: The config's `optim_wrapper`. Its key `distillers` may hold `lr_mult` and
            `decay_mult` for the distillers' group.

    Raises:
        ConfigError: If `distillers` holds anything else.
    """
    config = dict(copy.deepcopy(config))
    own = config.pop('distillers', {})
    check_arguments(_group, {'optimizer': {}, **own}, 'optim_wrapper.distillers')
    wrapper = build_optim_wrapper(model.student, config)
    parameters = [p for p in model.distillers.parameters() if p.requires_grad]
    if not parameters:
        return wrapper
    if isinstance(wrapper, OptimWrapperDict):
        raise ConfigError(
            "optim_wrapper: the student has several optimisers, and the distillers' parameters "
            'belong to none of them. Use distillers without parameters, or one optimiser.'
        )
    optimizer = config['optimizer']
    group = {'params': parameters, **_group(optimizer, **own)}
    if 'param_names' in wrapper.optimizer.param_groups[0]:
        # Constructors may note names, and torch wants them of all groups or of none.
        group['param_names'] = [
            f'distillers.{n}' for n, p in model.distillers.named_parameters() if p.requires_grad
        ]
    wrapper.optimizer.add_param_group(group)
    return clipping_apart(wrapper)


def _group(
    optimizer: Mapping[str, Any], lr_mult: float = 1.0, decay_mult: float = 1.0
) -> dict[str, Any]:
    group = {}
    if 'lr' in optimizer:
        group['lr'] = optimizer['lr'] * lr_mult
    if 'weight_decay' in optimizer:
        group['weight_decay'] = optimizer['weight_decay'] * decay_mult
    return group


def clipping_apart(wrapper: OptimWrapper) -> OptimWrapper:
    """Makes an optimiser wrapper clip its last group by itself, and the others as without it."""
    kind = type(wrapper)

    class ClippingApart(kind):  # type: ignore[valid-type, misc]
        def _clip_grad(self) -> None:
            groups = self.optimizer.param_groups
            last = [p for p in groups[-1]['params'] if p.grad is not None]
            if last:
                self.clip_func(last, **self.clip_grad_kwargs)
            self.optimizer.param_groups = groups[:-1]
            try:
                super()._clip_grad()
            finally:
                self.optimizer.param_groups = groups

    ClippingApart.__name__ = kind.__name__
    wrapper.__class__ = ClippingApart
    return wrapper


def unwrapped(model: Any) -> Any:
    """Returns the model inside a distributed wrapper."""
    from mmengine.model import is_model_wrapper

    return model.module if is_model_wrapper(model) else model
