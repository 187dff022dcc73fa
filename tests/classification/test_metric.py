"""Top-1 and top-5 accuracy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from densekd.classification.metric import Accuracy
from densekd.errors import ConfigError


def score(scores: torch.Tensor, labels: list[int], **arguments: object) -> dict[str, float]:
    """Scores in two batches, as a loop does."""
    metric = Accuracy(**arguments)  # type: ignore[arg-type]
    samples = [
        {'pred_score': s, 'gt_label': torch.tensor(k)} for s, k in zip(scores, labels, strict=True)
    ]
    metric.process(None, samples[:2])
    metric.process(None, samples[2:])
    return metric.evaluate(len(samples))


def test_it_counts_the_true_class_among_the_highest() -> None:
    scores = torch.tensor([[9, 8, 7, 6, 5, 4, 3.0]] * 4)
    found = score(scores, [0, 1, 4, 5], topk=(1, 2, 5))
    assert found == {'accuracy/top1': 25.0, 'accuracy/top2': 50.0, 'accuracy/top5': 75.0}


def test_it_agrees_with_topk_of_torch() -> None:
    torch.manual_seed(0)
    scores, labels = torch.randn(200, 10), torch.randint(0, 10, (200,))
    best = scores.topk(5).indices == labels[:, None]
    found = score(scores, labels.tolist())
    assert found['accuracy/top1'] == pytest.approx(100 * float(best[:, :1].any(1).double().mean()))
    assert found['accuracy/top5'] == pytest.approx(100 * float(best.any(1).double().mean()))


def test_a_network_that_knows_nothing_is_not_right() -> None:
    """Equal scores are ranked as argmax ranks them, and what is no number is never right."""
    assert score(torch.zeros(4, 7), [0, 1, 2, 6])['accuracy/top1'] == 25.0
    found = score(torch.full((3, 7), float('nan')), [0, 1, 2])
    assert found == {'accuracy/top1': 0.0, 'accuracy/top5': 0.0}


def test_k_beyond_the_classes_says_nothing() -> None:
    assert list(score(torch.randn(3, 5), [0, 1, 2])) == ['accuracy/top1']


@pytest.mark.parametrize('topk', [(0,), (), 1, '1', (1.5,), (True,), ['5'], None])
def test_what_is_no_list_of_k_is_a_sentence(topk: Any) -> None:
    with pytest.raises(ConfigError, match='topk is a list of whole numbers above 0, not '):
        Accuracy(topk=topk)
