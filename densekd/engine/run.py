"""Training and testing a config, plain or with distillation: what the commands call."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densekd.engine.optim import unwrapped
from densekd.engine.parts_check import (
    check_optimisation,
    check_parts,
    refuse_no_optimizer,
    register,
)
from densekd.engine.runner import (
    OWN_HOOKS,
    DistillRunner,
    hook_name,
    is_dumped_over,
    latest_checkpoint,
)
from densekd.errors import CheckpointError, ConfigError, DataError, did_you_mean
from densekd.registry import check_arguments
from densekd.wrappers.build import model_config
from densekd.wrappers.config import load_config, plain

RUN_FILE = 'run.json'
SCOPES = {
    'DistillClassifier': 'mmengine',
    'DistillDetector': 'mmdet',
    'DistillSegmentor': 'mmseg',
}
# densekd's own networks, which are trained plain as well.
PLAIN = {'ImageClassifier': 'mmengine'}

# The parts of a config that decide what is trained. Two runs that differ in one of them can't
# share a folder; where a run writes, how it talks and what it is scored on may change.
DECISIVE = (
    'model',
    'train_dataloader',
    'optim_wrapper',
    'param_scheduler',
    'train_cfg',
    'randomness',
    'stages',
    'rounds',
    'custom_hooks',
    'load_from',
    'auto_scale_lr',
)
# Hooks that decide nothing: a run adds them by itself, or they talk and score.
UNDECISIVE_HOOKS = (*OWN_HOOKS, 'BestAndLastHook', 'ProgressHook')


def is_distillation(cfg: Any) -> bool:
    """Whether a config's model is one of densekd's wrappers."""
    return str(_model(cfg).get('type', '')).removeprefix('densekd.') in SCOPES


def is_own(cfg: Any) -> bool:
    """Whether a config's model is one of densekd's networks, trained plain."""
    return str(_model(cfg).get('type', '')).removeprefix('densekd.') in PLAIN


def _model(cfg: Any) -> Mapping[str, Any]:
    model = cfg.get('model')
    if not isinstance(model, Mapping) or 'type' not in model:
        name = getattr(cfg, 'filename', None) or 'the config'
        raise ConfigError(f'{name}: there is no model in it.')
    return model


def student_config(cfg: Any) -> Any:
    """Returns the plain config of a run's student, which its toolbox reads with the checkpoint.

    A plain config comes back as it is, copied.
    """
    cfg = copy.deepcopy(load_config(cfg))
    cfg.pop('stages', None)
    if not is_distillation(cfg):
        return cfg
    scope = SCOPES[str(cfg.model.type).removeprefix('densekd.')]
    student = model_config(cfg.model.student, 'student')
    if not isinstance(student, Mapping):
        raise ConfigError('student: a network that is built already has no config.')
    cfg.__setattr__('model', dict(student))
    cfg.setdefault('default_scope', scope)
    if isinstance(cfg.get('optim_wrapper'), Mapping):
        cfg.optim_wrapper.pop('distillers', None)
    return cfg


def prepare(
    cfg: Any,
    work_dir: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    amp: bool = False,
    launcher: str = 'none',
) -> Any:
    """Returns a config ready for a runner: options merged, work_dir, scope and launcher set.

    Args:
        cfg: A path, a `Config` or a dict.
        work_dir: Where the run writes; `work_dirs/<name of the config>` by default.
        options: Overrides, such as `{'train_cfg.max_epochs': 2}`.
        amp: Whether to train with automatic mixed precision.
        launcher: `'none'`, `'pytorch'`, `'slurm'` or `'mpi'`.

    Raises:
        ConfigError: If the config has no model, its optimiser or a scheduler is no dict, or it
            asks for what this machine has not.
    """
    cfg = copy.deepcopy(load_config(cfg))
    if options:
        try:
            cfg.merge_from_dict(dict(options))
        except (KeyError, TypeError, IndexError) as error:
            raise ConfigError(f'--cfg-options: {error}') from None
    name = Path(getattr(cfg, 'filename', None) or 'run.py').stem
    cfg.work_dir = str(work_dir or cfg.get('work_dir') or Path('work_dirs') / name)
    model = _model(cfg)
    kind = str(model['type']).removeprefix('densekd.')
    known = {**SCOPES, **PLAIN}
    if str(model['type']).startswith('densekd.') and kind not in known:
        raise ConfigError(f'model.type: densekd has no {kind!r}. {did_you_mean(kind, known)}')
    if cfg.get('default_scope') is None:
        cfg.default_scope = known.get(kind, 'mmdet')
    if kind in SCOPES:
        _check_keys(kind, model)
        # A runner would hand this key to the wrapper; it is a default of the student.
        default = cfg.pop('data_preprocessor', None)
        if default is not None and isinstance(model.get('student'), Mapping):
            cfg.model.student.setdefault('data_preprocessor', default)
        from densekd.engine.stored_logits import stored_teachers, with_digests

        if stored_teachers(cfg):
            with_digests(cfg)
        names = None if model.get('classes') else training_classes(cfg)
        if names:
            cfg.model.classes = names  # by which the teacher's are found
    check_optimisation(cfg)
    if amp:
        _use_amp(cfg)
    cfg.launcher = launcher
    if launcher != 'none':
        _prepare_launcher(cfg)
    return cfg


def training_classes(cfg: Any) -> list[str] | None:
    """Returns the names of the classes that a config trains on, or None where nothing says them.

    They are those of the data's metainfo, or else of the data set's own type, or else the names of
    its folders.
    """
    from mmengine.registry import DATASETS

    from densekd.engine.data_checks import datasets
    from densekd.engine.labelled_checks import folder_names

    for _, dataset in datasets(cfg, ('train',)):
        given = dataset.get('metainfo') or {}
        names = given.get('classes') or given.get('CLASSES')
        if names is None:
            register(cfg.default_scope)
            with DATASETS.switch_scope_and_registry(cfg.default_scope) as registry:
                found = registry.get(str(dataset.get('type', '')))
            names = (getattr(found, 'METAINFO', None) or {}).get('classes')
            names = names or folder_names(dataset)
        if names:
            return [names] if isinstance(names, str) else [str(name) for name in names]
    return None


def _check_keys(kind: str, model: Mapping[str, Any]) -> None:
    from densekd.engine import models  # noqa: F401  registers the wrappers
    from densekd.engine.registry import MODELS

    wrapper = MODELS.get(kind)
    if wrapper is None:
        raise ConfigError(f'model.type: densekd has no {kind} yet.')
    check_arguments(wrapper, {k: v for k, v in model.items() if k != 'type'}, 'model')


def _use_amp(cfg: Any) -> None:
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            '--amp: automatic mixed precision needs a GPU in mmengine, and none is visible. Leave '
            'out --amp.'
        )
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ConfigError(f'--amp: it replaces OptimWrapper, but the config has {wrapper}.')
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def _prepare_launcher(cfg: Any) -> None:
    import torch

    if cfg.launcher == 'pytorch' and not torch.cuda.is_available():
        # Without a GPU mmengine's launcher asks for CUDA all the same; a group that is there
        # already is taken over.
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group('gloo')
        # As mmengine sets it up without such a key, but for the devices.
        wrapper = dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
        cfg.model_wrapper_cfg = {
            **wrapper,
            **(cfg.get('model_wrapper_cfg') or {}),
            'device_ids': None,
        }


def train(cfg: Any, resume: bool = False, preflight: bool = True, trust: bool = False) -> Path:
    """Trains a prepared config, and returns the last checkpoint.

    Args:
        cfg: What `prepare` returned.
        resume: Whether to go on where the run in `work_dir` stopped.
        preflight: Whether to prove the wiring before the first step.
        trust: Whether checkpoints may run code while they are read.

    Raises:
        DataError: If `work_dir` holds another run, or one that is not to be resumed, or the data
            is not what the config says.
        DenseKDError: What the preflight finds.
    """
    claim(cfg, resume)
    made = ready(cfg, resume, preflight, trust)
    mark(cfg)  # as it was given, which is what it is compared with when it is resumed
    return run(made, resume, trust)


def ready(
    cfg: Any,
    resume: bool,
    preflight: bool,
    trust: bool,
    handed: Mapping[str, Any] | None = None,
) -> Any:
    """Returns a config with all that can fail before the first step behind it.

    Args:
        cfg: A prepared config.
        resume: As in `train`.
        preflight: As in `train`.
        trust: As in `train`.
        handed: What the distillers are handed by the stage before.

    Raises:
        DenseKDError: The first thing that is wrong.
    """
    from densekd.engine.preflight import check_before_training
    from densekd.engine.pretrained import with_local_weights
    from densekd.wrappers.build import without_pretrained

    refuse_no_optimizer(cfg)
    cfg = trusted(cfg, trust)
    if preflight:
        check_before_training(cfg, handed)
    if resume and latest_checkpoint(cfg.work_dir) is not None:
        # All weights come from there, so that those it began with may be gone meanwhile.
        cfg = copy.deepcopy(cfg)
        model = without_pretrained(plain(student_config(cfg).model))
        if is_distillation(cfg):
            cfg.model.student = model
        else:
            cfg.model = model
        return cfg
    return with_local_weights(cfg, trust)


def trusted(cfg: Any, trust: bool) -> Any:
    """Returns a config whose teachers' files may run code while they are read, with `trust`."""
    if trust and is_distillation(cfg):
        cfg = copy.deepcopy(cfg)
        cfg.model.trust_checkpoint = True
    return cfg


