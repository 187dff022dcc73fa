"""The arms of the digits benchmark: which trainings there are, and what each one changes."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densekd.cli.demo_steps import Run


@dataclass(frozen=True)
class Setting:
    """A model of the benchmark: its configs in configs/digits, and the scores of its table.

    Args:
        task: What it does, a folder of configs/kd/<method>.
        student: The plain student's config.
        teacher: The teacher's.
        scores: Name in the table and key of the metric; the first one decides.
        scale: Factor on both, since mmseg reports percent.
        control_method: The method that an untrained teacher teaches by.
        equal_epochs: Epochs of the plain student in the time that this method takes.
        long_epochs: Epochs of the long schedule.
        factors: By method, what `all` multiplies the published weights by, as chosen on `val`.
    """

    task: str
    student: str
    teacher: str
    scores: Mapping[str, str]
    scale: float = 1.0
    control_method: str = 'pkd'
    equal_epochs: int = 8
    long_epochs: int = 12
    factors: Mapping[str, float] = field(default_factory=dict)

    def arm(self, method: str) -> str:
        """Returns the arm that a method has in the table."""
        return f'{method}@{self.factors[method]:g}' if method in self.factors else method


BOXES = {'mAP': 'coco/bbox_mAP', 'AP50': 'coco/bbox_mAP_50'}
SETTINGS = {
    'retinanet': Setting(
        'detection', 'retinanet_r18w16_6e_digits', 'retinanet_r18w24_8e_digits', BOXES
    ),
    'faster-rcnn': Setting(
        'detection', 'faster_rcnn_r18w16_6e_digits', 'faster_rcnn_r18w24_8e_digits', BOXES
    ),
    'deeplabv3plus': Setting(
        'segmentation',
        'deeplabv3plus_r18w16_8e_digits',
        'deeplabv3plus_r18w32_10e_digits',
        {'mIoU': 'mIoU', 'mAcc': 'mAcc'},
        scale=0.01,
        control_method='cwd',
        equal_epochs=12,
        long_epochs=16,
    ),
    'resnet': Setting(
        'classification',
        'resnet8w8_8e_digits',
        'resnet20w16_12e_digits',
        {'top-1': 'accuracy/top1', 'top-5': 'accuracy/top5'},
        control_method='ofd',
        equal_epochs=24,
        long_epochs=32,
        factors={
            'at': 0.03,
            'cc': 0.01,
            'dist': 0.3,
            'dkd': 0.1,
            'fe': 0.03,
            'ft': 0.1,
            'kd': 0.1,
            'kdeid': 0.1,
            'kdsvd': 0.1,
            'lsl': 0.1,
            'mgd': 3,
            'mhgd': 0.1,
            'nst': 0.1,
            'ofd': 0.1,
            'pkt': 0.1,
            'rkd': 0.03,
            'sp': 0.1,
            'vid': 3,
        },
    ),
}
# Every other arm is a method, by the name of its folder in configs/kd.
CONTROLS = ('teacher', 'plain', 'equal-time', 'long-schedule', 'untrained-teacher')
DEFAULT_CONTROLS = ('teacher', 'plain', 'equal-time', 'untrained-teacher')
# What is chosen on one split of seeds and scenes is reported on another.
SEEDS = {'val': (100, 101), 'test': (0, 1, 2, 3, 4)}
# Between the seeds of a run's rounds: further than the benchmark's own are apart.
ROUND_SEEDS = 1000


@dataclass(frozen=True)
class Job:
    """One training: an arm, a seed, and the part of each class's training images that it sees.

    The arm `cwd@0.3` is a method with its weights times a factor.
    """

    arm: str
    seed: int
    fraction: float = 1.0

    @property
    def method(self) -> str:
        """The arm without its factor."""
        return self.arm.partition('@')[0]

    @property
    def factor(self) -> float:
        """What the method's weights are multiplied by."""
        return float(self.arm.partition('@')[2] or 1)

    def __str__(self) -> str:
        part = '' if self.fraction == 1 else f'_f{self.fraction}'
        return f'{self.arm}{part}_s{self.seed}'

    @classmethod
    def named(cls, name: str) -> Job | None:
        """Returns the job of a name, or None.

        Example:
            >>> Job.named(str(Job('kd_qfl@0.3', 12, 0.25)))
            Job(arm='kd_qfl@0.3', seed=12, fraction=0.25)
        """
        found = re.fullmatch(r'(.+?)(?:_f([0-9.]+))?_s([0-9]+)', name)
        return found and cls(found[1], int(found[3]), float(found[2] or 1))


