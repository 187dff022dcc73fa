"""How strong each method's gradient is beside the task's: what its weight is chosen by.

    python projects/digits_benchmark/shares.py --plain work_dirs/digits_retinanet_val/plain_s100 \
        --teacher work_dirs/digits_retinanet_val/teacher_s100

The norm of each method's gradient on backbone and neck, over that of the task's losses, is taken
over the same batches twice: with the weights that a student begins with, and with those that the
plain training ended with. A ratio far below 1 teaches nothing, one far above drowns the task.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def norm(loss: Any, parameters: Sequence[Any]) -> float:
    """Returns the norm of a loss's gradient.

    Example:
        >>> import torch
        >>> x = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> norm(x.square().sum() / 2, [x])
        5.0
    """
    import torch

    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return math.sqrt(sum(float(g.double().square().sum()) for g in found if g is not None))


def shares(config: Path, options: dict[str, Any], weights: Path | None, batches: int) -> float:
    """Returns the median, over batches, of a config's distillation gradient over the task's.

    Args:
        config: A distillation config.
        options: Its overrides: data, teacher.
        weights: The student's checkpoint; None for the weights that it begins with.
        batches: How many.
    """
    import torch
    from cost import built

    from densekd.core.checkpoint import read_checkpoint, weights_in

    runner, cfg = built(config, options, seed=100)
    model = runner.model
    if weights is not None:
        model.student.load_state_dict(weights_in(read_checkpoint(weights)))
    # The heads are left out: few methods reach them, and they are where the task pulls hardest.
    read = [
        p
        for name, p in model.student.named_parameters()
        if p.requires_grad and name.startswith(('backbone.', 'neck.'))
    ]
    found = []
    loader = runner.build_dataloader(cfg.train_dataloader, seed=0)
    for _, data in zip(range(batches), loader, strict=False):
        torch.manual_seed(0)  # of the samplers: each method sees the same regions
        terms = model(**model.data_preprocessor(data, True), mode='loss')
        total: dict[bool, Any] = {True: 0.0, False: 0.0}
        for name, value in terms.items():
            if 'loss' in name:
                one = value.mean() if isinstance(value, torch.Tensor) else sum(value)
                total[name.startswith('distill.')] += one
        found.append(norm(total[True], read) / norm(total[False], read))
    return statistics.median(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
    parser.add_argument('--model', default='retinanet')
    parser.add_argument('--plain', type=Path, required=True, help="a plain run's folder")
    parser.add_argument('--teacher', type=Path, required=True, help="a teacher's folder")
    parser.add_argument('--methods', nargs='+', help='by default all that have a config')
    parser.add_argument('--batches', type=int, default=8)
    parser.add_argument('--data', type=Path, default=Path('data/digits'))
    parser.add_argument('--results', type=Path, default=HERE / 'results')
    args = parser.parse_args(argv)

    import torch

    torch.set_num_threads(1)
    from run import SETTINGS

    from densekd.cli.demo_steps import data_options, methods_of, taught_by

    task = SETTINGS[args.model].task
    configs = methods_of(args.model, task)
    teacher = args.teacher / json.loads((args.teacher / 'result.json').read_text())['checkpoint']
    plain = args.plain / json.loads((args.plain / 'result.json').read_text())['checkpoint']
    options = {**data_options(args.data, task), **taught_by(teacher, 0)}
    lines = ['| method | at the start | at the end |', '|---|---|---|']
    for method in args.methods or configs:
        begun, ended = (
            shares(configs[method], options, weights, args.batches) for weights in (None, plain)
        )
        lines.append(f'| {method} | {begun:.3g} | {ended:.3g} |')
        print(lines[-1], flush=True)
    args.results.mkdir(parents=True, exist_ok=True)
    (args.results / f'{args.model}_shares.md').write_text('\n'.join(lines) + '\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
