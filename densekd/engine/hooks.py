"""What a run needs beside the model: its clock, its seeds, and checkpoints that survive a crash."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch import Tensor

from densekd.engine.data_order import mixed, seed_everything
from densekd.engine.optim import unwrapped
from densekd.engine.registry import HOOKS
from densekd.errors import CheckpointError
from densekd.wrappers.model import DistillModel

# What a run's checkpoints call the iteration it was validated at last. Were it a name that begins
# with 'val', mmengine would log it.
VALIDATED = 'last_validated_at'


@HOOKS.register_module()
class DistillHook(Hook):
    """Tells the model how far training is, and keeps what is not the student under `densekd`."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Sets the model's clock."""
        model = unwrapped(runner.model)
        if isinstance(model, DistillModel):
            model.set_clock(runner.iter, epochs_begun(runner))

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Moves averages of the student where a wrapper around the model makes the steps."""
        model = unwrapped(runner.model)
        if isinstance(model, DistillModel) and model is not runner.model:
            model.after_step()

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Notes that the run was validated here, before a checkpoint of the best is written."""
        runner.message_hub.update_info(VALIDATED, runner.iter)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Adds all that distillation needs to go on, and drops what could not be read again.

        Between two steps of the optimiser, gradients that are gathered are kept too.
        """
        _drop_functions(checkpoint.get('param_schedulers'))
        model = unwrapped(runner.model)
        if gathers(runner.optim_wrapper):
            checkpoint['gathered'] = gathered(model)
        if isinstance(model, DistillModel):
            checkpoint['densekd'] = model.distillation_state()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """Takes it back when a run is resumed; a student that is merely loaded starts anew.

        What a stage before hands over of its distillers is taken as well.
        """
        model = unwrapped(runner.model)
        if isinstance(model, DistillModel) and not runner._resume:
            state = checkpoint.get('densekd')
            model.take_over(state.get('handed_over', {}) if isinstance(state, dict) else {})
        if isinstance(model, DistillModel) and runner._resume:
            if 'densekd' not in checkpoint:
                raise CheckpointError(
                    'resume: the checkpoint holds no state of distillation: it was not written by '
                    'this run. Start anew from it with load_from.'
                )
            model.load_distillation_state(checkpoint['densekd'])
        if runner._resume and 'gathered' in checkpoint:
            # mmengine, which knows nothing of them, warns right after this that they are lost.
            runner.logger.warning(
                'resume: the gradients gathered since the last step are taken up; '
                'a warning that they are lost does not apply.'
            )
            for name, parameter in model.named_parameters():
                gradient = checkpoint['gathered'].get(name)
                parameter.grad = None if gradient is None else gradient.to(parameter.device)


def gathers(wrapper: Any) -> bool:
    """Whether an optimiser has gradients of some iterations, and waits for those of more."""
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return any(not one.should_update() for one in wrappers if isinstance(one, OptimWrapper))


def gathered(model: Any) -> dict[str, Tensor]:
    """Returns the gradients that a model has, by its parameters' names.

    Processes have their own until the optimiser steps, which takes their mean. That is what is
    returned, and what each of them may go on from.
    """
    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        own = parameter.grad
        # All processes take part for each parameter, also where some of them did not reach it.
        reached = torch.tensor(float(own is not None), device=parameter.device)
        gradient = torch.zeros_like(parameter) if own is None else own.clone()
        all_reduce(reached, op='max')
        all_reduce(gradient, op='mean')
        if reached:
            found[name] = gradient.detach()
    return found


def _drop_functions(states: Any) -> None:
    """Takes functions out of schedulers' states: OneCycleLR's holds its annealing function.

    A file with a function in it is code to a reader that runs none. The scheduler that is resumed
    has its function already.
    """
    for entry in states.values() if isinstance(states, dict) else states or ():
        if isinstance(entry, list):
            _drop_functions(entry)
        elif isinstance(entry, dict):
            for key in [k for k, v in entry.items() if callable(v)]:
                del entry[key]


def epochs_begun(runner: Any) -> int:
    """Returns how often a runner's training data were gone through before this iteration.

    A loop that counts iterations calls all of training its first epoch, by which a warm-up of an
    epoch would never end.
    """
    loop = runner.train_loop
    loader = loop.dataloader
    if not isinstance(loop, IterBasedTrainLoop) or not hasattr(loader.dataset, '__len__'):
        return runner.epoch
    images = loader.batch_size or getattr(loader.batch_sampler, 'batch_size', 1)
    return runner.iter // max(1, math.ceil(len(loader.dataset) / (images * get_world_size())))


@HOOKS.register_module()
class OwedValidationHook(Hook):
    """Validates a resumed run where it stopped, if its checkpoint is from before that validation.

    A run that was not interrupted is validated right after that checkpoint: the best, the scores
    and schedulers that follow a metric depend on it. One that was validated and stopped later is
    validated again, to the same end.
    """

    priority = 'LOWEST'  # when every other hook is ready for it

    def before_train(self, runner: Any) -> None:
        """Does the validation that is owed."""
        if runner._resume and owes_validation(runner):
            runner.logger.info('resume: the validation at the checkpoint is done first.')
            runner.val_loop.run()


def owes_validation(runner: Any) -> bool:
    """Whether a run that begins where its checkpoint was written should be validated there."""
    loop = runner.train_loop
    if runner.val_loop is None or runner.message_hub.get_info(VALIDATED) == runner.iter:
        return False
    if isinstance(loop, IterBasedTrainLoop):
        done, last = runner.iter, runner.max_iters
    elif isinstance(loop, EpochBasedTrainLoop) and runner.iter == runner.epoch * len(
        loop.dataloader
    ):
        done, last = runner.epoch, runner.max_epochs
    else:  # within an epoch, at whose end the loop looks by itself
        return False
    loop._decide_current_val_interval()
    at_interval = done % loop.val_interval == 0 or done == last
    return done > 0 and done >= loop.val_begin and at_interval


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seeds the generators before every iteration, from the run's seed and the iteration.

    So the random numbers of a step do not depend on what was drawn before it: not on validation,
    not on loaders that were opened, and not on whether the run was interrupted.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seeds Python's, numpy's and torch's generators."""
        seed_everything(mixed(runner.seed, runner.iter, get_rank()))


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """Removes an old checkpoint only after the new one is on the disk."""

    def before_train(self, runner: Any) -> None:
        """Takes up the files of a run that is resumed, in the folder where they are now."""
        super().before_train(runner)
        if runner._resume:  # else a best is not noted in the checkpoint that is resumed
            self.last_ckpt = self._here(runner.message_hub.get_info('last_ckpt'))
        if hasattr(self, 'best_ckpt_path'):
            self.best_ckpt_path = self._here(self.best_ckpt_path)
        if hasattr(self, 'best_ckpt_path_dict'):
            found = self.best_ckpt_path_dict.items()
            self.best_ckpt_path_dict = {key: self._here(path) for key, path in found}

    def _here(self, path: str | None) -> Any:
        # Where a moved folder was, another run's files may be, which this one must not remove.
        return path and self.file_backend.join_path(self.out_dir, os.path.basename(path))

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        with self._removals_last():
            super()._save_checkpoint_with_step(runner, step, meta)

    def _save_best_checkpoint(self, runner: Any, metrics: dict[str, Any]) -> None:
        with self._removals_last():
            super()._save_best_checkpoint(runner, metrics)

    @contextmanager
    def _removals_last(self) -> Iterator[None]:
        backend = self.file_backend
        if isinstance(backend, _Deferred):  # saving the best saves the last again
            yield
            return
        self.file_backend = deferred = _Deferred(backend)
        try:
            yield
        finally:
            self.file_backend = backend
        for path in deferred.doomed:
            if backend.isfile(path):
                backend.remove(path)


class _Deferred:
    """A file backend that only takes note of what is to be removed."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.doomed: list[str] = []

    def remove(self, path: str) -> None:
        self.doomed.append(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)
