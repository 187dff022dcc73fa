"""A classifier of labelled images on mmengine: backbone, pooling, head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from densekd.classification.heads import GlobalPool
from densekd.errors import ConfigError


class ImageClassifier(BaseModel):
    """A classifier; its checkpoint has the keys `backbone.*` and `head.*`, as mmpretrain's have.

    Args:
        backbone: The backbone; the last of its outputs is pooled.
        head: The head; without `in_channels`, it takes what the backbone gives.
        pool: What makes an embedding of the last map; the mean by default.
        data_preprocessor: What normalises, and mixes images.
        init_cfg: How the weights start.

    Example:
        >>> from densekd.classification.heads import LinearHead
        >>> from densekd.classification.networks import CifarResNet
        >>> model = ImageClassifier(CifarResNet(8), LinearHead(10, in_channels=64))
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        backbone: Any,
        head: Any,
        pool: Any = None,
        data_preprocessor: Any = None,
        init_cfg: Any = None,
    ) -> None:
        # Images are normalised by one preprocessor; a plain mean and std is meant for it.
        if isinstance(data_preprocessor, Mapping) and 'type' not in data_preprocessor:
            data_preprocessor = {'type': 'densekd.ImagePreprocessor', **data_preprocessor}
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = _built(backbone)
        self.pool = GlobalPool() if pool is None else _built(pool)
        if isinstance(head, Mapping) and head.get('in_channels') is None:
            channels = getattr(self.backbone, 'out_channels', None)
            if channels is None:
                raise ConfigError(
                    f'head: {type(self.backbone).__name__} does not say how many channels it '
                    'gives. Give head.in_channels.'
                )
            head = {**head, 'in_channels': channels}
        self.head = _built(head)
        mixed = getattr(self.data_preprocessor, 'mixes', False)
        told, own = (
            getattr(part, 'num_classes', None) for part in (self.data_preprocessor, self.head)
        )
        if mixed and None not in (told, own) and told != own:
            raise ConfigError(
                f'data_preprocessor: its num_classes={told} are the classes whose images it mixes, '
                f'and the head has {own}. Give both the same.'
            )

    def extract_feat(self, inputs: Tensor) -> Tensor:
        """Returns the embedding (N, C) of preprocessed images."""
        outputs = self.backbone(inputs)
        return self.pool(outputs[-1] if isinstance(outputs, (list, tuple)) else outputs)

    def forward(
        self,
        inputs: Tensor,
        data_samples: Sequence[BaseDataElement] | None = None,
        mode: str = 'tensor',
    ) -> Any:
        """Returns logits, losses or samples with predictions.

        Args:
            inputs: Preprocessed images, (N, 3, H, W).
            data_samples: One sample an image.
            mode: `'tensor'`, `'loss'` or `'predict'`.

        Raises:
            ConfigError: If there is no such mode.
        """
        if mode not in ('tensor', 'loss', 'predict'):
            raise ConfigError(f"mode is 'tensor', 'loss' or 'predict', not {mode!r}.")
        # Through its call: what is tapped there is seen in every mode.
        logits = self.head(self.extract_feat(inputs))
        if mode == 'tensor':
            return logits
        if mode == 'loss':
            target = targets(data_samples or [], logits.device)
            return {'loss_cls': self.head.loss(logits, target)}
        scores = logits.float().softmax(1)
        samples = data_samples or [BaseDataElement() for _ in scores]
        for sample, score in zip(samples, scores, strict=True):
            sample.set_field(score, 'pred_score')
            sample.set_field(score.argmax(), 'pred_label')
        return list(samples)


def _built(part: Any) -> nn.Module:
    return MODELS.build(part) if isinstance(part, Mapping) else part


def targets(samples: Sequence[Any], device: Any) -> Tensor:
    """Returns what a batch is to be classified as.

    Returns:
        The share of each class (N, K) where images were mixed, else labels (N,).
    """
    if samples and 'gt_score' in samples[0]:
        return torch.stack([sample.gt_score for sample in samples]).to(device)
    return torch.as_tensor([int(sample.gt_label) for sample in samples], device=device)
