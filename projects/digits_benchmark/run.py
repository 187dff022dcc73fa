"""Trains the arms of the digits benchmark over seeds, and writes the table.

    python projects/digits_benchmark/run.py --seeds 0 1 2 3 4 --jobs 2
    python projects/digits_benchmark/run.py --model faster-rcnn --arms all
    python projects/digits_benchmark/run.py --split val --arms plain cwd@0.3 cwd cwd@3
    python projects/digits_benchmark/run.py --model resnet --arms all --fractions 1 0.5 0.25 0.1

Each run is a process of one thread. What is finished is not run again, and what was interrupted
goes on. The arms and what they mean are in README.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arms import CONTROLS, DEFAULT_CONTROLS, SEEDS, SETTINGS, Job, finished, jobs, train

HERE = Path(__file__).resolve().parent
PICTURED = 300  # test images among which those that changed most are drawn


def run_all(todo: Mapping[Job, Sequence[Job]], args: argparse.Namespace) -> list[Job]:
    """Runs jobs in processes, a few at a time, and returns those that failed.

    Args:
        todo: Jobs, with those that each waits for, if they are to be run as well.
        args: How the script was called.
    """
    running: dict[Job, subprocess.Popen[bytes]] = {}
    waiting, failed = list(todo), []
    try:
        while waiting or running:
            for job in [j for j, p in running.items() if p.poll() is not None]:
                if running.pop(job).returncode:
                    failed.append(job)
                    print(f'{job}: failed, see {args.work_dir / str(job)}.log', flush=True)
            busy = {*running, *waiting}
            ready = [job for job in waiting if busy.isdisjoint(todo[job])]
            for job in ready[: args.jobs - len(running)]:
                waiting.remove(job)
                if not {*failed}.isdisjoint(todo[job]):
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
    command = [sys.executable, str(HERE / 'run.py'), '--one', str(job)]
    command += ['--work-dir', str(args.work_dir), '--data', str(args.data)]
    command += ['--model', args.model, '--control-method', args.control_method]
    command += ['--equal-epochs', str(args.equal_epochs), '--long-epochs', str(args.long_epochs)]
    command += ['--split', args.split, '--options', args.options]
    if args.teacher_seed is not None:
        command += ['--teacher-seed', str(args.teacher_seed)]
    threads = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS'), '1')
    with open(args.work_dir / f'{job}.log', 'ab') as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **threads})


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
        help=f'{", ".join(CONTROLS)}, or methods, all of them: all; method@factor weighs one',
    )
    parser.add_argument(
        '--fractions',
        type=float,
        nargs='+',
        default=[1.0],
        help='of the training images, for a classifier; its teachers have all of them',
    )
    parser.add_argument('--jobs', type=int, default=2, help='processes at a time')
    parser.add_argument(
        '--teacher-seed', type=int, help='one teacher of this seed for all; else one per seed'
    )
    parser.add_argument('--control-method', help='the method that the untrained teacher teaches by')
    parser.add_argument('--equal-epochs', type=int, help='epochs of the equal-time arm')
    parser.add_argument('--long-epochs', type=int, help='of the long-schedule arm, on all data')
    parser.add_argument('--work-dir', type=Path, help='by default work_dirs/<name of results>')
    parser.add_argument('--data', type=Path, default=Path('data/digits'))
    parser.add_argument('--results', type=Path, default=HERE / 'results')
    parser.add_argument('--options', default='{}', help='overrides of every config, as JSON')
    parser.add_argument('--one', metavar='JOB', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    setting = SETTINGS[args.model]
    for name in ('control_method', 'equal_epochs', 'long_epochs'):
        if getattr(args, name) is None:
            setattr(args, name, getattr(setting, name))
    args.seeds = args.seeds or list(SEEDS[args.split])
    args.arms = args.arms or [*DEFAULT_CONTROLS, args.control_method]
    args.work_dir = args.work_dir or Path(f'work_dirs/digits_{named(args)}')
    if args.one:
        job = Job.named(args.one)
        assert job is not None
        train(job, args)
        return 0

    from densekd.datasets import make_digits

    teachers = check(args, parser)
    # So that whoever stops this script stops the processes that it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    args.work_dir.mkdir(parents=True, exist_ok=True)
    make_digits(args.data)
    todo = jobs(args.arms, args.seeds, args.fractions, teachers, args.teacher_seed)
    done = {job for job, _ in finished(args.work_dir)}
    left = {job: waits for job, waits in todo.items() if job not in done}
    arms = len({job.arm for job in todo})
    print(f'{len(todo)} runs of {arms} arms, of which {len(left)} are to be run', flush=True)
    failed = run_all(left, args)
    write(args)
    return 1 if failed else 0


def check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[str, int]:
    """Refuses what can't be run, and returns how many trained teachers each method has."""
    from densekd.cli.demo_steps import methods_of, teacher_keys
    from densekd.errors import did_you_mean

    task = SETTINGS[args.model].task
    methods = methods_of(args.model, task)
    if 'all' in args.arms:
        args.arms = [*CONTROLS, *map(SETTINGS[args.model].arm, methods)]
    for arm in args.arms:
        name, at, factor = arm.partition('@')
        if at and (name in CONTROLS or not is_positive(factor)):
            parser.error(f'--arms: {arm!r}: a factor above 0 follows the @, on a method.')
        if name not in (*CONTROLS, *methods):
            hint = did_you_mean(arm, [*CONTROLS, *methods])
            parser.error(f'--arms: there is no {arm!r} for {args.model}. {hint}')
    for fraction in args.fractions:
        if not 0 < fraction <= 1:
            parser.error(f'--fractions: a number above 0 and up to 1, not {fraction:g}.')
    if task != 'classification' and set(args.fractions) != {1.0}:
        parser.error(f'--fractions: the data of {args.model} has none; those of a classifier have.')
    of_method = {Job(arm, 0).method for arm in args.arms} - {*CONTROLS}
    if 'untrained-teacher' in args.arms:
        if args.control_method not in methods:
            hint = did_you_mean(args.control_method, methods)
            parser.error(
                f'--control-method: there is no {args.control_method!r} for {args.model}. {hint}'
            )
        if len(teacher_keys(methods[args.control_method])) != 1:
            parser.error(
                f'--control-method: {args.control_method!r} has not one trained teacher, which an '
                'untrained one could replace.'
            )
    return {method: len(teacher_keys(methods[method])) for method in of_method}


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
    import parts
    import table

    setting = SETTINGS[args.model]
    in_parts = setting.task == 'classification'
    found = dict(finished(args.work_dir))
    if in_parts and args.teacher_seed is None:
        # A second teacher's seed is that of no student: the teachers' mean leaves it out.
        seeds = {job.seed for job in found if job.arm != 'teacher'} or {job.seed for job in found}
        found = {job: result for job, result in found.items() if job.seed in seeds}
    runs = [
        {
            'arm': job.arm,
            'seed': job.seed,
            **({'fraction': job.fraction} if in_parts else {}),
            # A detector that finds nothing at all is given no metrics.
            **{
                label: round(setting.scale * result['metrics'].get(key, 0.0), 4)
                for label, key in setting.scores.items()
            },
            'cpu_seconds': round(result['cpu_seconds'], 1),
        }
        for job, result in found.items()
    ]
    settings = {
        'model': args.model,
        'scores': list(setting.scores),
        'split': args.split,
        'teacher_seed': args.teacher_seed,
        'equal_epochs': args.equal_epochs,
        'long_epochs': args.long_epochs,
    }
    logs = args.results / 'logs' / named(args)
    if in_parts:
        parts.write_results(runs, settings, args.results, named(args))
        for arm in {job.arm for job in found}:
            of_arm = [(asdict(job), args.work_dir / str(job)) for job in found if job.arm == arm]
            parts.write_logs(of_arm, logs / f'{arm}.jsonl')
        return
    table.write_results(runs, settings, args.results, named(args))
    if setting.task == 'segmentation':
        picture(runs, args)
    for job in found:
        table.write_log(args.work_dir / str(job), logs / f'{job}.jsonl')


if __name__ == '__main__':
    sys.exit(main())
