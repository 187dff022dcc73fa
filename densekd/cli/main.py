"""`densekd COMMAND`: finds the command, runs it, and turns an error into a sentence."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Sequence
from importlib import import_module

from densekd import __version__
from densekd.errors import DenseKDError

# Each command is a module of this package with `add_arguments(parser)` and `run(args) -> int`.
COMMANDS = {
    'demo': 'distil a small digit detector from a larger one, and compare',
    'check': 'prove that a config is wired right, without its data',
    'methods': 'list the methods, or print the card of one',
    'taps': 'list what can be tapped in a config, and the presets that fit',
    'train': 'train a config, plain or with distillation',
    'logits': "store what a config's teacher says of its training images",
    'test': "score a checkpoint with a config's test data",
}


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser with one sub-parser a command."""
    parser = argparse.ArgumentParser(
        prog='densekd', description='Distillation for dense prediction.'
    )
    parser.add_argument('--version', action='version', version=f'densekd {__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND')
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f'{summary.capitalize()}.')
        module = import_module(f'densekd.cli.{name}')
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    1 is for an error of the user's, 130 for Ctrl-C, 141 where nobody reads on, as in `| head`.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    try:
        status = int(args.run(args) or 0)
        sys.stdout.flush()  # here, where a reader that left is not a traceback
        return status
    except DenseKDError as error:
        if os.environ.get('DENSEKD_TRACEBACK'):
            raise
        print(f'densekd {args.command}: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f'\ndensekd {args.command}: interrupted.', file=sys.stderr)
        return 130
    except BrokenPipeError:
        if not _reader_left():
            raise  # another pipe than that of the output
        with open(os.devnull, 'w') as nowhere:  # for what Python prints as it ends
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 141


def _reader_left() -> bool:
    """Whether the output is a pipe that nobody reads any more."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # what went wrong is told without being asked for
    return bool(output.poll(0))


if __name__ == '__main__':
    sys.exit(main())
