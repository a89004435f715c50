"""A model folder's tokenizer loads by open_clip's options alone; Python files in the folder never run."""

import json
import os
import re
from pathlib import Path

import open_clip
import pytest

from dejavu_lit.models.build import build_model
from dejavu_lit.models.settings import ModelSpec
from dejavu_lit.models.tokenizer import OPTIONS, load_tokenizer, save_tokenizer
from dejavu_lit.models.zoo import load_encoder
from dejavu_lit.utils.errors import UserError
from tests.conftest import ROOT
from tests.models.tiny import CONFIG, write_clip


def with_own_tokenizer(folder: Path, **options: object) -> Path:
    """A model folder whose tokenizer is a class of a Python file beside it, which writes ``ran`` when it is imported."""
    write_clip(folder)
    (folder / "evil.py").write_text(
        f"open({str(folder / 'ran')!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizer\n"
        "class Evil(PreTrainedTokenizer): pass\n"
    )
    own = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": "x", "tokenizer_kwargs": options}
    path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}], ids=["asked", "trusted by itself"])
def test_a_tokenizer_with_its_own_code_is_refused(options, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = with_own_tokenizer(tmp_path / "model", **options)
    with pytest.raises(UserError):
        load_encoder(str(folder))
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "option", [{"trust_remote_code": False}, {"vocab_file": "/etc/passwd"}, {"pad_token": {"a": 1}}]
)
def test_options_outside_of_the_list_are_refused(option, tmp_path):
    name = next(iter(option))
    with pytest.raises(UserError, match=rf"sets tokenizer_kwargs\.{name}, which may not be set"):
        load_tokenizer(f"local-dir:{with_own_tokenizer(tmp_path / 'model', **option)}")


def test_every_architecture_of_open_clip_keeps_within_the_list():
    options = [
        open_clip.get_model_config(name)["text_cfg"].get("tokenizer_kwargs") or {} for name in open_clip.list_models()
    ]
    assert any(options)
    assert {name for option in options for name in option} <= set(OPTIONS)


def text_tower(folder: Path, **config: object) -> dict:
    """A model config with a text tower of transformers whose code, if it is run, writes ``ran``."""
    folder.mkdir()
    (folder / "evil.py").write_text(
        f"open({str(folder / 'ran')!r}, 'w').close()\nfrom transformers import BertConfig\nclass Evil(BertConfig): pass\n"
    )
    (folder / "config.json").write_text(json.dumps(config))
    text = {"hf_model_name": str(folder), "hf_model_pretrained": False, "hf_proj_type": "mlp", "context_length": 32}
    return {**CONFIG, "text_cfg": text}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}}, "cannot be loaded"),
        ({"model_type": "gpt2"}, "is of the kind 'gpt2', which open_clip cannot use"),
    ],
)
def test_a_text_tower_with_its_own_code_is_refused(config, reason, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(
        "builtins.input", lambda *_: "y"
    )  # the answer to transformers' question whether to run the code
    model = write_clip(tmp_path / "model")
    content = json.loads((model / "open_clip_config.json").read_text())
    content["model_cfg"] = text_tower(tmp_path / "tower", **config)
    (model / "open_clip_config.json").write_text(json.dumps(content))
    for load in (lambda: load_encoder(str(model)), lambda: build_model(ModelSpec("own", content["model_cfg"]), model)):
        with pytest.raises(UserError, match=rf"text_cfg\.hf_model_name=.*tower {reason}"):
            load()
    assert not (tmp_path / "tower/ran").exists()


def test_a_tokenizer_is_saved_without_changing_a_file_that_another_rank_reads(tmp_path):
    transformers = pytest.importorskip("transformers")
    source, folder = tmp_path / "bert", tmp_path / "model"
    source.mkdir()
    folder.mkdir()
    (source / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc"]))
    transformers.BertTokenizer(str(source / "vocab.txt")).save_pretrained(source)
    save_tokenizer(str(source), folder)
    saved = sorted(folder.iterdir())
    assert folder / "tokenizer_config.json" in saved
    with open(folder / "tokenizer_config.json") as reader:
        save_tokenizer(str(source), folder)
        assert os.fstat(reader.fileno()).st_nlink == 0  # it was replaced
    assert sorted(folder.iterdir()) == saved


LOADER = re.compile(
    r"(?:\.from_pretrained|SentenceTransformer|open_clip\.get_tokenizer|HFTokenizer)(\((?:[^()]|\([^()]*\))*\))"
)


def test_every_loader_says_that_code_is_not_trusted():
    sources = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "dejavu_lit").rglob("*.py"))]
    calls = [(call, source) for source in sources for call in LOADER.findall(source)]
    assert len(calls) >= 5
    assert sum(source.count("open_clip.create_model(") for source in sources) == 1  # in open_clip_encoder.py
    for call, source in calls:
        assert "trust_remote_code" in call or ("**local" in call and '"trust_remote_code": False}' in source), call


def test_a_folder_of_a_text_tower_without_its_tokenizer_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="its tokenizer has no words"):
        save_tokenizer(str(tmp_path), tmp_path / "model")
