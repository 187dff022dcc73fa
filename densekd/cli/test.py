"""`densekd test CONFIG CHECKPOINT`: scores a student with the config's test data."""

from __future__ import annotations

import argparse

from densekd.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    options.add_config(parser)
    parser.add_argument('checkpoint', help="the student's checkpoint")
    options.add_running(parser)
    parser.add_argument('--out', help='write the metrics to this JSON file')
    parser.add_argument(
        '--eval',
        nargs='+',
        default=[],
        metavar='METRIC',
        help="score these (bbox, segm, mIoU, …) and not what the config's evaluator says",
    )


def run(args: argparse.Namespace) -> int:
    """Scores, and prints the metrics as a table."""
    from pathlib import Path

    from densekd.cli.show import table
    from densekd.core.checkpoint import find_checkpoint
    from densekd.engine.run import evaluate, prepare, use_metrics, write_json

    options.set_local_rank(args)
    given = options.parse_options(args.cfg_options)
    checkpoint = find_checkpoint(args.checkpoint)
    cfg = prepare(args.config, args.work_dir, given, launcher=args.launcher)
    if args.eval:
        use_metrics(cfg, args.eval)
    metrics = evaluate(cfg, checkpoint, args.trust_checkpoint)
    if not options.is_main_process():
        return 0
    if metrics:
        table(
            f'{checkpoint}',
            ('metric', 'value'),
            [(name, f'{value:.4f}') for name, value in metrics.items()],
        )
    else:
        print(f'{checkpoint}: the evaluator gave no metrics: nothing was found in any image.')
    if args.out:
        write_json(Path(args.out), {k: float(v) for k, v in metrics.items()})
        print(f'Written: {args.out}')
    print(f'Next: densekd taps {args.config}')
    return 0