def run(cfg: Any, resume: bool, trust: bool = False) -> Path:
    """Runs the training of a config that is `ready`, and whose work_dir is claimed already."""
    from mmengine.dist import barrier

    from densekd.engine.data_checks import data_errors

    cfg = copy.deepcopy(cfg)
    cfg.resume = bool(resume)
    if resume:
        if latest_checkpoint(cfg.work_dir) is None:
            cfg.resume = False
        else:
            cfg.load_from = None  # what the run began from; mmengine would resume from that file
    runner = DistillRunner.from_cfg(cfg)
    runner.trust_checkpoint = trust
    with data_errors(cfg):
        runner.train()
    barrier()  # the first process writes, and all of them look
    last = latest_checkpoint(cfg.work_dir)
    if last is None:
        raise CheckpointError(f'{cfg.work_dir}: the run ended without a checkpoint.')
    return last


def claim(cfg: Any, resume: bool) -> None:
    """Refuses a folder that holds another run, or one that is not to be resumed.

    A run that wrote no checkpoint yet holds nothing: its config may be corrected and run again.

    Raises:
        DataError: If the folder holds a run and `resume` is false, or a run of another config, or
            the config itself, where the run would write its copy.
    """
    folder = Path(cfg.work_dir)
    if folder.exists() and not folder.is_dir():
        raise DataError(f'{folder}: the work_dir is a file. Give another --work-dir.')
    parts = [*(cfg.get('stages') or []), *(cfg.get('rounds') or [])]
    named = [part for part in parts if isinstance(part, Mapping)]
    inside = {folder / str(part.get('name')) for part in named}
    held = read_mark(folder)
    if held is not None:  # of a run whose stages may have had other names, or that had none
        inside |= {path for path in folder.iterdir() if path.is_dir()}
    written = [p for place in [folder, *sorted(inside)] for p in _checkpoints(place)]
    if not written:
        own = getattr(cfg, 'filename', None)
        copies = [(folder / str(p.get('name')), p.get('config') or own) for p in named]
        for place, config in copies or [(folder, own)]:
            if is_dumped_over(config, place):
                raise DataError(
                    f'{config}: the run would write its copy of the config over this very file. '
                    'Give another --work-dir.'
                )
        return
    if held is None:
        if not resume:
            raise DataError(
                f'{folder}: the folder holds another run ({written[0].name}). Give another '
                '--work-dir, or --resume to go on with that one.'
            )
        return
    mine = fingerprint(cfg)
    differing = [k for k in {**mine, **held} if held.get(k) != mine.get(k)]
    if differing:
        raise DataError(
            f'{folder}: the folder holds another run: its {differing[0]} differs from this '
            'config. Give another --work-dir.'
        )
    if not resume:
        raise DataError(
            f'{folder}: the folder holds a run of this config already. Pass --resume to go '
            'on with it, or give another --work-dir.'
        )


