"""Trains the arms of the digits benchmark over seeds, and writes the table.

    python projects/digits_benchmark/run.py --seeds 0 1 2 3 4 --jobs 2
    python projects/digits_benchmark/run.py --model faster-rcnn --arms all
    python projects/digits_benchmark/run.py --split val --arms plain cwd@0.3 cwd cwd@3

Each run is a process of one thread. What is finished is not run again, and what was interrupted
goes on. The arms and what they mean are in README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Setting:
    """A model of the benchmark: its configs in configs/digits, and the scores of its table.

    Args:
        task: What it does, a folder of configs/kd/<method>.
        student: The plain student's config.
        teacher: The teacher's.
        scores: Name in the table and key of the metric; the first one decides.
        scale: Factor on both, since mmseg reports percent.
    """

    task: str
    student: str
    teacher: str
    scores: Mapping[str, str]
    scale: float = 1.0


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
        'deeplabv3plus_r18w16_12e_digits',
        'deeplabv3plus_r18w32_16e_digits',
        {'mIoU': 'mIoU', 'mAcc': 'mAcc'},
        scale=0.01,
    ),
}
# Every other arm is a method, by the name of its folder in configs/kd.
CONTROLS = ('teacher', 'plain', 'equal-time', 'long-schedule', 'untrained-teacher')
DEFAULT_ARMS = ('teacher', 'plain', 'pkd', 'equal-time', 'untrained-teacher')
PICTURED = 300  # test images among which those that changed most are drawn
# What is chosen on one split of seeds and scenes is reported on another.
SEEDS = {'val': (100, 101), 'test': (0, 1, 2, 3, 4)}


@dataclass(frozen=True)
class Job:
    """One training: an arm and a seed. `cwd@0.3` is a method with its weights times a factor."""

    arm: str
    seed: int

    @property
    def method(self) -> str:
        """The arm without its factor."""
        return self.arm.partition('@')[0]

    @property
    def factor(self) -> float:
        """What the method's weights are multiplied by."""
        return float(self.arm.partition('@')[2] or 1)

    def __str__(self) -> str:
        return f'{self.arm}_s{self.seed}'


def jobs(arms: Sequence[str], seeds: Sequence[int], teacher_seed: int | None) -> list[Job]:
    """Returns the trainings in the order in which they are best begun: teachers, then by seed.

    Args:
        arms: Which arms.
        seeds: Which seeds.
        teacher_seed: The seed of the one teacher for all students; None for a teacher per seed.

    Example:
        >>> [str(job) for job in jobs(('teacher', 'plain'), (0, 1), teacher_seed=None)]
        ['teacher_s0', 'plain_s0', 'teacher_s1', 'plain_s1']
        >>> [str(job) for job in jobs(('teacher', 'plain'), (0, 1), teacher_seed=7)]
        ['teacher_s7', 'plain_s0', 'plain_s1']
    """
    first = [] if teacher_seed is None else [Job('teacher', teacher_seed)]
    rest = [Job(a, s) for s in seeds for a in arms if teacher_seed is None or a != 'teacher']
    return [job for job in [*first, *rest] if job.arm in arms]


def teacher_of(job: Job, teacher_seed: int | None) -> Job | None:
    """Returns the training that a job waits for.

    Example:
        >>> str(teacher_of(Job('pkd', 3), None)), teacher_of(Job('plain', 3), None)
        ('teacher_s3', None)
    """
    if job.arm in CONTROLS:
        return None
    return Job('teacher', job.seed if teacher_seed is None else teacher_seed)


def train(job: Job, args: argparse.Namespace) -> None:
    """Trains and scores one job in this process."""
    import torch

    torch.set_num_threads(1)
    from densekd.cli.demo_progress import Reporter
    from densekd.cli.demo_steps import data_options, methods_of, taught_by, train_and_score
    from densekd.cli.options import configs_folder

    setting = SETTINGS[args.model]
    plain = configs_folder('demo') / 'digits' / f'{setting.student}.py'
    wide = plain.with_name(f'{setting.teacher}.py')
    method = args.control_method if job.arm in CONTROLS else job.method
    distilled = methods_of(args.model, setting.task)[method]
    options = {
        **data_options(args.data, setting.task),
        **scored_on(args.split, args.data, setting.task),
        **json.loads(args.options),
    }
    config = plain
    if job.arm == 'teacher':
        config = wide
    elif job.arm in ('equal-time', 'long-schedule'):
        epochs = args.equal_epochs if job.arm == 'equal-time' else args.long_epochs
        options.update(longer(plain, epochs))
    elif job.arm == 'untrained-teacher':
        config = distilled
        options.update(taught_by(untrained(wide, args.work_dir, job.seed), job.seed))
    elif job.arm != 'plain':
        config = distilled
        teacher = teacher_of(job, args.teacher_seed)
        folder = args.work_dir / str(teacher)
        name = json.loads((folder / 'result.json').read_text())['checkpoint']
        options.update(taught_by(folder / name, job.seed))
        if job.factor != 1:
            register_weighing()
            options['custom_hooks'] = [{'type': 'densekd.WeighHook', 'factor': job.factor}]
    train_and_score(str(job), config, args.work_dir, job.seed, Reporter(sys.stdout), options)


