"""mmengine's Runner, with safe checkpoints, exact resuming and the distillers' optimiser group."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmengine.runner.checkpoint import _load_checkpoint_to_model

from densekd.core.checkpoint import read_checkpoint, unprefixed, weights_in
from densekd.engine import registry  # noqa: F401  makes densekd.X known to mmengine
from densekd.engine.data_order import seeded_loader, skip_batches
from densekd.engine.optim import build_for_distillation, unwrapped, with_own_peaks
from densekd.engine.peers import scored
from densekd.errors import CheckpointError
from densekd.wrappers.model import DistillModel

# What each run has beside its config's hooks.
OWN_HOOKS = ('StepSeedHook', 'DistillHook', 'PeerScoresHook', 'OwedValidationHook')


class FormattedOnce(Config):
    """A config that lays out its text again only if it has changed.

    Each checkpoint holds that text, and laying it out takes half a second if there are distillers.
    """

    _last = ('', '')  # what it held, and its text: of the last one that was asked for

    @property
    def pretty_text(self) -> str:
        """The config as Python code."""
        content = repr(self._cfg_dict)
        if content != FormattedOnce._last[0]:
            FormattedOnce._last = (content, super().pretty_text)
        return FormattedOnce._last[1]


class DistillRunner(Runner):
    """Runs a plain config or a distillation config; both see the same data in the same order."""

    trust_checkpoint = False

    @classmethod
    def from_cfg(cls, cfg: Any) -> DistillRunner:
        """Builds the runner of a config."""
        cfg = cfg.copy()
        object.__setattr__(cfg, '__class__', FormattedOnce)
        hooks = dict(cfg.get('default_hooks') or {})
        checkpoint = dict(hooks.get('checkpoint') or {'type': 'CheckpointHook', 'interval': 1})
        if checkpoint.get('type') in ('CheckpointHook', 'mmengine.CheckpointHook'):
            checkpoint['type'] = 'densekd.SafeCheckpointHook'
        hooks['checkpoint'] = checkpoint
        if isinstance(cfg.get('visualizer'), Mapping):
            # Visualizers are shared by name: a second run in this process, as of a stage, would
            # write its curves into the folder of the first. Without one, a run has its own.
            cfg['visualizer'] = {k: v for k, v in cfg['visualizer'].items() if k != 'name'}
        cfg['default_hooks'] = hooks
        given = list(cfg.get('custom_hooks') or [])
        there = {hook_name(hook) for hook in given}  # as in a config that a run has dumped
        own = [
            dict(type='densekd.StepSeedHook'),
            dict(type='densekd.DistillHook'),
            *scored(cfg),
            dict(type='densekd.OwedValidationHook'),
        ]
        cfg['custom_hooks'] = [*given, *(hook for hook in own if hook_name(hook) not in there)]
        return super().from_cfg(cfg)

    def dump_config(self) -> None:
        """Writes the config into the work_dir, but not over the file that it was read from."""
        if not is_dumped_over(self.cfg.filename, self.work_dir):
            super().dump_config()

    def build_train_loop(self, loop: Any) -> Any:
        """Builds the loop over data whose order and augmentation a resumed run repeats."""
        self._take_up_seed()
        if isinstance(self._train_dataloader, Mapping):
            built = self.build_dataloader(
                self._train_dataloader,
                seed=self.seed,
                diff_rank_seed=self._randomness_cfg.get('diff_rank_seed', False),
            )
            self._train_dataloader = seeded_loader(built, self.seed)
        return super().build_train_loop(loop)

    def _take_up_seed(self) -> None:
        """Takes the seed that a resumed run drew when it began, if its config says none.

        mmengine takes it only once the data are in the order of a new one.
        """
        if not self._resume or self._randomness_cfg.get('seed') is not None:
            return
        begun = self._load_from or latest_checkpoint(self.work_dir)
        if begun is None:
            return
        seed = read_checkpoint(begun, self.trust_checkpoint).get('meta', {}).get('seed')
        if seed is not None:
            self._randomness_cfg['seed'] = seed
            self.set_randomness(**self._randomness_cfg)

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """Builds the student's optimiser, with a group for the distillers."""
        model = unwrapped(self.model)
        if isinstance(model, DistillModel) and not isinstance(optim_wrapper, OptimWrapper):
            return build_for_distillation(model, optim_wrapper)
        if isinstance(optim_wrapper, Mapping) and 'distillers' in optim_wrapper:
            optim_wrapper = {k: v for k, v in optim_wrapper.items() if k != 'distillers'}
        return super().build_optim_wrapper(optim_wrapper)

    def build_param_scheduler(self, scheduler: Any) -> Any:
        """Builds the schedulers; a factor on distillers' learning rates stays what it is."""
        return super().build_param_scheduler(with_own_peaks(scheduler, self.optim_wrapper))

    def load_or_resume(self) -> None:
        """Loads or resumes; a resumed run without a checkpoint starts from the beginning."""
        if self._resume and self._load_from is None and not self._has_loaded:
            latest = latest_checkpoint(self.work_dir)
            if latest is None:
                self.logger.info(f'{self.work_dir} holds no checkpoint yet: starting anew.')
                self._resume = False
                return
            self.resume(str(latest))
            self._has_loaded = True
            return
        super().load_or_resume()

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resumes at the very iteration, within an epoch too."""
        super().resume(filename, *args, **kwargs)
        loop = self.train_loop
        if isinstance(loop, EpochBasedTrainLoop):
            done = self.iter - self.epoch * len(loop.dataloader)
            # At its last iteration an epoch is not over: what follows it is still to be done.
            if 0 < done <= len(loop.dataloader):
                skip_batches(loop.dataloader, done)

    def load_checkpoint(
        self,
        filename: str,
        map_location: Any = 'cpu',
        strict: bool = False,
        revise_keys: Any = ((r'^module\.', ''),),
    ) -> Any:
        """Loads a checkpoint, runs no code that it may carry, and refuses one that fits nothing."""
        checkpoint = read_checkpoint(filename, self.trust_checkpoint, map_location)
        model = unwrapped(self.model)
        own = model.state_dict()
        found = unprefixed(weights_in(checkpoint, filename), own)
        if not own.keys() & found.keys():
            raise CheckpointError(
                f'{filename}: none of its {len(found)} weights fits the student: it holds '
                f'{next(iter(found))}, the student {next(iter(own))}.'
            )
        if 'state_dict' not in checkpoint:
            checkpoint = {'state_dict': found, 'meta': {}}
        elif not own.keys() & checkpoint['state_dict'].keys():
            checkpoint['state_dict'] = found
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        checkpoint = _load_checkpoint_to_model(
            model, checkpoint, strict, revise_keys=list(revise_keys)
        )
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        """Writes a checkpoint aside, onto the disk, and only then under its name."""
        if '://' in str(out_dir):
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        aside = f'.{filename}.partial'
        super().save_checkpoint(out_dir, aside, *args, **kwargs)
        if self.rank == 0:
            put_in_place(Path(out_dir) / aside, Path(out_dir) / filename)


def hook_name(hook: Any) -> str:
    """Returns the name of a hook's type, without the registry it is from."""
    kind = hook.get('type') if isinstance(hook, Mapping) else type(hook)
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2]


