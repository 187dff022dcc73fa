"""What follows a classifier's backbone: the pooling, and a linear layer with its loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from densekd.errors import ConfigError


class GlobalPool(nn.Module):
    """The mean over a map: the embedding.

    Example:
        >>> import torch
        >>> GlobalPool()(torch.ones(2, 5, 3, 3)).shape
        torch.Size([2, 5])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C) for a map (N, C, H, W); what is no map stays as it is."""
        return x.mean((2, 3)) if x.dim() == 4 else x


class LinearHead(nn.Module):
    """A linear layer, and cross-entropy.

    Args:
        num_classes: How many classes there are.
        in_channels: Channels of the embedding; a classifier takes its backbone's.
        label_smoothing: Share of each label that is spread over all classes.
        loss_weight: Factor on the loss.

    Raises:
        ConfigError: If the classes are no whole number from 2 on, or the share is no share.

    Example:
        >>> import torch
        >>> head = LinearHead(num_classes=3, in_channels=4)
        >>> hard = head.loss(head(torch.ones(2, 4)), torch.tensor([0, 2]))
        >>> soft = head.loss(head(torch.ones(2, 4)), torch.eye(3)[[0, 2]])
        >>> torch.allclose(hard, soft)
        True
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        label_smoothing: float = 0.0,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int):
            raise ConfigError(
                f'LinearHead: num_classes is a whole number above 1, not {num_classes!r}.'
            )
        if num_classes < 2:
            raise ConfigError(f'LinearHead: num_classes is {num_classes}; two classes are needed.')
        if not 0 <= label_smoothing < 1:
            raise ConfigError(
                f'LinearHead: label_smoothing is a share from 0 to 1, not {label_smoothing}.'
            )
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.label_smoothing = label_smoothing
        self.loss_weight = loss_weight
        self.fc = nn.Linear(in_channels, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, embedding: Tensor) -> Tensor:
        """Returns logits (N, K)."""
        return self.fc(embedding)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns the weighted cross-entropy, the mean over the batch.

        Args:
            logits: (N, K).
            target: Labels (N,), or the share of each class (N, K), as mixing makes them.
        """
        value = F.cross_entropy(logits.float(), target, label_smoothing=self.label_smoothing)
        return self.loss_weight * value
