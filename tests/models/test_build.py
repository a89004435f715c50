"""The initial weights of a model to train."""

import pytest
import torch

from dejavu_lit.models.build import build_model, export_config
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import write_json
from tests.models.tiny import CONFIG


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_text_tower_of_transformers_starts_from_its_own_weights_unless_its_config_says_no(
    pretrained, tmp_path, caplog
):
    transformers = pytest.importorskip("transformers")
    bert = tmp_path / "bert"
    size = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    saved = transformers.BertModel(transformers.BertConfig(vocab_size=99, max_position_embeddings=16, **size))
    saved.save_pretrained(bert)
    text = {"hf_model_name": str(bert), "hf_model_pretrained": pretrained, "hf_proj_type": "mlp"}
    spec = ModelSpec("own", {**CONFIG, "text_cfg": text})
    folder = tmp_path / "model"
    folder.mkdir()
    write_json(folder / "open_clip_config.json", {"model_cfg": spec.config, "preprocess_cfg": {}})
    with caplog.at_level("INFO"):
        embeddings = build_model(spec, folder).text.transformer.embeddings.word_embeddings.weight
    assert torch.equal(embeddings, saved.embeddings.word_embeddings.weight) == pretrained
    assert (f"starts from the weights of {bert}" in caplog.text) == pretrained


@pytest.mark.parametrize(("part", "reason"), [("text_cfg", "no entry 'text_cfg'"), ("embed_dim", "embed_dim")])
def test_an_incomplete_config_is_a_users_mistake(part, reason, tmp_path):
    spec = ModelSpec("own", {name: value for name, value in CONFIG.items() if name != part})
    export_config(spec, tmp_path)
    with pytest.raises(UserError, match=rf"cannot build model\.name=own \(.*{reason}.*\); check model\.config"):
        build_model(spec, tmp_path)
