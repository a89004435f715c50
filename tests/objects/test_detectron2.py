"""detectron2's models: a small one fitted on scenes and held against the known boxes, and every form of config and weights."""

import io
import json
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from dejavu_lit.annotate import annotate
from dejavu_lit.data.scenes import SceneReader, _sprites
from dejavu_lit.data.shards import write_shards
from dejavu_lit.errors import UserError
from dejavu_lit.objects.artifact import read_part
from dejavu_lit.objects.detectron2 import PAGE, Detectron2Detector
from tests.conftest import call
from tests.data.pictures import picture

d2 = pytest.importorskip("detectron2", reason=f"detectron2 is not installed; {PAGE}")

SMALL = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  PIXEL_MEAN: [127.5, 127.5, 127.5]
  PIXEL_STD: [64.0, 64.0, 64.0]
  BACKBONE: {NAME: build_resnet_backbone, FREEZE_AT: 0}
  RESNETS: {DEPTH: 50, OUT_FEATURES: [res3], NORM: BN, STEM_OUT_CHANNELS: 32, WIDTH_PER_GROUP: 16, RES2_OUT_CHANNELS: 64}
  ANCHOR_GENERATOR: {SIZES: [[16]], ASPECT_RATIOS: [[1.0]]}
  PROPOSAL_GENERATOR: {NAME: RPN}
  RPN:
    IN_FEATURES: [res3]
    BATCH_SIZE_PER_IMAGE: 32
    PRE_NMS_TOPK_TRAIN: 64
    PRE_NMS_TOPK_TEST: 64
    POST_NMS_TOPK_TRAIN: 32
    POST_NMS_TOPK_TEST: 32
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [res3], NUM_CLASSES: CLASSES, BATCH_SIZE_PER_IMAGE: 32}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 2, FC_DIM: 256, POOLER_RESOLUTION: 4, POOLER_TYPE: ROIAlignV2}
INPUT: {MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 96, FORMAT: FORM}
DATASETS: {TEST: TESTED}
VERSION: 2
"""


def config(path: Path, classes: int = 5, form: str = "RGB", tested: str = "[]") -> Path:
    path.write_text(SMALL.replace("CLASSES", str(classes)).replace("FORM", form, 1).replace("TESTED", tested))
    return path


def build(path: Path) -> Any:
    from detectron2.config import get_cfg
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg)