def teachers_of(job: Job, number: int, teacher_seed: int | None) -> list[Job]:
    """Returns the trainings whose networks teach a job: always on all data, however much it has.

    Args:
        job: The job.
        number: How many teachers it has; they have the seeds from its own on.
        teacher_seed: The seed of the one teacher for all students; None for a teacher per seed.

    Example:
        >>> [str(teacher) for teacher in teachers_of(Job('kd-ensemble', 3, 0.1), 2, None)]
        ['teacher_s3', 'teacher_s4']
    """
    first = job.seed if teacher_seed is None else teacher_seed
    return [Job('teacher', first + i) for i in range(number)]


def jobs(
    arms: Sequence[str],
    seeds: Sequence[int],
    fractions: Sequence[float] = (1.0,),
    number: Mapping[str, int] | None = None,
    teacher_seed: int | None = None,
) -> dict[Job, list[Job]]:
    """Returns the trainings, with those that each waits for, in the order to begin them in.

    Args:
        arms: Which arms.
        seeds: Which seeds.
        fractions: Which parts of the data.
        number: How many trained teachers the methods have that have some.
        teacher_seed: As in `teachers_of`.

    Example:
        >>> [str(job) for job in jobs(('teacher', 'plain'), (0, 1), (1.0, 0.1))]
        ['teacher_s0', 'plain_s0', 'plain_f0.1_s0', 'teacher_s1', 'plain_s1', 'plain_f0.1_s1']
        >>> [str(job) for job in jobs(('plain', 'pkd'), (0, 1), number={'pkd': 1}, teacher_seed=7)]
        ['teacher_s7', 'plain_s0', 'pkd_s0', 'plain_s1', 'pkd_s1']
    """
    todo: dict[Job, list[Job]] = {}
    for seed in seeds:
        of_seed = {}
        for job in (Job(arm, seed, part) for part in fractions for arm in arms):
            count = 1 if job.arm == 'teacher' else (number or {}).get(job.method, 0)
            teachers = teachers_of(job, count, teacher_seed)
            todo.update({teacher: [] for teacher in teachers})
            if job.arm != 'teacher':
                of_seed[job] = teachers
        todo.update(of_seed)
    return todo


