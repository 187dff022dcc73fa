"""The optimiser of a student and its distillers."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper, OptimWrapperDict, build_optim_wrapper
from torch import nn

from densekd.errors import ConfigError
from densekd.registry import check_arguments
from densekd.wrappers.model import DistillModel

# What a distillers' group is marked with: the factor on its learning rate.
LR_MULT = 'distillers_lr_mult'
# Whose optimisers and schedulers are built once before training, and an end that none reaches.
TRIED = ('torch.optim.', 'mmengine.optim.', 'mmdet.', 'mmseg.')
FAR = 10**9
ONE_CYCLE = ('OneCycleLR', 'OneCycleParamScheduler')


def build_for_distillation(model: DistillModel, config: dict[str, Any]) -> OptimWrapper:
    """Builds the student's own optimiser, then adds peers and distillers in groups apart.

    The student's constructor runs on the bare student: its parameter names carry no prefix, as
    constructors of layer-wise decay expect, and its groups are those of plain training. So it does
    on each peer. Gradients are clipped apart too: a large gradient of a connector or a peer must
    not shrink the student's step.

    Args:
        model: The model.
        config: The config's `optim_wrapper`. Its key `distillers` may hold `lr_mult` and
            `decay_mult` for all distillers; a distiller's own `lr_mult` multiplies the first. There
            is a group for each learning rate, and one more for what no weight decay may touch.
            Where nothing of the student trains, there are no others.

    Raises:
        ConfigError: If `distillers` holds anything else.
    """
    config = dict(copy.deepcopy(config))
    own = config.pop('distillers', {})
    check_arguments(_group, {'optimizer': {}, **own}, 'optim_wrapper.distillers')
    wrapper = _of_student(model, config)
    if model.moving and isinstance(wrapper, OptimWrapper):
        model.follow_steps_of(wrapper.optimizer)
    learns = any(p.requires_grad for p in model.distillers.parameters())
    if not learns and not len(model.peers):
        return wrapper
    if isinstance(wrapper, OptimWrapperDict):
        raise ConfigError(
            "optim_wrapper: the student has several optimisers, and the distillers' or peers' "
            'parameters belong to none of them. Use distillers without parameters and no peers, '
            'or one optimiser.'
        )
    counts = [_add_peer(wrapper, peer, config) for peer in model.peers.values()]
    # Constructors may note names, and torch wants them of all groups or of none.
    named = any('param_names' in group for group in wrapper.optimizer.param_groups)
    own = {'lr_mult': 1.0, **own}
    added = _by_factors(model)
    for (lr_mult, decays), parameters in added.items():
        factors = {**own, 'lr_mult': own['lr_mult'] * lr_mult}
        if not decays:
            factors['decay_mult'] = 0.0
        group = {'params': list(parameters.values()), **_group(config['optimizer'], **factors)}
        if named:
            group['param_names'] = list(parameters)
        wrapper.optimizer.add_param_group({**group, LR_MULT: factors['lr_mult']})
    return clipping_apart(wrapper, *counts, len(added))


def _of_student(model: DistillModel, config: dict[str, Any]) -> Any:
    """Builds the student's own optimiser; one without groups where nothing of the student trains.

    Constructors go by the names of what trains, and make an empty list of it, which torch refuses.
    """
    beside = [p for n in (model.distillers, model.peers) for p in n.parameters() if p.requires_grad]
    if any(p.requires_grad for p in model.student.parameters()) or not beside:
        return build_optim_wrapper(model.student, config)
    if 'optimizer' not in config:
        raise ConfigError(
            'optim_wrapper.optimizer: nothing of the student trains, and what distillers train '
            'needs an optimiser. Give it here, or let a part of the student train.'
        )
    by_name = ('constructor', 'paramwise_cfg')
    wrapper = build_optim_wrapper(
        nn.ParameterList(beside), {k: v for k, v in config.items() if k not in by_name}
    )
    wrapper.optimizer.param_groups.clear()
    return wrapper


def _add_peer(wrapper: OptimWrapper, peer: nn.Module, config: dict[str, Any]) -> int:
    """Adds a peer's groups, as its own optimiser would have them; returns how many."""
    groups = build_optim_wrapper(peer, copy.deepcopy(config)).optimizer.param_groups
    for group in groups:
        wrapper.optimizer.add_param_group(group)
    return len(groups)


def _by_factors(model: DistillModel) -> dict[tuple[float, bool], dict[str, nn.Parameter]]:
    """Returns what the distillers train, by name, under its `lr_mult` and whether it decays."""
    found: dict[tuple[float, bool], dict[str, nn.Parameter]] = {}
    met: set[int] = set()
    distillers: Any = model.distillers.items()
    for key, distiller in distillers:
        loss = distiller.head.loss
        still = {id(getattr(loss, name)) for name in loss.undecayed}
        for name, parameter in distiller.named_parameters():
            # What two distillers share is the first one's.
            if parameter.requires_grad and id(parameter) not in met:
                met.add(id(parameter))
                group = found.setdefault((distiller.lr_mult, id(parameter) not in still), {})
                group[f'distillers.{key}.{name}'] = parameter
    return found


