"""The initial weights of a model to train."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from dejavu_lit.models.build import build_model, export_config
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.utils.errors import UserError
from dejavu_lit.utils.io import write_json
from tests.models.tiny import CONFIG


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_text_tower_of_transformers_starts_from_its_own_weights_unless_its_config_says_no(
    prefix, pretrained, tmp_path, caplog
):
    """Weights that transformers does not find, as those of DDP, would be drawn at random without a word."""
    transformers = pytest.importorskip("transformers")
    bert = tmp_path / "bert"
    size = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    saved = transformers.BertModel(transformers.BertConfig(vocab_size=49408, max_position_embeddings=16, **size))
    saved.save_pretrained(bert)
    state = {f"{prefix}{name}": value for name, value in load_file(bert / "model.safetensors").items()}
    save_file(state, bert / "model.safetensors", {"format": "pt"})
    text = {"context_length": 16, "hf_model_name": str(bert), "hf_model_pretrained": pretrained, "hf_proj_type": "mlp"}
    spec = ModelSpec("own", {**CONFIG, "text_cfg": text})
    folder = tmp_path / "model"
    folder.mkdir()
    write_json(folder / "open_clip_config.json", {"model_cfg": spec.config, "preprocess_cfg": {}})
    if prefix and pretrained:
        with pytest.raises(UserError, match=rf"the weights of the text tower {bert} lack or do not fit 'embeddings\."):
            build_model(spec, folder)
        return
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


@pytest.mark.parametrize(
    ("part", "values", "reason"),
    [
        ("vision_cfg", {"image_size": 0}, r"cannot encode an image and a caption \(.*0 x 0"),
        ("vision_cfg", {"image_size": -8}, r"cannot encode an image and a caption \(.*-8"),
        ("vision_cfg", {"patch_size": 100}, r"cannot encode an image and a caption \(.*Kernel size"),
        ("vision_cfg", {"output_tokens": True}, r"cannot encode an image and a caption \("),
        ("text_cfg", {"vocab_size": 100}, r"cannot encode an image and a caption \(.*out of range"),
        ("text_cfg", {"context_length": 0}, r"cannot encode an image and a caption \(.*context length"),
        ("text_cfg", {"heads": 3, "width": 16}, r"cannot build model\.name=own \(.*divisible"),
    ],
)
def test_a_config_that_cannot_encode_is_a_users_mistake(part, values, reason, tmp_path):
    spec = ModelSpec("own", {**CONFIG, part: {**CONFIG[part], **values}})
    export_config(spec, tmp_path)
    with pytest.raises(UserError, match=rf"{reason}.*\); check model\.config$"):
        build_model(spec, tmp_path)


@pytest.mark.parametrize(
    ("config", "shapes"),
    [
        ({"embed_dim": 0}, r"\(0,\) and \(64,\)"),
        ({"vision_cfg": {**CONFIG["vision_cfg"], "pool_type": "none"}}, r"\(17, 64\) and \(64,\)"),
        (
            {"vision_cfg": {**CONFIG["vision_cfg"], "width": 64, "attentional_pool": "parallel"}},
            r"\(1, 64\) and \(64,\)",
        ),
        (
            {"custom_text": True, "embed_dim": 32, "text_cfg": {**CONFIG["text_cfg"], "proj_type": "none"}},
            r"\(32,\) and \(64,\)",
        ),
    ],
)
def test_embeddings_that_are_not_vectors_of_one_length_are_refused(config, shapes, tmp_path):
    spec = ModelSpec("own", {**CONFIG, **config})
    export_config(spec, tmp_path)
    with pytest.raises(UserError, match=f"its embeddings have the shapes {shapes}; both must be"):
        build_model(spec, tmp_path)


@pytest.mark.parametrize("tower", [5, None, "ViT", [1]])
@pytest.mark.parametrize("part", ["text_cfg", "vision_cfg"])
def test_a_tower_that_is_no_mapping_is_refused(part, tower):
    with pytest.raises(UserError, match=rf"^model\.config\.{part}=.* must be a mapping"):
        ModelSpec("own", {**CONFIG, part: tower})
