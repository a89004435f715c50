"""What is refused before an evaluation generates data or loads a model."""

from pathlib import Path

import pytest

from dejavu_lit.evaluation.run import run_evaluation
from dejavu_lit.evaluation.settings import PairEvaluation
from dejavu_lit.utils.errors import UserError


@pytest.mark.parametrize(
    ("contents", "said"), [(None, "cannot be read"), (b"\n \n", "has no keys"), (b"\xff\xfe\x00", "cannot be read")]
)
def test_a_bad_file_is_named(contents: bytes | None, said: str, tmp_path: Path) -> None:
    if contents is not None:
        (tmp_path / "keys.txt").write_bytes(contents)
    model = "ViT-B-32@openai"  # not a run: no data is found for it, which would be the next mistake
    evaluation = PairEvaluation(target=model, reference=model, keys=str(tmp_path / "keys.txt"))
    with pytest.raises(UserError, match=f"keys.txt {said}"):
        run_evaluation(evaluation, tmp_path / "out")
    assert not (tmp_path / "out").exists()