def scored_on(split: str, data: Path, task: str) -> dict[str, Any]:
    """Returns the overrides that score a run on another split than `test`."""
    if task == 'segmentation':
        folders = {'img_path': split, 'seg_map_path': f'masks/{split}'}
        return {'test_dataloader.dataset.data_prefix': folders}
    return {
        'test_dataloader.dataset.ann_file': f'annotations/instances_{split}.json',
        'test_dataloader.dataset.data_prefix.img': f'{split}/',
        'test_evaluator.ann_file': str(data / f'annotations/instances_{split}.json'),
    }


def register_weighing() -> None:
    """Makes `densekd.WeighHook` known: it multiplies the weights of all distillers."""
    from mmengine.hooks import Hook

    from densekd.engine.registry import HOOKS

    @HOOKS.register_module(force=True)
    class WeighHook(Hook):
        """Weighs the distillers once, when all is built."""

        def __init__(self, factor: float) -> None:
            self.factor = factor

        def before_train(self, runner: Any) -> None:
            for distiller in runner.model.distillers.values():
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
    import torch

    from densekd.engine import load_config
    from densekd.wrappers.build import build_network

    path = work_dir / f'untrained_s{seed}.pth'
    if not path.is_file():
        torch.manual_seed(seed)
        cfg = load_config(config)
        model = build_network(cfg.model.to_dict(), cfg.default_scope, 'untrained teacher')
        model.init_weights()
        torch.save({'state_dict': model.state_dict(), 'meta': {}}, path)
    return path


def run_all(todo: list[Job], args: argparse.Namespace) -> list[Job]:
    """Runs jobs in processes, a few at a time, and returns those that failed."""
    running: dict[Job, subprocess.Popen[bytes]] = {}
    waiting, failed = list(todo), []
    try:
        while waiting or running:
            for job in [j for j, p in running.items() if p.poll() is not None]:
                if running.pop(job).returncode:
                    failed.append(job)
                    print(f'{job}: failed, see {args.work_dir / str(job)}.log', flush=True)
            busy = {*running, *waiting}
            ready = [j for j in waiting if teacher_of(j, args.teacher_seed) not in busy]
            for job in ready[: args.jobs - len(running)]:
                waiting.remove(job)
                if teacher_of(job, args.teacher_seed) in failed:
                    failed.append(job)
                    continue
                print(f'{time.strftime("%H:%M:%S")} {job}', flush=True)
                running[job] = start(job, args)
            time.sleep(1)
    finally:
        for process in running.values():
            process.terminate()
    return failed


