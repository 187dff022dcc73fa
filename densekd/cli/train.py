"""`densekd train CONFIG`: trains, plain or with distillation; what comes out is the student."""

from __future__ import annotations

import argparse

from densekd.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    options.add_config(parser)
    options.add_running(parser)
    parser.add_argument(
        '--resume', action='store_true', help='go on where the run in work-dir stopped'
    )
    parser.add_argument(
        '--amp', action='store_true', help='automatic mixed precision (needs a GPU)'
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate to the batch size'
    )
    parser.add_argument(
        '--no-check', action='store_true', help='skip the proof of the wiring before the first step'
    )


def run(args: argparse.Namespace) -> int:
    """Trains, and names the next command."""
    from densekd.engine.run import prepare
    from densekd.engine.sequences import train_config

    options.set_local_rank(args)
    given = options.parse_options(args.cfg_options)
    cfg = prepare(args.config, args.work_dir, given, args.amp, args.launcher)
    if args.auto_scale_lr:
        scaling = dict(cfg.get('auto_scale_lr') or {})
        scaling['enable'] = True
        cfg.auto_scale_lr = scaling
    last = train_config(
        cfg, resume=args.resume, preflight=not args.no_check, trust=args.trust_checkpoint
    )
    if options.is_main_process():
        best = sorted(last.parent.glob('best_*.pth'))
        print(f'\nThe student: {best[-1] if best else last}')
        print(f'Next: densekd test {args.config} {best[-1] if best else last}')
    return 0