def is_dumped_over(config: str | os.PathLike[str] | None, work_dir: Any) -> bool:
    """Whether a run's copy of its config, in its work_dir, would be the very file of the config."""
    if config is None:
        return False
    target = Path(work_dir) / Path(config).name
    return target.exists() and Path(config).exists() and target.samefile(config)


def put_in_place(aside: Path, target: Path) -> None:
    """Gives a finished file its name, once its bytes are on the disk."""
    with open(aside, 'rb') as file:
        os.fsync(file.fileno())
    os.replace(aside, target)
    if hasattr(os, 'O_DIRECTORY'):
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def latest_checkpoint(work_dir: str | os.PathLike[str]) -> Path | None:
    """Returns the checkpoint that a run left last, or None.

    Of two files of the name that it noted, the one in the folder itself is taken: where a folder
    was before it was moved, another run may be. The file that notes the name may have been cut
    short by a crash, so that the newest `epoch_*` or `iter_*` is taken where it names nothing.
    """
    folder = Path(work_dir)
    named = folder / 'last_checkpoint'
    if named.is_file():
        path = Path(named.read_text().strip() or '.')
        for candidate in (folder / path.name, path):
            if candidate.is_file():
                newest = candidate
                break
        else:
            newest = None
        if newest is not None:
            return newest
    found = [*folder.glob('epoch_*.pth'), *folder.glob('iter_*.pth')]
    return max(found, key=lambda p: p.stat().st_mtime, default=None)
