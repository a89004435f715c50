"""What other libraries say, cut to what fits into a sentence."""

import errno
import socket

import pytest
import torch

from dejavu_lit.utils.errors import (
    LONGEST,
    UserError,
    counted,
    error_sentence,
    explained,
    first_line,
    killed_by,
    os_error_sentence,
)


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


def test_a_key_that_is_missing_is_told_as_such_and_a_sentence_as_it_is() -> None:
    assert first_line(KeyError("weight")) == "no entry 'weight'"
    assert first_line(KeyError("there is no weight")) == "'there is no weight'"


OBJECTS = "the model cannot be loaded: it needs {} (pip install 'dejavu-lit[objects]')"


@pytest.mark.parametrize(
    ("error", "extra", "told"),
    [
        (ValueError("bad magic"), "objects", "the model cannot be loaded (bad magic); save it again"),
        (ConnectionError("no host"), None, "the model cannot be loaded (no host); save it again"),
        (ModuleNotFoundError("No module 'x'", name="x"), "objects", OBJECTS.format("x")),
        (ModuleNotFoundError("no 'x'", name="x"), None, "the model cannot be loaded (no 'x'); save it again"),
        (
            ImportError("cannot import name 'Auto'", name="x"),
            "objects",
            OBJECTS.format("a package that is missing or too old: cannot import name 'Auto'"),
        ),
        (UserError("our own sentence"), "objects", "our own sentence"),
    ],
)
def test_an_error_of_another_library_is_one_sentence(error: Exception, extra: str | None, told: str) -> None:
    with pytest.raises(UserError) as caught, explained("the model cannot be loaded", "save it again", extra):
        raise error
    assert str(caught.value) == told


@pytest.mark.parametrize(
    "error", [MemoryError(), OSError(errno.ENOSPC, "full", "a.bin"), RuntimeError("can't allocate memory")]
)
def test_an_error_with_a_remedy_of_its_own_stays(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, explained("the model cannot be loaded", "save it again"):
        raise error
    assert caught.value is error


def test_only_the_given_errors_are_told_as_a_sentence() -> None:
    with pytest.raises(TypeError), explained("it is refused", "choose another one", errors=(ValueError,)):
        raise TypeError("a mistake in the code")


def test_an_error_of_the_system_without_a_message_is_told_by_its_class() -> None:
    assert os_error_sentence(TimeoutError()) == "TimeoutError"
    assert os_error_sentence(OSError("no such host")) == "no such host"


def test_an_error_of_a_loader_process_keeps_its_remedy() -> None:
    """torch raises it again in the main process with the worker's traceback as its words, without a number."""
    words = "Caught OSError in DataLoader worker process 0.\nTraceback:\n  …\nOSError: [Errno 5] Input/output error: '/d/A/0.tar'"
    assert os_error_sentence(OSError(words)).startswith("/d/A/0.tar: input/output error; check the disk")
    assert "the network file system lost it" in os_error_sentence(
        OSError("[Errno 107] Transport endpoint is not connected")
    )


def test_limits_that_are_told_in_words_get_their_remedy() -> None:
    files = RuntimeError("Too many open files. Communication with the workers is no longer possible.")
    assert (error_sentence(files) or "").startswith("Too many open files; raise the limit of open files (ulimit -n)")
    threads = RuntimeError("can't start new thread")
    assert (error_sentence(threads) or "").startswith("can't start new thread; raise the limit of processes")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(RuntimeError) as refused:
        torch.distributed.TCPStore("127.0.0.1", taken.getsockname()[1], is_master=True)
    assert (error_sentence(refused.value) or "").startswith("address already in use; set MASTER_PORT to a port")
    assert error_sentence(RuntimeError("another")) is None


def test_weights_that_do_not_fit_are_told_with_the_tensor() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.nn.Linear(2, 3).load_state_dict(torch.nn.Linear(2, 4).state_dict())
    assert "size mismatch for weight" in first_line(caught.value)


def test_a_killed_process_names_its_signal() -> None:
    assert killed_by(9) == "killed by SIGKILL, often because memory ran out"
    assert killed_by(15) == "killed by SIGTERM"
    assert killed_by(40) == "killed by signal 40"  # a real-time signal, which has no name


def test_a_noun_agrees_with_its_number() -> None:
    assert [counted(number, "epoch") for number in (0, 1, 2)] == ["0 epochs", "1 epoch", "2 epochs"]