def _group(
    optimizer: Mapping[str, Any], lr_mult: float = 1.0, decay_mult: float = 1.0
) -> dict[str, Any]:
    group = {}
    if 'lr' in optimizer:
        group['lr'] = optimizer['lr'] * lr_mult
    if 'weight_decay' in optimizer:
        group['weight_decay'] = optimizer['weight_decay'] * decay_mult
    return group


def clipping_apart(wrapper: OptimWrapper, *counts: int) -> OptimWrapper:
    """Makes an optimiser wrapper clip its last groups by themselves, and the others as without.

    Args:
        wrapper: The wrapper.
        counts: How many of its groups are clipped together, for each block of the last ones.
    """
    kind = type(wrapper)

    class ClippingApart(kind):  # type: ignore[valid-type, misc]
        def _clip_grad(self) -> None:
            groups = self.optimizer.param_groups
            begin = len(groups) - sum(counts)
            own, last = groups[:begin], groups[begin:]
            for count in counts:
                block, last = last[:count], last[count:]
                held = [p for g in block for p in g['params'] if p.grad is not None]
                if held:
                    self.clip_func(held, **self.clip_grad_kwargs)
            self.optimizer.param_groups = own
            try:
                super()._clip_grad()
            finally:
                self.optimizer.param_groups = groups

    ClippingApart.__name__ = kind.__name__
    wrapper.__class__ = ClippingApart
    return wrapper


def with_own_peaks(scheduler: Any, wrapper: Any) -> Any:
    """Returns the schedulers of a config in which distillers' groups peak at their own multiples.

    Most schedulers multiply each group's own learning rate. OneCycleLR sets the same peak for all
    groups, by which a factor would be lost.

    Args:
        scheduler: A config of a scheduler, or a list of such; anything else is returned as it is.
        wrapper: The optimiser wrapper.
    """
    if isinstance(scheduler, (list, tuple)):
        return [with_own_peaks(one, wrapper) for one in scheduler]
    kind = scheduler.get('type') if isinstance(scheduler, Mapping) else None
    name = kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', '')
    peak = scheduler.get('eta_max') if name in ONE_CYCLE else None
    groups = getattr(wrapper, 'param_groups', None)
    if not isinstance(peak, (int, float)) or groups is None:
        return scheduler
    if all(group.get(LR_MULT, 1.0) == 1.0 for group in groups):
        return scheduler
    return {**scheduler, 'eta_max': [peak * group.get(LR_MULT, 1.0) for group in groups]}


def try_optimisation(cfg: Any) -> None:
    """Builds a config's optimiser and schedulers once, on a parameter that is thrown away.

    Only torch's and the toolboxes' own are tried: others may need what is not there yet, such as a
    group of processes. What nothing is registered for is left to the check of names.

    Raises:
        ConfigError: If one of them does not take what it is given.
    """
    from mmengine.registry import OPTIMIZERS, PARAM_SCHEDULERS, DefaultScope

    from densekd.engine.parts_check import register

    scope = cfg.get('default_scope') or 'mmdet'
    wrapper, loop = cfg.get('optim_wrapper'), cfg.get('train_cfg')
    config = wrapper.get('optimizer') if isinstance(wrapper, Mapping) else None
    epochs = loop.get('max_epochs') if isinstance(loop, Mapping) else None
    given = cfg.get('param_scheduler')
    with DefaultScope.overwrite_default_scope(scope):
        register(scope)
        if config is None or not _may_be_tried(config, OPTIMIZERS):
            config = {'type': 'SGD', 'lr': 0.1}
        with _refused('optim_wrapper.optimizer'):
            parameter = nn.Parameter(torch.zeros(1, 1))
            optimizer = OPTIMIZERS.build({**config, 'params': [parameter]})
        for i, one in enumerate(given if isinstance(given, (list, tuple)) else [given]):
            if not _may_be_tried(one, PARAM_SCHEDULERS):
                continue
            # As the runner has it; how many iterations there are is known once the data is built.
            end = epochs if one.get('by_epoch', True) else None
            with _refused(f'param_scheduler[{i}]'):
                PARAM_SCHEDULERS.build(
                    {'end': end or FAR, **one},
                    default_args={'optimizer': optimizer, 'epoch_length': 1000},
                )


def _may_be_tried(config: Any, registry: Any) -> bool:
    kind = config.get('type') if isinstance(config, Mapping) else None
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(None) as own:
            kind = own.get(kind)
    return str(getattr(kind, '__module__', '')).startswith(TRIED)


@contextmanager
def _refused(where: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, AssertionError, KeyError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{where}: it can't be built: {reason}") from error


def unwrapped(model: Any) -> Any:
    """Returns the model inside a distributed wrapper."""
    from mmengine.model import is_model_wrapper

    return model.module if is_model_wrapper(model) else model
