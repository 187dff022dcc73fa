"""The benchmark's table over parts of the training data: a row an arm, a column a part."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import table

from densekd.cli.demo_score import percent

Rows = dict[float, list[dict[str, Any]]]
# Of a log, what the config decides anyway.
UNLOGGED = ('lr', 'base_lr', 'memory', 'epoch')


def summarise(runs: Sequence[Mapping[str, Any]], scores: Sequence[str]) -> Rows:
    """Returns the rows of each part of the data, the largest first.

    The teachers, trained on all data, are among the rows of each part.

    Args:
        runs: What each run scored, on which part of the data.
        scores: The names of the score that counts, and of a second one.
    """
    parts = sorted({run['fraction'] for run in runs}, reverse=True)
    return {
        part: table.summarise(
            [run for run in runs if run['fraction'] == part or run['arm'] == 'teacher'], scores
        )
        for part in parts
    }


def markdown(rows: Rows) -> str:
    """Returns two tables: the scores, and what they are above the plain student's, both in points.

    A score whose seeds are fewer than the most that there are says of how many it is.
    """
    parts = list(rows)
    by_arm: dict[str, dict[float, dict[str, Any]]] = {}
    for part in parts:
        for row in rows[part]:
            if row['arm'] != 'teacher' or part == parts[0]:
                by_arm.setdefault(row['arm'], {})[part] = row
    most = max(len(row['values']) for of_arm in by_arm.values() for row in of_arm.values())
    columns = [f'{100 * part:.3g}%' for part in parts]
    compared = {arm: of_arm for arm, of_arm in by_arm.items() if arm not in ('teacher', 'plain')}
    scores = [
        [
            arm,
            *(score(of_arm.get(part), most) for part in parts),
            *at_largest(of_arm.get(parts[0]), arm in compared),
        ]
        for arm, of_arm in by_arm.items()
    ]
    gains = [
        [arm, *(table.gain(of_arm[part], 2) if part in of_arm else '' for part in parts)]
        for arm, of_arm in compared.items()
    ]
    head = ['arm', *columns, 'gap recovered', 'above plain', 'CPU s a run']
    return f'{lines(head, scores)}\n{lines(["gain over plain (95%)", *columns], gains)}'


def lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table as Markdown.

    Example:
        >>> print(lines(['arm', '100%'], [['plain', '']]), end='')
        | arm | 100% |
        |---|---|
        | plain |  |
    """
    written = [f'| {" | ".join(cells)} |' for cells in (head, *rows)]
    return '\n'.join([written[0], '|' + '---|' * len(head), *written[1:], ''])


def score(row: Mapping[str, Any] | None, most: int) -> str:
    """Returns the mean and the sample deviation of a row, for people.

    Example:
        >>> score({'mean': 91.234, 'sd': 0.5, 'values': {0: 90.9, 1: 91.6}}, most=3)
        '91.23 ± 0.50 (2)'
    """
    if row is None:
        return ''
    sd = '' if row['sd'] is None else f' ± {row["sd"]:.2f}'
    seeds = len(row['values'])
    return f'{row["mean"]:.2f}{sd}' + (f' ({seeds})' if seeds < most else '')


def at_largest(row: Mapping[str, Any] | None, compared: bool) -> list[str]:
    """Returns share of the gap, seeds above plain and CPU time at the largest part of the data."""
    if row is None:
        return ['', '', '']
    share = '' if row['gap_recovered'] is None else percent(row['gap_recovered'])
    wins = f'{row["wins"]} of {len(row["values"])}' if compared else ''
    return [share, wins, f'{row["cpu_seconds"]:.0f}']


def write_results(
    runs: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], folder: Path, name: str
) -> None:
    """Writes the figures, the tables and the plot of a model: its name with json, md and png."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = summarise(runs, settings['scores'])
    content = {**settings, 'fractions': rows, 'runs': list(runs)}
    (folder / f'{name}.json').write_text(json.dumps(content, indent=1) + '\n')
    (folder / f'{name}.md').write_text(markdown(rows))
    draw(rows, folder / f'{name}.png', f'{settings["scores"][0]} on the {settings["split"]} split')


def draw(rows: Rows, path: Path, label: str) -> None:
    """Draws, for each part of the data, each arm's differences to the plain student."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    arms = [row['arm'] for row in next(iter(rows.values())) if row['arm'] != 'plain']
    arms += sorted({row['arm'] for of in rows.values() for row in of} - {*arms, 'plain'})
    size = (2.4 * len(rows) + 1.6, 0.22 * len(arms) + 1.4)
    figure, axes = plt.subplots(
        1, len(rows), figsize=size, sharey=True, squeeze=False, layout='constrained'
    )
    for axis, (part, of_part) in zip(axes[0], rows.items(), strict=True):
        plain = next((row['values'] for row in of_part if row['arm'] == 'plain'), {})
        for row in of_part:
            gains = [row['values'][seed] - plain[seed] for seed in row['values'] if seed in plain]
            if row['arm'] == 'plain' or not gains:
                continue
            place = len(arms) - 1 - arms.index(row['arm'])
            axis.scatter(gains, [place] * len(gains), s=10, alpha=0.7)
            axis.vlines(sum(gains) / len(gains), place - 0.3, place + 0.3, color='black', lw=1.5)
        axis.axvline(0, color='grey', lw=0.8)
        axis.set(title=f'{100 * part:.3g}% of the data', ylim=(-0.6, len(arms) - 0.4))
        axis.grid(axis='x', alpha=0.3)
    axes[0, 0].set_yticks(range(len(arms)), arms[::-1])
    figure.suptitle('Each point is a seed, each bar a mean', fontsize='medium')
    figure.supxlabel(f'{label}, above the plain student')
    figure.savefig(path, dpi=100)
    plt.close(figure)


def write_logs(runs: Iterable[tuple[Mapping[str, Any], Path]], path: Path) -> None:
    """Writes the training logs of some runs, a line each, whose values are in columns.

    Args:
        runs: What the line says of a run, and the run's folder.
        path: The file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w') as file:
        for said, folder in runs:
            log = {stage: columns(folder / stage) for stage in stages_of(folder)}
            content = {**said, 'log': log}
            file.write(json.dumps(content, separators=(',', ':')) + '\n')


def stages_of(run: Path) -> list[str]:
    """Returns the folders of a run's stages or rounds; `''`, its own, for a run without."""
    from densekd.engine.sequences import ROUNDS_FILE
    from densekd.engine.stages import STAGES_FILE

    for name in (STAGES_FILE, ROUNDS_FILE):
        if (run / name).is_file():
            return list(json.loads((run / name).read_text()))
    return ['']


def columns(run: Path) -> dict[str, list[float | None]]:
    """Returns the log of a run by what is logged."""
    entries = table.read_log(run)
    keys = dict.fromkeys(key for entry in entries for key in entry if key not in UNLOGGED)
    return {key: [entry.get(key) for entry in entries] for key in keys}
