"""A backbone of three convolutions for detectron2, as a plug-in: `modules: [tests.objects.annotators.backbone]` registers it."""

from itertools import pairwise
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

WIDTH = 32


@BACKBONE_REGISTRY.register()
class ThreeConvolutions(Backbone):
    """Features of stride 8 and 4 · WIDTH channels, called res3 as detectron2's ResNets call theirs."""

    def __init__(self, cfg: Any, input_shape: ShapeSpec) -> None:
        super().__init__()
        widths = [input_shape.channels, WIDTH, 2 * WIDTH, 4 * WIDTH]
        layers: list[nn.Module] = []
        for inside, outside in pairwise(widths):
            convolution = nn.Conv2d(inside, outside, 3, 2, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outside), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """{name: features}"""
        return {"res3": self.body(images)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """{name: channels and stride}"""
        return {"res3": ShapeSpec(channels=4 * WIDTH, stride=8)}
