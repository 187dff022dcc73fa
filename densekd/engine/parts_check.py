"""Refuses a config's loops, optimiser, hooks, data sets and metrics that can't be built.

And class weights that can't be computed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.optim import OptimWrapper, _ParamScheduler
from torch.optim import Optimizer

from densekd.classification.metric import Accuracy
from densekd.engine.data_checks import datasets
from densekd.engine.weighed_losses import check_class_weights
from densekd.errors import ConfigError, did_you_mean
from densekd.registry import check_arguments
from densekd.wrappers.build import own_names

# What the runner itself does with these keys, before the rest goes to the class.
RUNNERS_OWN = ('type', '_scope_', '_delete_')
DEFAULT_HOOKS = {
    'runtime_info': 'RuntimeInfoHook', 'timer': 'IterTimerHook', 'logger': 'LoggerHook',
    'sampler_seed': 'DistSamplerSeedHook', 'param_scheduler': 'ParamSchedulerHook',
    'checkpoint': 'CheckpointHook',
}  # fmt: skip
# What stands in a config, and what it says where it is meant to be read.
OPTIMIZER = "dict(type='AdamW', lr=0.001)"
WRAPPER = f"dict(type='OptimWrapper', optimizer={OPTIMIZER})"
SCHEDULER = "dict(type='MultiStepLR', milestones=[8, 11])"

# A part: its place, its config, the registry, what the runner adds, what it takes away.
Part = tuple[str, Mapping[str, Any], str, tuple[str, ...], tuple[str, ...]]


def check_optimisation(cfg: Any) -> None:
    """Refuses optimisers and schedulers that are no dicts, on which mmengine stops far inside.

    Args:
        cfg: A config; what it leaves out may still come from a stage or a round.

    Raises:
        ConfigError: Naming the place.
    """
    wrapper, schedulers = cfg.get('optim_wrapper'), cfg.get('param_scheduler')
    if wrapper is not None:
        _refuse_other('optim_wrapper', wrapper, WRAPPER)
    if isinstance(wrapper, Mapping) and 'optimizer' in wrapper:
        several = 'constructor' in wrapper  # as one of the user's may make
        _refuse_other('optim_wrapper.optimizer', wrapper['optimizer'], OPTIMIZER, several)
    if schedulers is not None:
        _refuse_other('param_scheduler', schedulers, SCHEDULER, several=True)


def _refuse_other(where: str, value: Any, example: str, several: bool = False) -> None:
    """Refuses what is neither a dict nor built already, nor a list where there may be `several`."""
    if several and isinstance(value, (list, tuple)):
        for i, one in enumerate(value):
            _refuse_other(f'{where}[{i}]', one, example)
    elif not isinstance(value, (Mapping, OptimWrapper, Optimizer, _ParamScheduler)):
        such = f'{example}, or a list of such,' if several else example
        raise ConfigError(f'{where}: a dict such as {such} is needed, not {value!r}.')


def refuse_no_optimizer(cfg: Any) -> None:
    """Refuses a config that names nothing to train with.

    Raises:
        ConfigError: Naming the place.
    """
    wrapper = cfg.get('optim_wrapper')
    if wrapper is None:
        where, example = 'optim_wrapper', WRAPPER
    elif isinstance(wrapper, Mapping) and not {'optimizer', 'constructor'} & wrapper.keys():
        where, example = 'optim_wrapper.optimizer', OPTIMIZER
    else:
        return
    raise ConfigError(
        f'{where}: there is none, so that nothing would be trained. Give one, such as {example}.'
    )


def check_parts(cfg: Any) -> None:
    """Refuses names that nothing is registered under, and arguments that a class does not take.

    Args:
        cfg: A prepared config.

    Raises:
        ConfigError: Naming the place, with the nearest names.
    """
    from mmengine.registry import DefaultScope

    from densekd.engine import hooks  # noqa: F401  registers densekd's own

    scope = cfg.get('default_scope') or 'mmdet'
    register(scope)
    with DefaultScope.overwrite_default_scope(scope):
        for where, part, kind, given, dropped in _parts(cfg):
            _check(where, part, kind, given, dropped)
    check_class_weights(cfg)
    _refuse_other_best(cfg)


def _refuse_other_best(cfg: Any) -> None:
    """Refuses to keep the best checkpoint by an accuracy that is not among those computed."""
    metrics = _list(cfg.get('val_evaluator'))
    if not metrics or any(metric.get('type') != 'densekd.Accuracy' for metric in metrics):
        return
    hooks = cfg.get('default_hooks') or {}
    best = (hooks.get('checkpoint') or {}).get('save_best')
    built = [Accuracy(**{k: v for k, v in m.items() if k not in RUNNERS_OWN}) for m in metrics]
    given = [f'{metric.prefix}/top{k}' for metric in built for k in metric.topk]
    for name in best if isinstance(best, (list, tuple)) else [best]:
        if name is not None and name not in ('auto', *given):
            raise ConfigError(
                f'default_hooks.checkpoint.save_best: val_evaluator gives no {name!r}. '
                f'{did_you_mean(name, given)}'
            )


def register(scope: str) -> None:
    """Imports what a toolbox registers beside its models."""
    if scope == 'mmdet':
        import mmdet.datasets
        import mmdet.engine
        import mmdet.evaluation  # noqa: F401
    elif scope == 'mmseg':
        import mmseg.datasets
        import mmseg.engine
        import mmseg.evaluation  # noqa: F401


def _parts(cfg: Any) -> Iterator[Part]:
    for split in ('train', 'val', 'test'):
        loop = cfg.get(f'{split}_cfg')
        if isinstance(loop, Mapping) and 'type' in loop:
            yield f'{split}_cfg', loop, 'LOOPS', ('runner', 'dataloader', 'evaluator'), ()
        for i, metric in enumerate(_list(cfg.get(f'{split}_evaluator'))):
            yield f'{split}_evaluator[{i}]', metric, 'METRICS', (), ()
    for key, dataset in datasets(cfg):
        yield f'{key}.dataset', dataset, 'DATASETS', (), ()
        for i, step in enumerate(_list(dataset.get('pipeline'))):
            yield f'{key}.dataset.pipeline[{i}]', step, 'TRANSFORMS', (), ()
    wrapper = cfg.get('optim_wrapper')
    if isinstance(wrapper, Mapping):
        own = ('distillers', 'constructor', 'paramwise_cfg')
        kind = {'type': 'OptimWrapper', **wrapper}
        if 'constructor' not in wrapper:  # one of the user's may read keys of its own
            yield 'optim_wrapper', kind, 'OPTIM_WRAPPERS', ('optimizer',), own
        for i, optimizer in enumerate(_list(wrapper.get('optimizer'))):
            where = f'optim_wrapper.optimizer{f"[{i}]" if i else ""}'
            yield where, optimizer, 'OPTIMIZERS', ('params',), ()
    for i, scheduler in enumerate(_list(cfg.get('param_scheduler'))):
        where, runners = f'param_scheduler[{i}]', ('convert_to_iter_based',)
        yield where, scheduler, 'PARAM_SCHEDULERS', ('optimizer',), runners
    for name, hook in (cfg.get('default_hooks') or {}).items():
        if isinstance(hook, Mapping):
            typed = {'type': DEFAULT_HOOKS.get(name), **hook}
            yield f'default_hooks.{name}', typed, 'HOOKS', (), ('priority',)
    for i, hook in enumerate(_list(cfg.get('custom_hooks'))):
        yield f'custom_hooks[{i}]', hook, 'HOOKS', (), ('priority',)


def _list(value: Any) -> list[Mapping[str, Any]]:
    entries = value if isinstance(value, (list, tuple)) else [value]
    return [entry for entry in entries if isinstance(entry, Mapping)]


def _check(
    where: str, part: Mapping[str, Any], kind: str, given: tuple[str, ...], dropped: tuple[str, ...]
) -> None:
    from mmengine import registry as registries

    root = getattr(registries, kind)
    target = part.get('type')
    if target is None:
        raise ConfigError(f"{where}: 'type' is missing.")
    if isinstance(target, str):
        with root.switch_scope_and_registry(part.get('_scope_')) as registry:
            found = registry.get(target)
            if found is None:
                names = {*root.module_dict, *registry.module_dict}
                if registry is root or target.startswith('densekd.'):
                    names |= own_names(root)
                raise ConfigError(
                    f'{where}: there is no {root.name} {target!r}. {did_you_mean(target, names)}'
                )
        target = found
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in parameters):
        return  # it hands its arguments on, so that its signature does not say what it takes
    arguments = {k: v for k, v in part.items() if k not in (*RUNNERS_OWN, *dropped)}
    taken = [p.name for p in parameters]
    check_arguments(target, {**{k: None for k in given if k in taken}, **arguments}, where)
