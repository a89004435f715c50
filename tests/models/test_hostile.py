"""Readers of models against hostile input: an encoder or one sentence, never a crash."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from dejavu_lit.models.zoo import load_encoder
from dejavu_lit.objects.annotators.detectron2 import read_weights
from dejavu_lit.utils.errors import UserError
from tests.hostile import damaged, refused, tried, wrong_json
from tests.models.tiny import write_clip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 8, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    return write_clip(tmp_path_factory.mktemp("model"), config=tiny)


@tried(12)
@given(data=st.data())
def test_folders_of_models(tmp_path, model, data):
    folder = tmp_path / "model"
    shutil.copytree(model, folder, dirs_exist_ok=True)
    which = data.draw(st.sampled_from(["open_clip_config.json", "open_clip_model.safetensors"]))
    if which.endswith(".json"):
        value = json.loads((folder / which).read_text())
        value["model_cfg"]["custom_text"] = False
        (folder / which).write_bytes(data.draw(wrong_json(value)))
    else:
        content = (folder / which).read_bytes()
        (folder / which).write_bytes(data.draw(damaged(content[:2000])) + content[2000:])
    refused(lambda: load_encoder(f"local-dir:{folder}"))
    # The same as a run's, and as a folder of transformers.
    (tmp_path / "config.json").write_bytes(data.draw(wrong_json({"model_type": "clip"})))
    refused(lambda: load_encoder(str(tmp_path)))


@pytest.mark.parametrize("content", [b"PK\x05\x06" + b"\0" * 18, b"PK\x03\x04" + b"x" * 40, b"", b"\x80\x02."])
def test_files_of_weights_that_are_none(tmp_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pt"):
        load_encoder(f"ViT-S-32-alt@{path}")


@tried(60)
@given(data=st.data())
def test_files_of_weights(tmp_path, data):
    whole = {
        ".pkl": pickle.dumps({"model": {"a": np.ones(3, np.float32)}}),
        ".safetensors": save({"a": np.ones(3, np.float32)}),
    }
    for ending, content in whole.items():
        (tmp_path / f"w{ending}").write_bytes(data.draw(damaged(content)))
        refused(lambda ending=ending: read_weights(tmp_path / f"w{ending}"))
