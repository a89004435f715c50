"""CSV and TSV: the delimiter is found, and no quotation mark swallows rows."""

import csv
import logging
import os
from pathlib import Path

import pytest

from dejavu_lit.data.text_tables import find_delimiter, read_delimited
from dejavu_lit.utils.errors import UserError

COLUMNS = ["path", "caption"]


def rows(path: Path, delimiter: str | None = None) -> list[tuple[str, ...]]:
    return [tuple(row.values()) for row in read_delimited(path, COLUMNS, delimiter).to_pylist()]


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt"])
def test_the_delimiter_is_found_or_given(tmp_path: Path, suffix: str, delimiter: str) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_text(f"\ufeffpath{delimiter}caption\n1.jpg{delimiter}a dog\n", encoding="utf-8")
    assert find_delimiter(path, COLUMNS) == delimiter
    assert rows(path) == rows(path, delimiter) == [("1.jpg", "a dog")]


def test_a_tab_may_be_written_as_backslash_t(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path\tcaption\n1.jpg\ta\n")
    assert rows(tmp_path / "t.csv", "\\t") == [("1.jpg", "a")]
    with pytest.raises(UserError, match="must be one ASCII character"):
        rows(tmp_path / "t.csv", ", ")


def test_the_delimiter_of_a_file_without_a_header_line(tmp_path: Path) -> None:
    names = ["image", "caption"]
    for first, delimiter in (("1.jpg\ta dog, a cat", "\t"), ("1.jpg,a dog", ","), ("1.jpg;a, dog, there", ";")):
        (tmp_path / "t.txt").write_text(f"{first}\n1.jpg{delimiter}x\n")
        table = read_delimited(tmp_path / "t.txt", names, header=names)
        assert table.to_pylist()[1] == {"image": "1.jpg", "caption": "x"}
        assert find_delimiter(tmp_path / "t.txt", names, names) == delimiter


def test_values_longer_than_csv_usually_reads(tmp_path: Path) -> None:
    path, names = tmp_path / "t.csv", ["image", "caption"]
    path.write_text(f"1.jpg,{'x' * 200_000}\n")
    assert read_delimited(path, names, header=names)["caption"].to_pylist() == ["x" * 200_000]
    path.write_text(f"image,caption,{'x' * 200_000}\n1.jpg,a,b\n")
    assert read_delimited(path, names)["caption"].to_pylist() == ["a"]


def test_the_delimiter_without_a_header_line_fits_all_first_lines(tmp_path: Path) -> None:
    names = ["image", "caption"]
    path = tmp_path / "t.txt"
    path.write_text('a.png|x, y\n\nb.png|"one\ntwo"\n')
    assert find_delimiter(path, names, names) == "|"
    assert read_delimited(path, names, header=names)["caption"].to_pylist() == ["x, y", "one\ntwo"]
    path.write_text("a.png|x, y\n" + "b.png|z\n" * 18 + 'c.png|"cut\nhere"\n')  # in line 20
    assert find_delimiter(path, names, names) == "|"


def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(UserError, match=r"t\.csv is a folder, a pipe or a device"):
        read_delimited(tmp_path / "t.csv", COLUMNS)


@pytest.mark.parametrize(
    ("encoding", "header", "caption"),
    [
        ("gb18030", "caption", "一只狗"),
        ("gb18030", "标题", "a dog"),
        ("latin-1", "légende", "a dog"),
        ("utf-16", "caption", "一只狗"),
        ("utf-16-le", "caption", "a dog"),
    ],
)
@pytest.mark.parametrize("end", ["", "\n"])
def test_another_encoding_is_named(tmp_path: Path, encoding: str, header: str, caption: str, end: str) -> None:
    (tmp_path / "t.tsv").write_text(f"path\t{header}\n1.jpg\t{caption}{end}", encoding=encoding)
    with pytest.raises(UserError, match=r"t\.tsv is not in UTF-8; convert it: iconv -f ENCODING -t UTF-8"):
        rows(tmp_path / "t.tsv")


@pytest.mark.parametrize("opened", ['"a dog', '"a dog" called "Rex', '"Rex" the dog', '"'])
@pytest.mark.parametrize(("suffix", "delimiter"), [(".tsv", "\t"), (".csv", ",")])
def test_a_quotation_mark_that_stays_open_joins_no_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, delimiter: str, opened: str
) -> None:
    captions = ["a cat", opened, *(f"caption {n}" for n in range(30)), 'a 5" pipe']
    lines = [f"{n}.jpg{delimiter}{caption}" for n, caption in enumerate(captions)]
    path = tmp_path / f"t{suffix}"
    path.write_text("\n".join([f"path{delimiter}caption", *lines]) + "\n")
    assert [caption for _, caption in rows(path)] == captions
    assert "is read without quoting: the row that begins in line 3" in caplog.text


def test_open_quotes_among_quoted_delimiters_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('path,caption\n1.jpg,"a dog, sitting"\n2.jpg,"open\n3.jpg,c\n')
    limit = csv.field_size_limit()
    with pytest.raises(UserError, match=r"quotation mark that does not close a value \(the row that begins in line 3"):
        rows(path)
    assert csv.field_size_limit() == limit  # of the user's own program


def test_quoted_values_keep_delimiters_quotes_and_line_breaks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.csv"
    path.write_text('path,caption\n1.jpg,"a ""big"" dog,\nsitting"\n2.jpg,5" wide\n')
    assert rows(path) == [("1.jpg", 'a "big" dog,\nsitting'), ("2.jpg", '5" wide')]
    assert [r.message for r in caplog.records if r.levelno == logging.WARNING] == [
        f"{path}: the column caption has values with line breaks: 1, the first in row 1; if these are several rows, "
        "a quotation mark before them is not closed"
    ]
