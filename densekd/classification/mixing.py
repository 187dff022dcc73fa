"""Mixup and CutMix: two images in one, and labels by their shares.

Papers: Zhang, Cisse, Dauphin, Lopez-Paz: mixup: Beyond Empirical Risk Minimization. ICLR 2018.
    https://arxiv.org/abs/1710.09412
    Yun, Han, Oh, Chun, Choe, Yoo: CutMix. ICCV 2019. https://arxiv.org/abs/1905.04899
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def mixup(images: Tensor, shares: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Returns images that are each the sum of two, and the shares of their classes.

    Args:
        images: (N, C, H, W).
        shares: The share of each class, (N, K).
        alpha: Of the Beta distribution that the share of the first image is drawn from.
    """
    share = float(np.random.beta(alpha, alpha))
    other = torch.from_numpy(np.random.permutation(len(images))).to(images.device)
    return (
        share * images + (1 - share) * images[other],
        share * shares + (1 - share) * shares[other],
    )


def cutmix(images: Tensor, shares: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Returns images with a box of another in each, and the shares of their classes by area.

    Args:
        images: (N, C, H, W).
        shares: The share of each class, (N, K).
        alpha: Of the Beta distribution that the share of the first image is drawn from.
    """
    height, width = images.shape[-2:]
    side = float(np.sqrt(1 - np.random.beta(alpha, alpha)))
    top, low = _span(height, side)
    left, right = _span(width, side)
    other = torch.from_numpy(np.random.permutation(len(images))).to(images.device)
    mixed = images.clone()
    mixed[:, :, top:low, left:right] = images[other, :, top:low, left:right]
    # A box that reached over the edge is smaller than what was drawn.
    share = 1 - (low - top) * (right - left) / (height * width)
    return mixed, share * shares + (1 - share) * shares[other]


def _span(length: int, share: float) -> tuple[int, int]:
    centre, half = np.random.randint(length), int(length * share) // 2
    return max(centre - half, 0), min(centre + half, length)


def shares_of(labels: Tensor, classes: int) -> Tensor:
    """Returns labels (N,) as shares (N, K), each the whole of one class."""
    return F.one_hot(labels, classes).float()
