"""The strict CSV reader: what it must read, and what it must refuse with the line's number."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.csvfile import read_rows
from engine.core.errors import DataError, SubmissionError

REQUIRED = ("id", "landmark_id")


def _read(folder: Path, content: bytes) -> list[tuple[int, dict[str, str]]]:
    path = folder / "train.csv"
    path.write_bytes(content)
    return list(read_rows(path, REQUIRED, error=DataError))


def _refusal(folder: Path, content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        _read(folder, content)
    return str(caught.value)


def test_read_rows_gives_the_line_and_every_column(tmp_path):
    assert _read(tmp_path, b"id,url,landmark_id\na,http://x,7\nb,,8\n") == [
        (2, {"id": "a", "url": "http://x", "landmark_id": "7"}),
        (3, {"id": "b", "url": "", "landmark_id": "8"}),
    ]


@pytest.mark.faults
@pytest.mark.parametrize("text", ["0012345678901234", "12345678901234e1", "nan", "NA", "null", " 1 ", "TRUE"])
def test_read_rows_keeps_ids_byte_for_byte(tmp_path, text):
    assert _read(tmp_path, f"id,landmark_id\n{text},1\n".encode()) == [(2, {"id": text, "landmark_id": "1"})]


@pytest.mark.faults
@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfid,landmark_id\na,1\n",
        b"id,landmark_id\r\na,1\r\n",
        b"id,landmark_id\ra,1\r",
        b'"id","landmark_id"\n"a","1"\n',
        b"id,landmark_id\na,1",
        b"id,landmark_id\na,1\n\n\n",
    ],
    ids=["byte order mark", "CRLF", "CR", "quoted", "no last newline", "blank lines at the end"],
)
def test_read_rows_reads_every_dialect_of_the_same_file(tmp_path, content):
    assert _read(tmp_path, content) == [(2, {"id": "a", "landmark_id": "1"})]


@pytest.mark.faults
def test_read_rows_counts_lines_past_quoted_newlines_and_blank_lines(tmp_path):
    rows = _read(tmp_path, b'id,landmark_id,note\na,1,"two\nlines"\n\nb,2,\n')
    assert [(line, row["id"]) for line, row in rows] == [(2, "a"), (5, "b")]
    assert rows[0][1]["note"] == "two\nlines"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "train.csv:1: the file is empty"),
        (b"\n\n", "train.csv:1: the file is empty"),
        (b"\xef\xbb\xbf", "train.csv:1: the file is empty"),
        (b"id,landmark_id\n", "has a header but no rows"),
        (b"id,landmarks_id\na,1\n", "no column 'landmark_id' — did you mean 'landmarks_id'?"),
        (b"id;landmark_id\na;1\n", "separated by commas"),
        (b"id,landmark_id,id\na,1,b\n", "train.csv:1: column 'id' stands there 2 times"),
        (b"id,landmark_id\na,1\nb\n", "train.csv:3: has 1 values, the header has 2 columns"),
        (b"id,landmark_id\na,1,2\n", "train.csv:2: has 3 values, the header has 2 columns"),
        (b"id,landmark_id\na,1\n\nM\xfcnchen,2\n", "train.csv:4: is not UTF-8"),
        (b"id,landmark_id\r\na,1\r\nb,\xc3", "train.csv:3: is not UTF-8"),
        ("id,landmark_id\na,1\n".encode("utf-16"), "train.csv:1: is not UTF-8"),
        (b'id,landmark_id\na,1\nb,"2\nc,3\n', "train.csv:3: is not CSV"),
        (b'id,landmark_id\na,"1"x\n', "train.csv:2: is not CSV"),
    ],
)
def test_read_rows_refuses_a_bad_file_by_line(tmp_path, content, said):
    assert said in _refusal(tmp_path, content)


@pytest.mark.faults
def test_read_rows_shows_all_ragged_rows_together(tmp_path):
    said = _refusal(tmp_path, b"id,landmark_id\na\nb,1\nc,1,2\n")
    assert "train.csv:2" in said
    assert "train.csv:4" in said


@pytest.mark.faults
def test_read_rows_names_a_missing_file_and_raises_the_asked_kind(tmp_path):
    with pytest.raises(SubmissionError, match=r"none\.csv: cannot be read \(No such file or directory\)"):
        list(read_rows(tmp_path / "none.csv", REQUIRED, error=SubmissionError))


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.tuples(st.text(), st.text(), st.text()), min_size=1, max_size=8))
def test_read_rows_returns_what_the_csv_module_wrote(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("round_trip") / "any.csv"
    with path.open("w", encoding="utf-8", newline="") as handle:
        csv.writer(handle, quoting=csv.QUOTE_ALL).writerows([("id", "landmark_id", "note"), *rows])
    read = [tuple(row.values()) for _, row in read_rows(path, REQUIRED, error=DataError)]
    assert read == rows
