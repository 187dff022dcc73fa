"""From the benchmark's runs to its figures, table, plot and logs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from arms import CONTROLS

from densekd.cli.demo_score import gap_recovered, percent


def summarise(
    runs: Sequence[Mapping[str, Any]], scores: Sequence[str] = ('mAP', 'AP50')
) -> list[dict[str, Any]]:
    """Returns a row an arm: mean, spread, values by seed, wins, and the share of the gap recovered.

    The share is that of the means, over the arm's own seeds: a mean of shares would be ruled by the
    seed whose gap is the smallest. An arm wins at a seed where it is above the plain student of
    that seed; its gain is the mean of these differences, with half the width of its 95% interval
    (Student's t).

    Args:
        runs: What each run scored.
        scores: The names of the score that counts, and of a second one.

    Example:
        >>> runs = [
        ...     dict(arm=arm, seed=seed, mAP=value, AP50=value, cpu_seconds=1.0)
        ...     for arm, values in {
        ...         'teacher': (0.5, 0.5),
        ...         'plain': (0.2, 0.3),
        ...         'pkd': (0.4, 0.4),
        ...     }.items()
        ...     for seed, value in enumerate(values)
        ... ]
        >>> row = summarise(runs)[-1]
        >>> row['arm'], row['mean'], round(row['gap_recovered'], 2), row['wins']
        ('pkd', 0.4, 0.6, 2)
    """
    score, second = scores
    by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        by_arm.setdefault(run['arm'], {})[run['seed']] = run
    means = {arm: mean_of(of_arm, score) for arm, of_arm in by_arm.items()}
    rows = []
    for arm in sorted(by_arm, key=lambda arm: _place(arm, means[arm])):
        of_arm = by_arm[arm]
        values = {seed: of_arm[seed][score] for seed in sorted(of_arm)}
        plain = {seed: run[score] for seed, run in by_arm.get('plain', {}).items()}
        differences = [values[s] - plain[s] for s in values if s in plain and arm != 'plain']
        share = math.nan
        if {'teacher', 'plain'} <= means.keys() and arm not in ('teacher', 'plain'):
            # An arm of fewer seeds is compared with the teacher and the student of these.
            ends = (mean_of(by_arm[end], score, of_arm) for end in ('teacher', 'plain'))
            share = gap_recovered(*ends, means[arm])
        rows.append(
            {
                'arm': arm,
                'mean': means[arm],
                'sd': statistics.stdev(values.values()) if len(values) > 1 else None,
                second: statistics.fmean(run[second] for run in of_arm.values()),
                'values': values,
                'wins': sum(difference > 0 for difference in differences),
                'gain': statistics.fmean(differences) if differences else None,
                'gain_interval': half_width(differences),
                'gap_recovered': None if math.isnan(share) else share,
                'cpu_seconds': statistics.fmean(run['cpu_seconds'] for run in of_arm.values()),
            }
        )
    return rows


def mean_of(
    of_arm: Mapping[int, Mapping[str, Any]], score: str, seeds: Collection[int] | None = None
) -> float:
    """Returns an arm's mean score over seeds, or over all of its own if it lacks one of these.

    Example:
        >>> of_arm = {0: {'mAP': 0.2}, 1: {'mAP': 0.4}}
        >>> mean_of(of_arm, 'mAP', [1]), round(mean_of(of_arm, 'mAP', [1, 7]), 2)
        (0.4, 0.3)
    """
    kept = seeds if seeds is not None and set(seeds) <= of_arm.keys() else of_arm
    return statistics.fmean(of_arm[seed][score] for seed in kept)


def _place(arm: str, mean: float) -> tuple[int, float]:
    # The controls come first; methods follow, the best one last.
    return (CONTROLS.index(arm), 0.0) if arm in CONTROLS else (len(CONTROLS), mean)


def half_width(differences: Sequence[float]) -> float | None:
    """Returns half the width of the 95% interval of a mean, or None for fewer than two values.

    Example:
        >>> round(half_width([0.1, 0.2, 0.3]), 3)  # 4.303 * 0.1 / sqrt(3)
        0.248
    """
    if len(differences) < 2:
        return None
    from scipy.stats import t

    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    return float(t.ppf(0.975, len(differences) - 1)) * spread


def markdown(rows: Sequence[Mapping[str, Any]], scores: Sequence[str] = ('mAP', 'AP50')) -> str:
    """Returns the table as Markdown."""
    seeds = sorted({seed for row in rows for seed in row['values']})
    head = ['arm', scores[0], 'sd', *(f'seed {s}' for s in seeds), scores[1], 'gap recovered']
    head += ['above plain', 'gain over plain (95%)', 'CPU s a run']
    lines = [' | '.join(['', *head, '']).strip(), '|' + '---|' * len(head)]
    for row in rows:
        share = row['gap_recovered']
        values = [f'{row["values"][s]:.3f}' if s in row['values'] else '' for s in seeds]
        compared = row['arm'] not in ('teacher', 'plain')
        cells = [
            row['arm'],
            f'{row["mean"]:.3f}',
            '' if row['sd'] is None else f'{row["sd"]:.3f}',
            *values,
            f'{row[scores[1]]:.3f}',
            '' if share is None else percent(share),
            f'{row["wins"]} of {len(row["values"])}' if compared else '',
            gain(row) if compared else '',
            f'{row["cpu_seconds"]:.0f}',
        ]
        lines.append(' | '.join(['', *cells, '']).strip())
    return '\n'.join(lines) + '\n'


def gain(row: Mapping[str, Any], digits: int = 3) -> str:
    """Returns the mean difference to the plain student and its interval, for people.

    Example:
        >>> gain({'gain': 0.1234, 'gain_interval': 0.02}), gain({'gain': None})
        ('+0.123 ± 0.020', '')
    """
    if row['gain'] is None:
        return ''
    width = row['gain_interval']
    return f'{row["gain"]:+.{digits}f}' + ('' if width is None else f' ± {width:.{digits}f}')


def write_results(
    runs: Sequence[Mapping[str, Any]], settings: Mapping[str, Any], folder: Path, name: str
) -> None:
    """Writes the figures, the table and the plot of a model: its name with json, md and png."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = summarise(runs, settings['scores'])
    content = {**settings, 'arms': rows, 'runs': list(runs)}
    (folder / f'{name}.json').write_text(json.dumps(content, indent=1) + '\n')
    (folder / f'{name}.md').write_text(markdown(rows, settings['scores']))
    draw(rows, folder / f'{name}.png', f'{settings["scores"][0]} on the {settings["split"]} split')


def draw(rows: Sequence[Mapping[str, Any]], path: Path, label: str) -> None:
    """Draws each run as a point and each arm's mean as a line."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    width = max(7.0, 1.1 * len(rows) + 1)
    figure, axis = plt.subplots(figsize=(width, 3.6), layout='constrained')
    for i, row in enumerate(rows):
        values = list(row['values'].values())
        axis.scatter([i] * len(values), values, s=18, alpha=0.7)
        axis.hlines(row['mean'], i - 0.25, i + 0.25, color='black', lw=1.5)
    # Broken at hyphens: the longest names are wider than their columns.
    names = [row['arm'].replace('-', '-\n') for row in rows]
    axis.set_xticks(range(len(rows)), names)
    axis.set_ylabel(label)
    axis.set_title('Each point is a seed, each bar a mean')
    axis.grid(axis='y', alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_log(run: Path, path: Path) -> None:
    """Writes the training log of a run without what a machine's speed decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'w') as file:
        for entry in read_log(run):
            file.write(json.dumps(entry) + '\n')


def read_log(run: Path) -> list[dict[str, float]]:
    """Returns the training log of a run, rounded, without what a machine's speed decides."""
    from densekd.cli.demo_picture import read_scalars

    return [
        {
            key: float(f'{value:.5g}') if isinstance(value, float) else value
            for key, value in entry.items()
            if 'time' not in key and key != 'iter'
        }
        for entry in read_scalars(run)
    ]
