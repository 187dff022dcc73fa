"""What an iteration of each arm costs, side by side, and which schedule the plain student is due.

    python projects/digits_benchmark/cost.py --teacher work_dirs/digits_retinanet/teacher_s0

A run's own clock counts what else the machine does. Here the arms take turns at the same batches
in one process of one thread, reading of the images included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def ratios(times: Mapping[str, Sequence[float]], plain: str = 'plain') -> dict[str, float]:
    """Returns the median, over rounds, of each arm's time over the plain student's.

    Example:
        >>> ratios({'plain': [1.0, 2.0, 1.0], 'pkd': [1.5, 2.5, 1.2]})
        {'plain': 1.0, 'pkd': 1.25}
    """
    return {
        arm: statistics.median(a / b for a, b in zip(taken, times[plain], strict=True))
        for arm, taken in times.items()
    }


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Returns the seconds of each arm's iterations, a list a round."""
    import torch

    torch.set_num_threads(1)
    from run import SETTINGS

    from densekd.cli.demo_steps import data_options, methods_of, taught_by
    from densekd.cli.options import configs_folder

    setting = SETTINGS[args.model]
    plain = configs_folder('demo') / 'digits' / f'{setting.student}.py'
    name = json.loads((args.teacher / 'result.json').read_text())['checkpoint']
    options = data_options(args.data, setting.task)
    taught = {**options, **taught_by(args.teacher / name, 0)}
    methods = methods_of(args.model, setting.task)
    steps = {'plain': stepping(plain, options)}
    for method in args.methods or methods:
        steps[method] = stepping(methods[method], taught)
    times: dict[str, list[float]] = {arm: [] for arm in steps}
    for step in steps.values():
        step()  # first iterations allocate, and count how often each tap is reached
    for _ in range(args.rounds):
        for arm, step in steps.items():
            begun = time.perf_counter()
            step()
            times[arm].append(time.perf_counter() - begun)
    return times


def built(config: Path, options: Mapping[str, Any], seed: int = 0) -> tuple[Any, Any]:
    """Returns a config's runner, its model in training mode, and the config.

    The student has the weights that it begins its training with.
    """
    from tempfile import mkdtemp

    from densekd.engine.run import prepare
    from densekd.engine.runner import DistillRunner

    cfg = prepare(config, mkdtemp(), {**options, 'log_level': 'ERROR', 'randomness.seed': seed})
    runner = DistillRunner.from_cfg(cfg)
    runner._init_model_weights()
    runner.model.train()
    return runner, cfg


def stepping(config: Path, options: Mapping[str, Any]) -> Callable[[], None]:
    """Returns a function that runs a config's next iteration, as its runner would."""
    runner, cfg = built(config, options)
    optimiser = runner.build_optim_wrapper(cfg.optim_wrapper)
    batches = iter(runner.build_dataloader(cfg.train_dataloader, seed=0))

    def step() -> None:
        runner.model.train_step(next(batches), optimiser)

    return step


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--model', default='retinanet')
    parser.add_argument(
        '--teacher', type=Path, required=True, help="a teacher's folder in work_dir"
    )
    parser.add_argument('--methods', nargs='+', help='by default all that have a config')
    parser.add_argument('--rounds', type=int, default=40)
    parser.add_argument('--data', type=Path, default=Path('data/digits'))
    parser.add_argument('--results', type=Path, default=HERE / 'results')
    args = parser.parse_args(argv)
    times = measure(args)
    median = {arm: statistics.median(taken) for arm, taken in times.items()}
    found = ratios(times)
    lines = ['| arm | ms an iteration | to plain |', '|---|---|---|']
    lines += [f'| {arm} | {1e3 * median[arm]:.0f} | {found[arm]:.2f} |' for arm in times]
    text = '\n'.join(lines) + '\n'
    print(text, end='')
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / f'{args.model}_cost.md').write_text(text)
    return 0


if __name__ == '__main__':
    sys.exit(main())
