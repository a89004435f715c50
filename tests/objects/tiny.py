"""A small torchvision Faster R-CNN for scenes, trained on images whose boxes are known exactly."""

import io
import random

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from dejavu_lit.data.readers.scenes import SceneReader, _sprites

SIZE = 64  # pixels of a scene; its objects have 16


def detector(num_classes: int, width: int = 32, hidden: int = 256) -> FasterRCNN:
    """Few channels and one anchor per position: a scene takes milliseconds."""

    def block(channels_in: int, channels_out: int) -> list[nn.Module]:
        return [
            nn.Conv2d(channels_in, channels_out, 3, 2, 1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
        ]

    body = nn.Sequential(*block(3, width), *block(width, 2 * width), *block(2 * width, 4 * width))
    body.out_channels = 4 * width
    return FasterRCNN(
        body,
        min_size=SIZE,
        max_size=SIZE,
        rpn_anchor_generator=AnchorGenerator(((16,),), ((1.0,),)),
        rpn_pre_nms_top_n_train=64,
        rpn_pre_nms_top_n_test=64,
        rpn_post_nms_top_n_train=32,
        rpn_post_nms_top_n_test=32,
        rpn_batch_size_per_image=32,
        box_batch_size_per_image=32,
        box_roi_pool=MultiScaleRoIAlign(["0"], 4, 2),
        box_head=TwoMLPHead(4 * width * 16, hidden),
        box_predictor=FastRCNNPredictor(hidden, num_classes),
    )


def fit(model: FasterRCNN, images: int, steps: int, batch: int = 16, seed: int = 100) -> None:
    """Train with a one-cycle schedule on scenes of a different seed than the data's."""
    reader, names = SceneReader(images, seed), {name: n for n, name in enumerate(_sprites()[0], 1)}
    examples = [example(*reader.read(key), names) for key in reader.keys()]
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    draw = random.Random(seed)
    model.train()
    for _ in range(steps):
        chosen = draw.sample(examples, batch)
        losses = model([image for image, _ in chosen], [target for _, target in chosen])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        schedule.step()
    model.eval()


def example(pair, annotation, names):
    """A scene as torchvision's models expect it in training."""
    pixels = np.asarray(Image.open(io.BytesIO(pair.image)).convert("RGB"))
    boxes = torch.tensor(annotation.boxes)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([names[label] for label in annotation.labels])
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255, {"boxes": boxes, "labels": labels}
