"""What other libraries say, cut to what fits into a sentence."""

import pytest
import torch

from dejavu_lit.utils.errors import LONGEST, first_line, os_error_sentence


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("\n  no such thing  \n\nTraceback and more", "no such thing"),
        ("Errors found:\n\tthe first of them\n\tthe second", "Errors found: the first of them"),
        ("Errors found:", "Errors found:"),
        ("", "ValueError"),
        ("x" * 500, "x" * (LONGEST - 1) + "…"),
    ],
)
def test_the_first_line_of_an_error(said: str, told: str) -> None:
    assert first_line(ValueError(said)) == told


def test_an_error_of_the_system_without_a_message_is_told_by_its_class() -> None:
    assert os_error_sentence(TimeoutError()) == "TimeoutError"
    assert os_error_sentence(OSError("no such host")) == "no such host"


def test_weights_that_do_not_fit_are_told_with_the_tensor() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.nn.Linear(2, 3).load_state_dict(torch.nn.Linear(2, 4).state_dict())
    assert "size mismatch for weight" in first_line(caught.value)
