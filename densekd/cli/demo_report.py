"""The demo's outcome: a table, two pictures, and the student's files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densekd.cli.demo_progress import Reporter
from densekd.cli.demo_score import gap_recovered, percent, verdict
from densekd.cli.demo_steps import Run

COLUMNS = (
    'model', 'mAP', 'AP50', 'parameters', 'FLOPs', 'CPU latency', 'gap recovered', 'training',
)  # fmt: skip
PICTURED = 6  # test images in the picture


def report(runs: Sequence[Run], out: Path, shown: Reporter) -> list[str]:
    """Writes what the demo leaves behind, and returns the lines that it prints.

    Args:
        runs: The teacher's, the plain student's and the distilled student's.
        out: The folder.
        shown: What shows the progress.
    """
    from densekd.cli.demo_cost import flops, latencies, load_model, parameters, test_images
    from densekd.cli.demo_picture import draw_detections, draw_losses
    from densekd.engine.run import write_json

    teacher, plain, distilled = runs
    shown.say('measuring costs, drawing pictures')
    models = [load_model(run.config, run.checkpoint) for run in runs]
    batches = test_images(plain.config, PICTURED)
    milliseconds = latencies(models, batches[0])
    share = gap_recovered(teacher.map, plain.map, distilled.map)
    rows: list[dict[str, Any]] = [
        {
            'model': run.name,
            'mAP': run.map,
            'AP50': run.ap50,
            'parameters': parameters(model),
            'flops': flops(model, batches[0]),
            'latency_ms': latency,
            'train_seconds': run.seconds,
            'train_cpu_seconds': run.cpu_seconds,
        }
        for run, model, latency in zip(runs, models, milliseconds, strict=True)
    ]
    names = [run.name for run in runs]
    classes = plain.config.test_dataloader.dataset.metainfo['classes']
    draw_detections(dict(zip(names, models, strict=True)), batches, classes, out / 'detections.png')
    draw_losses({run.name: run.folder for run in runs}, out / 'losses.png')
    student, config = write_student(distilled, out)
    gap = share if share == share else None  # JSON knows no NaN
    write_json(out / 'demo.json', {'split': 'test', 'gap_recovered': gap, 'models': rows})
    return [
        table_text(rows, share),
        verdict(teacher.map, plain.map, distilled.map),
        f'Detections: {out / "detections.png"}   losses: {out / "losses.png"}',
        f'The student: {student}, for plain mmdet; its config: {config}',
        f'Next: densekd test {config} {student}',
    ]


def table_text(rows: Sequence[dict[str, Any]], share: float) -> str:
    """Returns the table; the share of the gap is the last row's, the distilled student's."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title='On the test split', box=box.SIMPLE_HEAD, title_justify='left')
    for i, column in enumerate(COLUMNS):
        table.add_column(column, justify='right' if i else 'left', no_wrap=True)
    for row in rows:
        table.add_row(
            row['model'],
            f'{row["mAP"]:.3f}',
            f'{row["AP50"]:.3f}',
            f'{row["parameters"] / 1e6:.2f} M',
            f'{row["flops"] / 1e9:.2f} G',
            f'{row["latency_ms"]:.1f} ms',
            percent(share) if row is rows[-1] else '',
            f'{row["train_seconds"]:.0f} s',
        )
    console = Console(width=110, highlight=False, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get().rstrip()


def write_student(run: Run, out: Path) -> tuple[Path, Path]:
    """Writes the student's weights and its plain config, each whole or not at all."""
    import torch

    from densekd.core.checkpoint import read_checkpoint
    from densekd.engine.run import student_config
    from densekd.engine.runner import put_in_place
    from densekd.wrappers.config import load_config

    read = read_checkpoint(run.checkpoint)
    weights, aside = out / 'student.pth', out / f'.student.{os.getpid()}.pth'
    torch.save({'meta': read['meta'], 'state_dict': read['state_dict']}, aside)
    put_in_place(aside, weights)
    config, aside = out / 'student.py', out / f'.student.{os.getpid()}.py'
    cfg = student_config(run.config)
    cfg.pop('work_dir', None)
    cfg.pop('launcher', None)
    title = f'The plain student of densekd demo; its weights are {weights.name}.'
    aside.write_text(f'"""{title}"""\n\n{cfg.pretty_text}')
    load_config(aside)  # what can't be read again must not be left behind
    put_in_place(aside, config)
    return weights, config
