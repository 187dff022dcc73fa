"""`densekd check CONFIG`: proves the wiring on generated data in the config's own format."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from densekd.cli import options

if TYPE_CHECKING:
    from densekd.engine.preflight import Report

COLUMNS = (
    'term',
    'student',
    'teacher',
    'shapes',
    'stride',
    'connector',
    'value',
    '/ task',
    'gradient',
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    options.add_config(parser)
    parser.add_argument(
        '--without-weights',
        action='store_true',
        help="leave the teachers' checkpoints out: check the wiring before you have them",
    )
    parser.add_argument(
        '--small', action='store_true', help='one 192x320 image instead of a full batch'
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help="let teachers' checkpoints run code they carry",
    )


def run(args: argparse.Namespace) -> int:
    """Checks, and prints what each term compares and sends to the student."""
    from densekd.engine.run import is_distillation, prepare, trusted
    from densekd.engine.sequences import of_round, unrolled

    cfg = prepare(args.config, options=options.parse_options(args.cfg_options))
    if args.without_weights and is_distillation(cfg):
        cfg.model.teacher = without_weights(cfg.model.teacher)
    cfg = trusted(cfg, args.trust_checkpoint)
    if cfg.get('rounds') is not None:
        for name, one in unrolled(cfg):
            print(f'Round {name!r}')
            with of_round(name):
                check_stages(one, full_size=not args.small)
    else:
        check_stages(cfg, full_size=not args.small)
    print(f'Next: densekd train {args.config}')
    return 0


def check_stages(cfg: Any, full_size: bool) -> None:
    """Checks each stage of a config, or the whole of one without, and prints what it found."""
    from densekd.engine.preflight import check
    from densekd.engine.stages import of_stage, staged

    for name, stage, handed in staged(cfg):
        if name:
            print(f'Stage {name!r}')
        with of_stage(name):
            show(check(stage, full_size=full_size, handed=handed))


def without_weights(teacher: object) -> object:
    """Returns a teacher's config, or a list of them, without checkpoints."""
    if isinstance(teacher, (list, tuple)):
        return [without_weights(t) for t in teacher]
    if not isinstance(teacher, dict) or teacher.get('logits'):
        return teacher
    return {**{k: v for k, v in teacher.items() if k != 'checkpoint'}, 'untrained': True}


def show(report: Report) -> None:
    """Prints a report as tables."""
    from densekd.cli.show import table

    size = 'x'.join(map(str, report.batch))
    if report.terms:
        total = sum(v for k, v in report.own.items() if 'loss' in k)
        table(
            f'{report.model}, one step on a generated batch {size}',
            COLUMNS,
            [
                (
                    t.key, t.student, t.teacher, t.shapes, t.strides, t.connector,
                    f'{t.value:.3g}', f'{t.value / total:.2g}' if total else '-',
                    f'{t.gradient:.2g}',
                )
                for t in report.terms
            ],
            right=(6, 7, 8),
        )  # fmt: skip
        share = report.added / max(report.parameters, 1)
        print(
            f'Distillers add {report.added:,} parameters while training ({share:.1%} of the '
            f"student's {report.parameters:,}); none of them is in the student's checkpoint."
        )
    for source in report.absent:
        print(f'Checked without weights: {source} is not here; training will fetch it.')
    own = ', '.join(
        f'{name.removeprefix("student.")} {value:.3g}' for name, value in report.own.items()
    )
    own = f"The student's own terms: {own}." if own else 'The task is no part of it.'
    print(f'{own} The step took {report.seconds:.1f} s.')
    resting = [t.key for t in report.terms if t.value == 0 and t.gradient == 0]
    if resting:
        print(
            f'{", ".join(resting)}: 0 on this batch, which may be right: the loss leaves a student '
            'alone that is better than the bar it sets, or its weight is 0.'
        )
    print(
        'Every other term is finite and reaches the student with a gradient.'
        if resting
        else 'Every term is finite and reaches the student with a gradient.'
        if report.terms
        else 'OK.'
    )
