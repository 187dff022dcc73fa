"""The demo's runs: each is one config, trained and scored once, and picked up where it stopped."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densekd.cli.demo_progress import LISTENER, Reporter
from densekd.cli.options import configs_folder
from densekd.errors import ConfigError, DataError, did_you_mean

RESULT_FILE = 'result.json'
CLOCK_FILE = 'clock.json'


@dataclass(frozen=True)
class Recipe:
    """The three configs of a demo."""

    method: str
    teacher: Path
    plain: Path
    distilled: Path


@dataclass(frozen=True)
class Run:
    """A run that is trained and scored."""

    name: str
    folder: Path
    config: Any  # prepared
    checkpoint: Path
    metrics: Mapping[str, float]
    seconds: float  # of training, wall clock
    cpu_seconds: float

    @property
    def map(self) -> float:
        """The mAP of COCO, averaged over IoU 0.5 to 0.95."""
        # A model that detects nothing at all is given no metrics.
        return self.metrics.get('coco/bbox_mAP', 0.0)

    @property
    def headline(self) -> str:
        """The score that counts, named: mIoU or top-1 accuracy in percent, or mAP."""
        if 'mIoU' in self.metrics:
            return f'mIoU {self.metrics["mIoU"]:.1f}'
        if 'accuracy/top1' in self.metrics:
            return f'top-1 {self.metrics["accuracy/top1"]:.2f}'
        return f'mAP {self.map:.3f}'

    @property
    def ap50(self) -> float:
        """The AP at IoU 0.5."""
        return self.metrics.get('coco/bbox_mAP_50', 0.0)


def methods_of(model: str, task: str = 'detection') -> dict[str, Path]:
    """Returns the digits config of each method that has one for a model.

    Where a method has several, each is named with the words of its file's name, from the teacher
    on, that not all of them have: `ofd-backbone` and `ofd-head`. The teacher that most configs have
    is no such word: `kd`, `kd-ema` and `kd-ensemble`.
    """
    configs, name = configs_folder('demo'), model.replace('-', '_')
    by_method: dict[str, dict[Path, list[str]]] = {}
    for path in sorted(configs.glob(f'kd/*/{task}/{name}/*_digits_teacher_*.py')):
        words = path.stem.partition('_teacher_')[2].split('_')
        by_method.setdefault(path.relative_to(configs).parts[1], {})[path] = words
    teachers = Counter(words[0] for paths in by_method.values() for words in paths.values())
    usual = [teacher for teacher, _ in teachers.most_common(1)]
    found = {}
    for method, paths in by_method.items():
        unsaid = {*usual, *set.intersection(*map(set, paths.values()))}
        for path, words in paths.items():
            found['-'.join([method, *(word for word in words if word not in unsaid)])] = path
    return found


def find_recipe(detector: str, method: str) -> Recipe:
    """Returns the configs that compare a method on a detector.

    Raises:
        ConfigError: If there is no digits config of that method.
    """
    found = methods_of(detector)
    if method not in found:
        raise ConfigError(
            f'--method: there is no digits config of {method!r} for {detector}. '
            f'{did_you_mean(method, found)}'
        )
    digits, name = configs_folder('demo') / 'digits', detector.replace('-', '_')
    return Recipe(
        method,
        digits / f'{name}_r18w24_8e_digits.py',
        digits / f'{name}_r18w16_6e_digits.py',
        found[method],
    )


def train_all(
    recipe: Recipe,
    out: Path,
    data: Path,
    seed: int,
    shown: Reporter,
    options: Mapping[str, Any] | None = None,
    spec: Mapping[str, int] | None = None,
) -> list[Run]:
    """Makes the data, and trains and scores teacher, plain student and distilled student.

    Args:
        recipe: The configs.
        out: Where the runs' folders are.
        data: The folder of the digits.
        seed: Of all three runs.
        shown: What shows the progress.
        options: Further overrides of each config.
        spec: Arguments of `make_digits`, as for fewer scenes.
    """
    from densekd.datasets import make_digits

    shown.say(f'data: {data}')
    arguments: dict[str, Any] = {'progress': False, **(spec or {})}
    make_digits(data, **arguments)
    common = {**data_options(data), **(options or {})}
    teacher = train_and_score('teacher', recipe.teacher, out, seed, shown, common)
    plain = train_and_score('plain', recipe.plain, out, seed, shown, common)
    taught = {**common, **taught_by(teacher.checkpoint, seed)}
    name = f'distilled-{recipe.method}'
    return [teacher, plain, train_and_score(name, recipe.distilled, out, seed, shown, taught)]


def data_options(data: Path, task: str = 'detection') -> dict[str, Any]:
    """Returns the overrides that point a digits config to another folder; none if it is its own."""
    from densekd.cli.demo import DEFAULT_DATA

    if data == Path(DEFAULT_DATA):
        return {}
    options: dict[str, Any] = {}
    root = data / 'crops' if task == 'classification' else data
    for split in ('train', 'val', 'test'):
        options[f'{split}_dataloader.dataset.data_root'] = f'{root}/'
    for split in ('val', 'test') if task == 'detection' else ():
        options[f'{split}_evaluator.ann_file'] = str(data / f'annotations/instances_{split}.json')
    return options


def taught_by(checkpoint: Path, seed: int) -> dict[str, Any]:
    """Returns the overrides that name a distillation config's teacher, and seed its connectors."""
    return {'model.teacher.checkpoint': str(checkpoint), 'model.seed': seed}


