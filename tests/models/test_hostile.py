"""Model readers against hostile input: an encoder or one sentence, never a crash."""

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
from dejavu_lit.objects.annotators.detectron2_weights import read_weights
from dejavu_lit.utils.errors import UserError
from tests.hostile import damaged, fuzz_settings, try_read, wrong_json
from tests.models.tiny import write_clip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 8, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    return write_clip(tmp_path_factory.mktemp("model"), config=tiny)


@fuzz_settings(12)
@given(data=st.data())
def test_folders_of_models(tmp_path, model, data):
    folder = tmp_path / "model"
    shutil.copytree(model, folder, dirs_exist_ok=True)
    file = data.draw(st.sampled_from(["open_clip_config.json", "open_clip_model.safetensors"]))
    if file.endswith(".json"):
        value = json.loads((folder / file).read_text())
        value["model_cfg"]["custom_text"] = False
        (folder / file).write_bytes(data.draw(wrong_json(value)))
    else:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(data.draw(damaged(content[:2000])) + content[2000:])
    try_read(lambda: load_encoder(f"local-dir:{folder}"))
    # The same folder as a run's model, and as a transformers folder.
    (tmp_path / "config.json").write_bytes(data.draw(wrong_json({"model_type": "clip"})))
    try_read(lambda: load_encoder(str(tmp_path)))


@pytest.mark.parametrize("content", [b"PK\x05\x06" + b"\0" * 18, b"PK\x03\x04" + b"x" * 40, b"", b"\x80\x02."])
def test_files_that_are_not_weights(tmp_path, content):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pt"):
        load_encoder(f"ViT-S-32-alt@{path}")


@fuzz_settings(60)
@given(data=st.data())
def test_files_of_weights(tmp_path, data):
    intact = {
        ".pkl": pickle.dumps({"model": {"a": np.ones(3, np.float32)}}),
        ".safetensors": save({"a": np.ones(3, np.float32)}),
    }
    for ending, content in intact.items():
        (tmp_path / f"w{ending}").write_bytes(data.draw(damaged(content)))
        try_read(lambda ending=ending: read_weights(tmp_path / f"w{ending}"))
