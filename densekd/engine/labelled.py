"""Registers what reads and scores labelled images; imported by the registries when first asked."""

from densekd.classification import transforms
from densekd.classification.datasets import CIFAR10, CIFAR100, ImageFolder
from densekd.classification.metric import Accuracy
from densekd.engine.registry import DATASETS, METRICS, TRANSFORMS

for dataset in (CIFAR10, CIFAR100, ImageFolder):
    DATASETS.register_module(module=dataset)
for transform in (
    transforms.LoadImage,
    transforms.PadCrop,
    transforms.Flip,
    transforms.RandomResizedCrop,
    transforms.ResizeEdge,
    transforms.CenterCrop,
    transforms.PackImage,
):
    TRANSFORMS.register_module(module=transform)
METRICS.register_module(module=Accuracy)