def teacher_keys(config: Any) -> list[str]:
    """Returns the keys of a config that name its trained teachers' checkpoints, in their order.

    A config of one teacher has `model.teacher.checkpoint`, one of several
    `model.teacher.0.checkpoint` and so on; one whose teacher comes about in the run has none.
    """
    from densekd.engine import load_config

    return list(_teachers(load_config(config)))


def _teachers(cfg: Any) -> dict[str, Any]:
    """Returns the checkpoint of each teacher that has one, by its key."""
    given = cfg.model.get('teacher') or {}
    several = isinstance(given, (list, tuple))
    teachers = {f'.{i}': one for i, one in enumerate(given)} if several else {'': given}
    return {
        f'model.teacher{place}.checkpoint': teacher['checkpoint']
        for place, teacher in teachers.items()
        if teacher.get('checkpoint')
    }


def train_and_score(
    name: str,
    config: Path,
    out: Path,
    seed: int,
    shown: Reporter,
    options: Mapping[str, Any] | None = None,
) -> Run:
    """Trains a config and scores it on its test split, as far as that is not done already.

    Args:
        name: The run's name, and its folder in `out`.
        config: A config.
        out: Where the folder is.
        seed: The run's seed.
        shown: What shows the progress.
        options: Overrides of the config.

    Raises:
        DataError: If the folder holds a run of another seed, detector or setting.
    """
    from densekd.engine.run import evaluate, prepare, write_json
    from densekd.engine.sequences import train_config

    folder = out / name
    cfg = prepare(config, folder, {**(options or {}), 'randomness.seed': seed})
    mark = run_mark(cfg)
    done = finished(folder, mark)
    shown.begin(name)
    if done is None:
        _check_folder(folder, cfg)
        clock = Clock(folder, shown)
        token = LISTENER.set(clock)
        try:
            checkpoint = train_config(_for_the_demo(cfg), resume=True)
        finally:
            LISTENER.reset(token)
        clock.epoch_saved()
        metrics = {k: float(v) for k, v in evaluate(cfg, checkpoint).items()}
        done = {
            'mark': mark,
            # Stages and rounds have folders of their own.
            'checkpoint': os.path.relpath(checkpoint, folder),
            'metrics': metrics,
            'seconds': clock.seconds,
            'cpu_seconds': clock.cpu_seconds,
        }
        write_json(folder / RESULT_FILE, done)
    result = Run(
        name,
        folder,
        cfg,
        folder / done['checkpoint'],
        done['metrics'],
        done['seconds'],
        done['cpu_seconds'],
    )
    shown.end(result.headline)
    return result


def _for_the_demo(cfg: Any) -> Any:
    cfg = copy.deepcopy(cfg)
    # Scores that nobody looks at take time: what counts is the test split, at the end.
    for key in ('val_dataloader', 'val_cfg', 'val_evaluator'):
        cfg[key] = None
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, max_keep_ckpts=1)
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='densekd.ProgressHook')]
    return cfg


def run_mark(cfg: Any) -> str:
    """Returns a hash of what decides a run's result: config, data and the teachers' files."""
    from densekd.core.checkpoint import file_hash
    from densekd.datasets.folder import MARKER
    from densekd.engine.run import fingerprint

    parts: dict[str, Any] = dict(fingerprint(cfg))
    root = Path(cfg.test_dataloader.dataset.data_root)
    # Crops are in a folder of the data's.
    marker = next(
        (f / MARKER for f in (root, root.parent) if (f / MARKER).is_file()), root / MARKER
    )
    parts['data'] = hashlib.sha256(marker.read_bytes()).hexdigest()
    hashes = [file_hash(Path(checkpoint)) for checkpoint in _teachers(cfg).values()]
    if hashes:
        parts['teacher'] = hashes[0] if len(hashes) == 1 else hashes
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def finished(folder: Path, mark: str) -> dict[str, Any] | None:
    """Returns the result of a run that is trained and scored, or None."""
    path = folder / RESULT_FILE
    try:
        result = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return (
        result if result.get('mark') == mark and (folder / result['checkpoint']).is_file() else None
    )


def _check_folder(folder: Path, cfg: Any) -> None:
    from densekd.engine.run import RUN_FILE, fingerprint

    taken = (folder / RESULT_FILE).exists()
    marker = folder / RUN_FILE
    if marker.is_file():
        try:
            held = json.loads(marker.read_text()).get('parts', {})
        except (OSError, json.JSONDecodeError):
            held = {}
        taken = taken or any(held.get(k, v) != v for k, v in fingerprint(cfg).items())
    if taken:
        raise DataError(
            f'{folder}: the folder holds a run of another seed, detector, teacher or data. Give '
            'another --out, or delete the folder.'
        )


class Clock:
    """Adds up the time of a run over its interruptions; an epoch that is lost is not counted."""

    def __init__(self, folder: Path, shown: Reporter) -> None:
        self.path = folder / CLOCK_FILE
        self.shown = shown
        try:
            held = json.loads(self.path.read_text())
        except (OSError, json.JSONDecodeError):
            held = {}
        self.seconds = float(held.get('seconds', 0.0))
        self.cpu_seconds = float(held.get('cpu_seconds', 0.0))
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def step(self, done: int, total: int, epoch: int, epochs: int, loss: float) -> None:
        """Passes an iteration on."""
        self.shown.step(done, total, epoch, epochs, loss)

    def epoch_saved(self) -> None:
        """Keeps the time so far, since the epoch will not be run again."""
        from densekd.engine.run import write_json

        wall, cpu = time.perf_counter(), time.process_time()
        self.seconds += wall - self._wall
        self.cpu_seconds += cpu - self._cpu
        self._wall, self._cpu = wall, cpu
        write_json(self.path, {'seconds': self.seconds, 'cpu_seconds': self.cpu_seconds})
