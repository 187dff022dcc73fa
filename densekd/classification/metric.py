"""How many images are classified rightly: top-1 and top-5 accuracy in percent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric

from densekd.errors import ConfigError


class Accuracy(BaseMetric):
    """The share of images whose true class is among the k with the highest scores.

    A k that is not below the number of classes says nothing and is left out.

    Args:
        topk: The k.
        collect_device: Where processes' results meet, `'cpu'` or `'gpu'`.
        prefix: What stands before the names: `accuracy/top1`.

    Raises:
        ConfigError: If no k is given, or one is no whole number above 0.
    """

    default_prefix = 'accuracy'

    def __init__(
        self,
        topk: Sequence[int] = (1, 5),
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        whole = isinstance(topk, Sequence) and all(
            isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in topk
        )
        if not whole or not topk:
            raise ConfigError(f'Accuracy: topk is a list of whole numbers above 0, not {topk!r}.')
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Notes the rank of each image's true class, and how many classes there are."""
        for sample in data_samples:
            scores = torch.as_tensor(sample['pred_score']).flatten().cpu()
            label = int(sample['gt_label'])
            true = scores[label]
            # Of equal scores the first counts as the highest, as argmax has it; a network that
            # knows nothing must not come out right, and one that gives no numbers neither.
            above = (scores > true).sum() + (scores[:label] == true).sum()
            rank = len(scores) if scores.isnan().any() else int(above)
            self.results.append((rank, len(scores)))

    def compute_metrics(self, results: list[tuple[int, int]]) -> dict[str, float]:
        """Returns the accuracies in percent."""
        ranks = torch.tensor([rank for rank, _ in results])
        classes = min((count for _, count in results), default=0)
        told = [k for k in self.topk if k < classes]
        return {f'top{k}': 100.0 * float((ranks < k).double().mean()) for k in told}