def finished(work_dir: Path) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Yields the jobs that are trained and scored, in whichever call of this script."""
    for path in sorted(work_dir.glob('*_s*/result.json')):
        job = Job.named(path.parent.name)
        if job is not None:
            yield job, json.loads(path.read_text())


def train(job: Job, args: argparse.Namespace) -> Run:
    """Trains and scores one job in this process, and returns its run."""
    import torch

    torch.set_num_threads(1)
    from densekd.cli.demo_progress import Reporter
    from densekd.cli.demo_steps import (
        data_options,
        methods_of,
        taught_by,
        teacher_keys,
        train_and_score,
    )
    from densekd.cli.options import configs_folder

    setting = SETTINGS[args.model]
    plain = configs_folder('demo') / 'digits' / f'{setting.student}.py'
    wide = plain.with_name(f'{setting.teacher}.py')
    methods = methods_of(args.model, setting.task)
    options = {
        **data_options(args.data, setting.task),
        **scored_on(args.split, args.data, setting.task),
        **part_of_data(job),
        **json.loads(args.options),
    }
    config, factor = plain, job.factor
    if job.arm == 'teacher':
        config = wide
    elif job.arm == 'equal-time':
        options.update(longer(plain, args.equal_epochs))
    elif job.arm == 'long-schedule':
        options.update(longer(plain, args.long_epochs))
    elif job.arm == 'untrained-teacher':
        config = methods[args.control_method]
        factor = setting.factors.get(args.control_method, 1)
        options.update(taught_by(untrained(wide, args.work_dir, job.seed), job.seed))
    elif job.arm != 'plain':
        config = methods[job.method]
        keys = teacher_keys(config)
        for key, teacher in zip(keys, teachers_of(job, len(keys), args.teacher_seed), strict=True):
            folder = args.work_dir / str(teacher)
            name = json.loads((folder / 'result.json').read_text())['checkpoint']
            options[key] = str(folder / name)
        options.update({'model.seed': job.seed, **round_seeds(config, job.seed)})
    if factor != 1:
        options['custom_hooks'] = weighing(config, factor)
    shown = Reporter(sys.stdout)
    return train_and_score(str(job), config, args.work_dir, job.seed, shown, options)


def part_of_data(job: Job) -> dict[str, Any]:
    """Returns the overrides that leave a job its part of the training data, drawn by its seed.

    An epoch has the part over and over, so that a job has as many iterations at each part.
    """
    if job.fraction == 1:
        return {}
    return {
        'train_dataloader.dataset.fraction': job.fraction,
        'train_dataloader.dataset.fraction_seed': job.seed,
        'train_dataloader.dataset.repeat': round(1 / job.fraction),
    }


def round_seeds(config: Path, seed: int) -> dict[str, int]:
    """Returns the overrides by which rounds with seeds of their own have others at each seed."""
    from densekd.engine import load_config

    return {
        f'rounds.{i}.randomness.seed': seed + ROUND_SEEDS * one['randomness']['seed']
        for i, one in enumerate(load_config(config).get('rounds') or [])
        if 'seed' in one.get('randomness', {})
    }


def scored_on(split: str, data: Path, task: str) -> dict[str, Any]:
    """Returns the overrides that score a run on another split than `test`."""
    if task == 'segmentation':
        folders = {'img_path': split, 'seg_map_path': f'masks/{split}'}
        return {'test_dataloader.dataset.data_prefix': folders}
    if task == 'classification':
        return {'test_dataloader.dataset.split': split}
    return {
        'test_dataloader.dataset.ann_file': f'annotations/instances_{split}.json',
        'test_dataloader.dataset.data_prefix.img': f'{split}/',
        'test_evaluator.ann_file': str(data / f'annotations/instances_{split}.json'),
    }


def weighing(config: Path, factor: float) -> list[dict[str, Any]]:
    """Returns a config's own hooks and one that multiplies the weights of its distillers."""
    from densekd.engine import load_config

    register_weighing()
    hook = {'type': 'densekd.WeighHook', 'factor': factor}
    return [*(load_config(config).get('custom_hooks') or []), hook]


def register_weighing() -> None:
    """Makes `densekd.WeighHook` known: it multiplies the weights of all distillers."""
    from mmengine.hooks import Hook

    from densekd.engine.registry import HOOKS

    @HOOKS.register_module(force=True)
    class WeighHook(Hook):
        """Weighs the distillers once, when all is built; in each stage and each round."""

        def __init__(self, factor: float) -> None:
            self.factor = factor

        def before_train(self, runner: Any) -> None:
            # A first round may be the plain student.
            for distiller in getattr(runner.model, 'distillers', {}).values():
                distiller.head.loss.loss_weight *= self.factor


def longer(config: Path, epochs: int) -> dict[str, Any]:
    """Returns the overrides that stretch a config's schedule to more epochs."""
    from densekd.engine import load_config

    schedule = load_config(config).param_scheduler
    return {
        'train_cfg.max_epochs': epochs,
        'param_scheduler': [{**dict(entry), 'total_steps': epochs} for entry in schedule],
    }


def untrained(config: Path, work_dir: Path, seed: int) -> Path:
    """Returns a checkpoint of the teacher as it is before its first step."""
    from tempfile import TemporaryDirectory

    import torch

    from densekd.engine import load_config
    from densekd.wrappers.build import build_network

    path = work_dir / f'untrained_s{seed}.pth'
    if not path.is_file():
        torch.manual_seed(seed)
        cfg = load_config(config)
        model = build_network(cfg.model.to_dict(), cfg.default_scope, 'untrained teacher')
        model.init_weights()
        # Jobs of other parts of the data may want it at the same time. Its name is in the file.
        with TemporaryDirectory(dir=work_dir) as aside:
            torch.save({'state_dict': model.state_dict(), 'meta': {}}, Path(aside) / path.name)
            (Path(aside) / path.name).replace(path)
    return path
