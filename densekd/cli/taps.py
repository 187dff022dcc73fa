"""`densekd taps CONFIG`: what can be tapped, and the presets that fit."""

from __future__ import annotations

import argparse

from densekd.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    options.add_config(parser)
    parser.add_argument(
        '--all', action='store_true', help='list every module that runs, not only the named taps'
    )
    parser.add_argument('--preset', help='print the list of distillers that a preset stands for')
    parser.add_argument('--at', help='where the preset taps, if it offers a choice')


def run(args: argparse.Namespace) -> int:
    """Prints the taps of the student and, where there is one, its teacher."""
    from densekd.cli.show import table
    from densekd.engine.inspection import fitting_presets, inspect, preset_text

    found = inspect(args.config, options.parse_options(args.cfg_options))
    if args.preset:
        print(preset_text(found, args.preset, args.at))
        return 0
    for who, places in found.named.items():
        table(
            f'{who}: {type(found.models[who]).__name__}',
            ('tap', 'module', 'shape', 'stride', 'norm before it', ''),
            [row.cells(frozen=row.name in found.frozen and who == 'student') for row in places],
        )
    if args.all:
        for who in found.models:
            table(
                f'{who}: every module that runs',
                ('module', 'type', 'calls', 'shape', 'stride'),
                found.every_module(who),
            )
    fitting = fitting_presets(found)
    if fitting:
        table(
            'presets that fit',
            ('preset', 'at', 'taps'),
            fitting,
        )
        print(f'Next: densekd taps {args.config} --preset {fitting[0][0]}')
    else:
        print('Next: write a config with a teacher; densekd taps then lists the presets that fit.')
    return 0
