"""The demo's two pictures: what the models see, and how their losses fell."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

SCORE = 0.3  # detections below it are not drawn
RIGHT, WRONG, TRUTH = '#39d353', '#ff4d4d', '#ffffff'


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure whole or not at all."""
    aside = path.with_name(f'.{path.stem}.{os.getpid()}{path.suffix}')
    figure.savefig(aside, dpi=120, facecolor=figure.get_facecolor())
    os.replace(aside, path)


@torch.no_grad()
def detect(model: Any, batch: Any) -> list[tuple[np.ndarray, int, float]]:
    """Returns the boxes (x1, y1, x2, y2), labels and scores that are worth drawing, best first."""
    found = model.test_step(batch)[0].pred_instances
    found = found[found.scores >= SCORE]
    found = found[found.scores.argsort(descending=True)]
    return first_choices(
        [
            (box.cpu().numpy(), int(label), float(score))
            for box, label, score in zip(found.bboxes, found.labels, found.scores, strict=True)
        ]
    )


def first_choices(
    found: Sequence[tuple[np.ndarray, int, float]],
) -> list[tuple[np.ndarray, int, float]]:
    """Leaves out what lies on a better detection of any class: it would be drawn over it.

    Example:
        >>> box = np.array([0.0, 0.0, 10.0, 10.0])
        >>> first_choices([(box, 3, 0.9), (box + 1, 8, 0.4), (box + 20, 8, 0.4)])[1][0].tolist()
        [20.0, 20.0, 30.0, 30.0]
    """
    kept: list[tuple[np.ndarray, int, float]] = []
    for box, label, score in found:
        if all(iou(box, other) < 0.5 for other, _, _ in kept):
            kept.append((box, label, score))
    return kept


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the intersection of two boxes over their union; 0 for boxes without area."""
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    union = np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - shared
    return float(shared / union) if union > 0 else 0.0


def is_right(box: np.ndarray, label: int, truth: Sequence[tuple[np.ndarray, int]]) -> bool:
    """Whether some true box of that label overlaps by an IoU of at least 0.5.

    Example:
        >>> truth = [(np.array([0.0, 0.0, 10.0, 10.0]), 3)]
        >>> is_right(np.array([0.0, 0.0, 10.0, 6.0]), 3, truth)
        True
        >>> is_right(np.array([0.0, 0.0, 10.0, 6.0]), 4, truth)
        False
    """
    return any(true == label and iou(box, other) >= 0.5 for other, true in truth)


def draw_detections(
    models: Mapping[str, Any], batches: Sequence[Any], classes: Sequence[str], path: Path
) -> None:
    """Draws the models' detections beside the truth: a row an image, a column a model."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    names = ['truth', *models]
    # The class names of the digits are words; the numerals fit beside a box.
    short = [str(i) for i in range(10)] if len(classes) == 10 else list(classes)
    figure, axes = plt.subplots(
        len(batches),
        len(names),
        figsize=(2.3 * len(names), 2.3 * len(batches) + 0.7),
        squeeze=False,
        layout='constrained',
    )
    for row, batch in zip(axes, batches, strict=True):
        sample = batch['data_samples'][0]
        image = batch['inputs'][0].permute(1, 2, 0).numpy()[..., ::-1]
        boxes = sample.gt_instances.bboxes
        boxes = getattr(boxes, 'tensor', boxes).numpy()
        truth = list(zip(boxes, sample.gt_instances.labels.tolist(), strict=True))
        for axis, name in zip(row, names, strict=True):
            axis.imshow(image)
            axis.set_axis_off()
            if axis in axes[0]:
                axis.set_title(name)
            if name == 'truth':
                for box, label in truth:
                    _draw_box(axis, box, short[label], TRUTH)
                continue
            scale = np.array([*sample.scale_factor, *sample.scale_factor])
            for box, label, score in detect(models[name], batch):
                box = box * scale  # boxes are given in the original image
                colour = RIGHT if is_right(box, label, truth) else WRONG
                _draw_box(axis, box, f'{short[label]} {score:.2f}', colour)
    figure.suptitle(
        f'The first {len(batches)} test images: green is right, red is wrong (score ≥ {SCORE})',
        fontsize=10,
    )
    save_figure(figure, path)
    plt.close(figure)


def _draw_box(axis: Any, box: np.ndarray, text: str, colour: str) -> None:
    import matplotlib.pyplot as plt

    x1, y1, x2, y2 = box
    axis.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=colour, lw=1.2))
    axis.text(
        x1,
        y1 - 1,
        text,
        fontsize=6,
        color='black',
        va='bottom',
        clip_on=True,
        bbox=dict(facecolor=colour, edgecolor='none', pad=0.6),
    )


def read_scalars(folder: Path) -> list[dict[str, float]]:
    """Returns the training log of a run by iteration; of what was run twice, the later one."""
    entries: dict[int, dict[str, float]] = {}
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the line that an interruption cut
                continue
            if 'loss' in entry and 'step' in entry:
                entries[int(entry['step'])] = entry
    return [entries[step] for step in sorted(entries)]


def split_losses(entry: Mapping[str, float]) -> tuple[float, float]:
    """Returns the sums of the detector's own losses and of the distillation losses.

    Example:
        >>> log = {'loss': 1.5, 'loss_cls': 1.0, 'distill.loss_neck_pkd_p2': 0.5, 'lr': 0.1}
        >>> split_losses(log)
        (1.0, 0.5)
    """
    own = taught = 0.0
    for key, value in entry.items():
        if key.startswith('distill.'):
            taught += value if 'loss' in key else 0.0
        elif 'loss' in key and key != 'loss':
            own += value
    return own, taught


def draw_losses(folders: Mapping[str, Path], path: Path) -> None:
    """Draws the detectors' own losses, and beside them what distillation adds."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    for name, folder in folders.items():
        log = read_scalars(folder)
        steps = [entry['step'] for entry in log]
        losses = [split_losses(entry) for entry in log]
        left.plot(steps, [own for own, _ in losses], label=name)
        if any(taught for _, taught in losses):
            right.plot(steps, [taught for _, taught in losses], label=name)
    left.set(title="the detector's own loss", xlabel='iteration', ylabel='loss')
    right.set(title='the distillation loss, weighted', xlabel='iteration')
    for axis in (left, right):
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    save_figure(figure, path)
    plt.close(figure)
