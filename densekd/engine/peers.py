"""What is beside the student in a run: its scores, and a way out for its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook

from densekd.core.checkpoint import read_checkpoint
from densekd.engine.optim import unwrapped
from densekd.engine.registry import HOOKS
from densekd.errors import CheckpointError, ConfigError, did_you_mean
from densekd.wrappers.model import DistillModel

EMA_HOOKS = ('EMAHook',)


@HOOKS.register_module()
class PeerScoresHook(Hook):
    """Scores each peer, and each average of the student, whenever the student is validated.

    Its metrics join the student's under its name, as in `b/accuracy/top1`.
    """

    priority = 'HIGHEST'  # before the hooks that log the metrics

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Adds the metrics of each."""
        model = unwrapped(runner.model)
        if metrics is None or not isinstance(model, DistillModel):
            return
        loop = runner.val_loop
        for name, network in beside(model).items():
            for batch in loop.dataloader:
                with torch.no_grad():
                    outputs = network.val_step(batch)
                loop.evaluator.process(data_samples=outputs, data_batch=batch)
            found = loop.evaluator.evaluate(len(loop.dataloader.dataset))
            metrics.update({f'{name}/{key}': value for key, value in found.items()})


def beside(model: DistillModel) -> dict[str, Any]:
    """Returns the networks that change beside the student, by name."""
    moving = {teacher.name: teacher.model for teacher in model.moving}
    return {**dict(model.peers.items()), **moving}


def scored(cfg: Any) -> list[dict[str, Any]]:
    """Returns the hook that scores peers, for a config that has some.

    Raises:
        ConfigError: If a hook of the config averages the student and would lose its peers.
    """
    model = cfg.get('model')
    if not isinstance(model, Mapping) or not model.get('peers'):
        return []
    for hook in cfg.get('custom_hooks') or []:
        kind = hook.get('type') if isinstance(hook, Mapping) else type(hook)
        name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
        if name.rpartition('.')[2] in EMA_HOOKS:
            raise ConfigError(
                f'custom_hooks: {name} averages the student, and its file holds no averages of '
                "peers. Leave it out; peers=[dict(name='mean', ema=0.999)] averages the student."
            )
    return [dict(type='densekd.PeerScoresHook')]


def export_peer(
    checkpoint: str | os.PathLike[str], name: str, target: str | os.PathLike[str]
) -> Path:
    """Writes the weights of a peer, which a run keeps beside the student's, as a plain checkpoint.

    Args:
        checkpoint: A checkpoint of a run with peers.
        name: The peer's name, or that of an average.
        target: The file to write.

    Raises:
        CheckpointError: If it holds no such peer.
        DataError: If the file is there already.
    """
    from densekd.engine.files import refuse_existing, save_whole  # the runner imports this module

    target = Path(target)
    refuse_existing(target, 'Give another.')
    read = read_checkpoint(checkpoint)
    state = read.get('densekd') if isinstance(read, Mapping) else None
    held: dict[str, Any] = {}
    if isinstance(state, Mapping):
        held = {**state.get('peers', {}), **state.get('moving', {})}
    if name not in held:
        hint = did_you_mean(name, held) if held else 'It holds none at all.'
        raise CheckpointError(f'{checkpoint}: it holds no peer {name!r}. {hint}')
    weights = held[name]
    weights = weights['weights'] if 'weights' in weights and 'steps' in weights else weights
    kept = {k: v for k, v in weights.items() if not k.startswith('data_preprocessor.')}
    save_whole({'state_dict': kept, 'meta': dict(read.get('meta') or {})}, target)
    return target