def start(job: Job, args: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Starts a job in a process of one thread."""
    command = [sys.executable, str(HERE / 'run.py'), '--one', job.arm, str(job.seed)]
    command += ['--work-dir', str(args.work_dir), '--data', str(args.data)]
    command += ['--model', args.model, '--control-method', args.control_method]
    command += ['--equal-epochs', str(args.equal_epochs), '--long-epochs', str(args.long_epochs)]
    command += ['--split', args.split, '--options', args.options]
    if args.teacher_seed is not None:
        command += ['--teacher-seed', str(args.teacher_seed)]
    threads = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS'), '1')
    with open(args.work_dir / f'{job}.log', 'ab') as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **threads})


def finished(work_dir: Path) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Yields the jobs that are trained and scored, in whichever call of this script."""
    for path in sorted(work_dir.glob('*_s*/result.json')):
        arm, _, seed = path.parent.name.rpartition('_s')
        if seed.isdigit():
            yield Job(arm, int(seed)), json.loads(path.read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what is missing, and writes what there is."""
    parser = argparse.ArgumentParser(description='The digits benchmark.')
    parser.add_argument('--model', choices=list(SETTINGS), default='retinanet')
    parser.add_argument('--seeds', type=int, nargs='+', help='0 to 4; for val 100 and 101')
    parser.add_argument(
        '--split', choices=list(SEEDS), default='test', help='scored on; val is for tuning'
    )
    parser.add_argument(
        '--arms',
        nargs='+',
        default=list(DEFAULT_ARMS),
        help=f'{", ".join(CONTROLS)}, or methods, all of them: all; method@factor weighs one',
    )
    parser.add_argument('--jobs', type=int, default=2, help='processes at a time')
    parser.add_argument(
        '--teacher-seed', type=int, help='one teacher of this seed for all; else one per seed'
    )
    parser.add_argument(
        '--control-method', default='pkd', help='the method that the untrained teacher teaches by'
    )
    parser.add_argument('--equal-epochs', type=int, default=8, help='epochs of the equal-time arm')
    parser.add_argument('--long-epochs', type=int, default=12, help='of the long-schedule arm')
    parser.add_argument('--work-dir', type=Path, help='by default work_dirs/<name of results>')
    parser.add_argument('--data', type=Path, default=Path('data/digits'))
    parser.add_argument('--results', type=Path, default=HERE / 'results')
    parser.add_argument('--options', default='{}', help='overrides of every config, as JSON')
    parser.add_argument('--one', nargs=2, metavar=('ARM', 'SEED'), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.seeds = args.seeds or list(SEEDS[args.split])
    args.work_dir = args.work_dir or Path(f'work_dirs/digits_{named(args)}')
    if args.one:
        train(Job(args.one[0], int(args.one[1])), args)
        return 0

    from densekd.cli.demo_steps import methods_of
    from densekd.datasets import make_digits
    from densekd.errors import did_you_mean

    methods = methods_of(args.model, SETTINGS[args.model].task)
    if 'all' in args.arms:
        args.arms = [*CONTROLS, *methods]
    for arm in args.arms:
        name, at, factor = arm.partition('@')
        if at and (name in CONTROLS or not is_positive(factor)):
            parser.error(f'--arms: {arm!r}: a factor above 0 follows the @, on a method.')
        if name not in (*CONTROLS, *methods):
            hint = did_you_mean(arm, [*CONTROLS, *methods])
            parser.error(f'--arms: there is no {arm!r} for {args.model}. {hint}')
    # So that whoever stops this script stops the processes that it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    args.work_dir.mkdir(parents=True, exist_ok=True)
    make_digits(args.data)
    taught = [arm for arm in args.arms if arm not in CONTROLS]
    todo = jobs(['teacher', *args.arms] if taught else args.arms, args.seeds, args.teacher_seed)
    done = {job for job, _ in finished(args.work_dir)}
    failed = run_all([job for job in dict.fromkeys(todo) if job not in done], args)
    write(args)
    return 1 if failed else 0


def picture(runs: Sequence[Mapping[str, Any]], args: argparse.Namespace) -> None:
    """Draws what the best method changed, at the first seed that has all three models."""
    import pictures
    import table

    from densekd.cli.demo_cost import load_model, test_images
    from densekd.engine import load_config

    scores = list(SETTINGS[args.model].scores)
    arms = [row['arm'] for row in table.summarise(runs, scores) if row['arm'] not in CONTROLS]
    done = dict(finished(args.work_dir))
    for seed in sorted({job.seed for job in done}) if arms else ():
        teacher = seed if args.teacher_seed is None else args.teacher_seed
        compared = (Job('plain', seed), Job(arms[-1], seed), Job('teacher', teacher))
        if not done.keys() >= {*compared}:
            continue
        models = {}
        for name, job in zip(pictures.MODELS, compared, strict=True):
            folder = args.work_dir / str(job)
            cfg = load_config(next(folder.glob('*.py')))
            models[name] = load_model(cfg, folder / done[job]['checkpoint'])
        palette = cfg.test_dataloader.dataset.metainfo['palette']
        path = args.results / f'{named(args)}_masks.png'
        pictures.draw_masks(models, test_images(cfg, PICTURED), palette, path)
        return


def named(args: argparse.Namespace) -> str:
    """Returns what the results of a model on a split are called."""
    return args.model if args.split == 'test' else f'{args.model}_{args.split}'


def is_positive(text: str) -> bool:
    """Returns whether a text is a finite number above 0."""
    try:
        return 0 < float(text) < float('inf')
    except ValueError:
        return False


def write(args: argparse.Namespace) -> None:
    """Writes the results of what is finished: figures, table, plot and logs."""
    import table

    setting = SETTINGS[args.model]
    runs = [
        {
            'arm': job.arm,
            'seed': job.seed,
            # A detector that finds nothing at all is given no metrics.
            **{
                label: round(setting.scale * result['metrics'].get(key, 0.0), 4)
                for label, key in setting.scores.items()
            },
            'cpu_seconds': round(result['cpu_seconds'], 1),
        }
        for job, result in finished(args.work_dir)
    ]
    settings = {
        'model': args.model,
        'scores': list(setting.scores),
        'split': args.split,
        'teacher_seed': args.teacher_seed,
        'equal_epochs': args.equal_epochs,
        'long_epochs': args.long_epochs,
    }
    table.write_results(runs, settings, args.results, named(args))
    if setting.task == 'segmentation':
        picture(runs, args)
    logs = args.results / 'logs' / named(args)
    for job, _ in finished(args.work_dir):
        table.write_log(args.work_dir / str(job), logs / f'{job}.jsonl')


if __name__ == '__main__':
    sys.exit(main())
