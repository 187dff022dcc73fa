"""Masks side by side, for the images where distillation changed most, to better or worse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

MODELS = ('plain', 'distilled', 'teacher')  # columns, after the image and the truth
IGNORED = 255


@torch.no_grad()
def mask_of(model: Any, batch: Any) -> np.ndarray:
    """Returns the class of each pixel (H, W) that a segmentor says of a batch of one image."""
    return model.test_step(batch)[0].pred_sem_seg.data[0].cpu().numpy()


def gained(truth: np.ndarray, plain: np.ndarray, distilled: np.ndarray) -> int:
    """Returns how many more labelled pixels (H, W) are right after distillation.

    Example:
        >>> truth = np.array([[1, 1, 0, 255]])
        >>> gained(truth, np.array([[0, 0, 0, 1]]), np.array([[1, 1, 2, 2]]))
        1
    """
    labelled = truth != IGNORED
    return int(((distilled == truth) & labelled).sum() - ((plain == truth) & labelled).sum())


def most_changed(gains: Sequence[int], count: int) -> list[int]:
    """Returns the positions of the largest changes, losses as well as gains, best gain first.

    Example:
        >>> most_changed([3, -40, 0, 25], 2)
        [3, 1]
    """
    largest = sorted(range(len(gains)), key=lambda i: -abs(gains[i]))[:count]
    return sorted(largest, key=lambda i: -gains[i])


def draw_masks(
    models: Mapping[str, Any],
    batches: Sequence[Any],
    palette: Sequence[Sequence[int]],
    path: Path,
    rows: int = 6,
) -> None:
    """Draws image, truth and the models' masks, a row an image.

    Args:
        models: The segmentors, by the names of `MODELS`.
        batches: Batches of one image, among which those that changed most are chosen.
        palette: A colour for each class.
        path: The picture.
        rows: How many images.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    from densekd.cli.demo_picture import save_figure

    truths = [batch['data_samples'][0].gt_sem_seg.data[0].numpy() for batch in batches]
    said = {name: [mask_of(models[name], batch) for batch in batches] for name in MODELS}
    gains = [gained(*each) for each in zip(truths, said['plain'], said['distilled'], strict=True)]
    chosen = most_changed(gains, rows)
    figure, axes = plt.subplots(
        len(chosen),
        2 + len(MODELS),
        figsize=(1.7 * (2 + len(MODELS)), 1.7 * len(chosen) + 0.8),
        squeeze=False,
        layout='constrained',
    )
    colours = np.full((256, 3), 128, np.uint8)  # grey where nobody says what it is
    colours[: len(palette)] = palette
    for row, i in zip(axes, chosen, strict=True):
        image = batches[i]['inputs'][0].permute(1, 2, 0).numpy()[..., ::-1]
        masks = {'truth': truths[i], **{name: said[name][i] for name in MODELS}}
        row[0].imshow(image)
        for axis, (name, mask) in zip(row[1:], masks.items(), strict=True):
            axis.imshow(colours[mask])
            axis.set_title(f'distilled ({gains[i]:+d})' if name == 'distilled' else name, size=8)
        for axis in row:
            axis.set_axis_off()
    figure.suptitle(
        f'The {len(chosen)} of {len(batches)} images that changed most, and by how many pixels',
        fontsize=9,
    )
    save_figure(figure, path)
    plt.close(figure)
