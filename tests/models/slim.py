"""torchvision's networks at an eighth of their width: their own code and structure, without the weights' size."""

from __future__ import annotations

import torch
import torchvision
from torch import nn

CLASSES = 10
# Name: side of the smallest usual images that it takes here.
SIDES = {
    "alexnet": 64,
    "vgg11": 32,
    "vgg11_bn": 32,
    "vgg16": 32,
    "resnet18": 32,
    "resnet34": 32,
    "resnet50": 32,
    "mobilenet_v2": 32,
    "squeezenet1_1": 32,
}


def torchvision_network(name: str) -> nn.Module:
    """A network of torchvision with random weights, for images of 3 channels and ten classes."""
    with torch.device("meta"):
        model = getattr(torchvision.models, name)(num_classes=CLASSES)
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            narrow = _narrow(module, 8)
            if narrow is not None:
                setattr(parent, child, narrow)
    return model


def _narrow(module: nn.Module, by: int) -> nn.Module | None:
    if isinstance(module, nn.Conv2d):
        inputs = module.in_channels if module.in_channels == 3 else module.in_channels // by
        outputs = module.out_channels if module.out_channels == CLASSES else module.out_channels // by
        rest = module.kernel_size, module.stride, module.padding, module.dilation
        groups = max(1, module.groups // by)
        return nn.Conv2d(inputs, outputs, *rest, groups=groups, bias=module.bias is not None)
    if isinstance(module, nn.BatchNorm2d):
        return nn.BatchNorm2d(module.num_features // by)
    if isinstance(module, nn.Linear):
        outputs = module.out_features if module.out_features == CLASSES else module.out_features // by
        return nn.Linear(module.in_features // by, outputs)
    return None
