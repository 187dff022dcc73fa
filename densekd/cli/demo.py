"""`densekd demo`: a small detector learns from a larger one, on digits brought along."""

from __future__ import annotations

import argparse
from pathlib import Path

DETECTORS = ('retinanet', 'faster-rcnn')
DEFAULT_METHOD = 'pkd'
DEFAULT_DATA = 'data/digits'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        '--detector', choices=DETECTORS, default=DETECTORS[0], help='what both models are'
    )
    parser.add_argument(
        '--method',
        default=DEFAULT_METHOD,
        help=f'how the student is taught; {DEFAULT_METHOD} by default',
    )
    parser.add_argument('--seed', type=int, default=0, help='of all three runs; 0 by default')
    parser.add_argument(
        '--out', type=Path, default=Path('demo'), help='where to write; demo by default'
    )
    parser.add_argument(
        '--data',
        type=Path,
        default=Path(DEFAULT_DATA),
        help=f'where the digits are, or are to be made; {DEFAULT_DATA} by default',
    )


def run(args: argparse.Namespace) -> int:
    """Trains what is not there yet, compares, and names the next command."""
    from densekd.cli.demo_progress import quiet, reporter
    from densekd.cli.demo_report import report
    from densekd.cli.demo_steps import find_recipe, train_all

    recipe = find_recipe(args.detector, args.method)
    args.out.mkdir(parents=True, exist_ok=True)
    log = args.out / 'demo.log'
    with reporter() as shown:
        shown.say(f'{args.detector}, {args.method}, seed {args.seed}: all output is in {log}')
        try:
            with quiet(log):
                runs = train_all(recipe, args.out, args.data, args.seed, shown)
                lines = report(runs, args.out, shown)
        except KeyboardInterrupt:
            shown.say('Interrupted. The same command goes on where this one stopped.')
            raise
    for line in lines:
        print(line)
    return 0
