"""`densekd logits CONFIG --out FILE`: what the teacher says of each training image, once."""

from __future__ import annotations

import argparse

from densekd.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    options.add_config(parser)
    parser.add_argument('--out', required=True, help='the file to write')
    parser.add_argument('--teacher', help='which of several teachers, by its name')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help="let the teacher's checkpoint run code it carries",
    )


def run(args: argparse.Namespace) -> int:
    """Writes the file, and says how it is used."""
    from densekd.engine.run import prepare
    from densekd.engine.stored_logits import write_logits

    cfg = prepare(args.config, options=options.parse_options(args.cfg_options))
    views, classes = write_logits(cfg, args.out, args.teacher, args.trust_checkpoint)
    print(f'{args.out}: logits of {views} views for {classes} classes.')
    print(f"Next: in the config, teacher=dict(_delete_=True, logits='{args.out}')")
    return 0