def _checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints that a run left in a folder, or elsewhere, as its `out_dir` says."""
    latest = latest_checkpoint(folder)
    return [*folder.glob('*.pth'), *([latest] if latest else [])]


def mark(cfg: Any) -> None:
    """Notes in a folder whose run it holds."""
    folder = Path(cfg.work_dir)
    folder.mkdir(parents=True, exist_ok=True)
    name = str(getattr(cfg, 'filename', None) or '')
    write_json(folder / RUN_FILE, {'config': name, 'parts': fingerprint(cfg)})


def read_mark(folder: Path) -> dict[str, str] | None:
    """Returns the fingerprint of the run that a folder holds, or None."""
    try:
        parts = json.loads((folder / RUN_FILE).read_text())['parts']
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return parts if isinstance(parts, dict) else None


def fingerprint(cfg: Any) -> dict[str, str]:
    """Returns a hash of each part of a config that decides what is trained."""
    values = plain(cfg._cfg_dict.to_dict())
    if isinstance(hooks := values.get('custom_hooks'), (list, tuple)):
        hooks = [h for h in hooks if hook_name(h) not in UNDECISIVE_HOOKS]
        # One that is built already is told by its name: its text is another in each process.
        values['custom_hooks'] = [h if isinstance(h, dict) else hook_name(h) for h in hooks] or None
    if isinstance(scaling := values.get('auto_scale_lr'), dict) and not scaling.get('enable'):
        values['auto_scale_lr'] = None  # a batch size that nothing is scaled by
    parts = {}
    for key in DECISIVE:
        if isinstance(values.get(key), (dict, list, tuple, str)):
            text = json.dumps(values[key], sort_keys=True, default=repr)
            parts[key] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return parts


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    aside = path.with_name(f'.{path.name}.{os.getpid()}')
    with open(aside, 'w') as file:
        file.write(json.dumps(value, indent=1))
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave the new name on an empty file
    os.replace(aside, path)


# What the evaluators of the toolboxes call their list of metrics, and what may stand in it.
METRICS = {
    'CocoMetric': ('metric', ('bbox', 'segm', 'proposal', 'proposal_fast')),
    'IoUMetric': ('iou_metrics', ('mIoU', 'mDice', 'mFscore')),
}


def use_metrics(cfg: Any, metrics: Sequence[str]) -> None:
    """Makes a config's test evaluator compute these metrics.

    Raises:
        ConfigError: If the evaluator has no such metric, or no choice of metrics at all.
    """
    evaluators = cfg.get('test_evaluator') or []
    for entry in [evaluators] if isinstance(evaluators, Mapping) else evaluators:
        kind = str(entry.get('type', '')).rpartition('.')[2]
        if kind not in METRICS:
            raise ConfigError(
                f"--eval: the config's evaluator {kind} offers no choice of metrics. Leave out "
                '--eval: the config says what is scored.'
            )
        key, offered = METRICS[kind]
        for metric in metrics:
            if metric not in offered:
                raise ConfigError(
                    f'--eval: {kind} has no metric {metric!r}. {did_you_mean(metric, offered)}'
                )
        entry[key] = list(metrics)


def evaluate(cfg: Any, checkpoint: str | os.PathLike[str], trust: bool = False) -> dict[str, float]:
    """Scores a checkpoint with the config's own test data and evaluator.

    Args:
        cfg: A prepared config; of a distillation config, the student is tested.
        checkpoint: The student's checkpoint.
        trust: Whether the checkpoint may run code while it is read.

    Returns:
        The evaluator's metrics.

    Raises:
        ConfigError: If the config says nothing of testing.
        CheckpointError: If the checkpoint does not fit the student.
        DataError: If images with labels can't be read, or are of other classes than it learnt.
    """
    from densekd.core.checkpoint import load_weights, read_checkpoint
    from densekd.engine.data_checks import check_scored, data_errors
    from densekd.wrappers.build import without_pretrained

    plain_cfg = student_config(cfg)
    for key in ('test_dataloader', 'test_evaluator', 'test_cfg'):
        if plain_cfg.get(key) is None:
            raise ConfigError(f'test: the config has no {key}, so that there is nothing to score.')
    plain_cfg.model = without_pretrained(plain(plain_cfg.model))
    plain_cfg.load_from, plain_cfg.resume = None, False
    for key in ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler'):
        plain_cfg.pop(key, None)
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        plain_cfg.pop(key, None)
    check_parts(plain_cfg)
    read = read_checkpoint(checkpoint, trust)
    meta = read.get('meta') if isinstance(read, Mapping) else None
    check_scored(plain_cfg, ((meta or {}).get('dataset_meta') or {}).get('classes'))
    runner = DistillRunner.from_cfg(plain_cfg)
    load_weights(unwrapped(runner.model), read, checkpoint, 'student')
    runner._has_loaded = True
    with data_errors(plain_cfg):
        return runner.test()
