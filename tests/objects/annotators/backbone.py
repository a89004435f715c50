"""A backbone of three convolutions for detectron2, as a plug-in; `modules: [tests.objects.annotators.backbone]` registers it."""

from itertools import pairwise
from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

WIDTH = 32


@BACKBONE_REGISTRY.register()
class ThreeConvolutions(Backbone):
    """Features of stride 8 and 4 · WIDTH channels, named res3 as in detectron2's ResNets."""

    def __init__(self, cfg: Any, input_shape: ShapeSpec) -> None:
        super().__init__()
        widths = [input_shape.channels, WIDTH, 2 * WIDTH, 4 * WIDTH]
        layers: list[nn.Module] = []
        for channels_in, channels_out in pairwise(widths):
            convolution = nn.Conv2d(channels_in, channels_out, 3, 2, 1, bias=False)
            layers += [convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]
        self.body = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """{name: features}"""
        return {"res3": self.body(images)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """{name: channels and stride}"""
        return {"res3": ShapeSpec(channels=4 * WIDTH, stride=8)}
