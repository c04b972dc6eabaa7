"""Answers to a file and back: what is written reads back the same, and what breaks the rules is refused by line."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import ResourceError, SubmissionError
from submissions.submission import build_submission, check_submission, read_submission, write_submission

HEADER = "id,landmarks\n"


def _answers(rows):
    return pd.DataFrame(rows, columns=["id", "landmark_id", "confidence"])


def _file(folder: Path, content: str | bytes) -> Path:
    path = folder / "submission.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _refusal(path: Path, **checks) -> str:
    with pytest.raises(SubmissionError) as caught:
        read_submission(path, **checks)
    assert caught.value.exit_code == 5
    return str(caught.value)


# ---- building and writing


def test_build_submission_holds_every_test_id_once_in_the_given_order():
    answers = _answers([("c", "8", 0.25), ("b", None, 0.0), ("a", "7", 1e-07)])
    frame = build_submission(answers, ["b", "c", "d", "a"])
    assert list(frame.itertuples(index=False, name=None)) == [("b", ""), ("c", "8 0.25"), ("d", ""), ("a", "7 1e-07")]


def test_write_submission_writes_plain_lines(tmp_path):
    path = tmp_path / "new folder" / "submission.csv"
    write_submission(path, build_submission(_answers([("00e1", "0012", 0.1)]), ["00e1", "nan"]))
    assert path.read_bytes() == b"id,landmarks\n00e1,0012 0.1\nnan,\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["submission.csv"]


def _is_normal(value: float) -> bool:
    return value == 0 or abs(value) >= sys.float_info.min


ids = st.text("0123456789abcdef", min_size=1, max_size=16)
landmark_ids = st.from_regex("[0-9A-Za-z_][0-9A-Za-z_-]{0,63}", fullmatch=True)
confidences = st.floats(allow_nan=False, allow_infinity=False).filter(_is_normal)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(ids, st.none() | st.tuples(landmark_ids, confidences), min_size=1, max_size=8))
def test_a_submission_reads_back_exactly_as_it_was_answered(tmp_path_factory, answered):
    rows = [(photo, *(answer or (None, 0.0))) for photo, answer in answered.items()]
    path = tmp_path_factory.mktemp("round_trip") / "submission.csv"
    write_submission(path, build_submission(_answers(rows), list(answered)))
    read = read_submission(path, test_ids=list(answered))
    assert list(read.itertuples(index=False, name=None)) == rows


@pytest.mark.faults
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("a", "7", 0.5), ("a", "8", 0.4)], "1 ids are answered more than once: a"),
        ([("x", "7", 0.5)], "1 answered ids are not in the test set: x"),
        ([("a", "7", float("nan"))], "answer of id 'a': confidence 'nan' is not a plain number"),
        ([("a", "7", float("inf"))], "answer of id 'a': confidence 'inf' is not a plain number"),
        ([("a", "7", 1e-320)], "answer of id 'a': confidence '1e-320' is beyond"),
        ([("a", "=1+2", 0.5)], "begins like a spreadsheet formula"),
        ([("a", "-1", 0.5)], "begins like a spreadsheet formula"),
        ([("a", "7 8", 0.5)], "is not one answer"),
        ([("a", "Tour,Eiffel", 0.5)], "'Tour,Eiffel' is not a landmark id"),
    ],
)
def test_build_submission_refuses_what_the_file_cannot_hold(rows, said):
    with pytest.raises(SubmissionError) as caught:
        build_submission(_answers(rows), ["a", "b"])
    assert said in str(caught.value)


@pytest.mark.faults
def test_build_submission_refuses_test_ids_given_twice_or_made_to_run():
    with pytest.raises(SubmissionError, match="1 test ids are given more than once: a"):
        build_submission(_answers([]), ["a", "a"])
    with pytest.raises(SubmissionError, match=r"'=cmd\(\)' begins like a spreadsheet formula"):
        build_submission(_answers([]), ["a", "=cmd()"])


# ---- reading


def test_read_submission_gives_landmarks_and_numbers(tmp_path):
    read = read_submission(_file(tmp_path, HEADER + "a,7 0.5\nb,\nc,x_-9 -1.5E+3\nd,7 .5\n"))
    assert list(read.itertuples(index=False, name=None)) == [
        ("a", "7", 0.5), ("b", None, 0.0), ("c", "x_-9", -1500.0), ("d", "7", 0.5),
    ]  # fmt: skip


@pytest.mark.faults
def test_read_submission_reads_a_byte_order_mark_and_crlf(tmp_path):
    read = read_submission(_file(tmp_path, b"\xef\xbb\xbfid,landmarks\r\n0012e1,0007 0.5\r\nnan,\r\n"))
    assert list(read.itertuples(index=False, name=None)) == [("0012e1", "0007", 0.5), ("nan", None, 0.0)]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("7 nan", "confidence 'nan' is not a plain number"),
        ("7 inf", "confidence 'inf' is not a plain number"),
        ("7 -Infinity", "confidence '-Infinity' is not a plain number"),
        ("7 1e999", "confidence '1e999' is beyond"),
        ("7 1e-320", "confidence '1e-320' is beyond"),
        ("7 1e-999", "confidence '1e-999' is beyond"),
        ('"7 0,5"', "confidence '0,5' is not a plain number such as 0.25, with '.' for the decimals"),
        ("7 1_000", "confidence '1_000' is not a plain number"),
        ("7 ٣", "is not a plain number"),
        ("7 0x1p3", "is not a plain number"),
        ("7", "is not one answer"),
        ("7  0.5", "is not one answer"),
        ("7 0.5 ", "is not one answer"),
        ("7 0.5 8 0.4", "'7 0.5 8 0.4' is not one answer; wanted '<landmark_id> <confidence>', or nothing"),
        ("É7 0.5", "'É7' is not a landmark id"),
        ("7" * 65 + " 0.5", "is not a landmark id"),
        ("=7 0.5", "begins like a spreadsheet formula"),
        ("+7 0.5", "begins like a spreadsheet formula"),
        ("-7 0.5", "begins like a spreadsheet formula"),
        ("@7 0.5", "begins like a spreadsheet formula"),
        ("\t7 0.5", "begins like a spreadsheet formula"),
    ],
)
def test_read_submission_refuses_a_bad_answer_by_line(tmp_path, field, said):
    message = _refusal(_file(tmp_path, f"{HEADER}a,7 0.5\nb,{field}\n"))
    assert "submission.csv:3: " in message
    assert said in message


@pytest.mark.faults
@pytest.mark.parametrize("photo", ["=cmd()", "+1", "-1", "@x"])
def test_read_submission_refuses_an_id_that_is_a_formula(tmp_path, photo):
    assert f"submission.csv:2: '{photo}' begins like a spreadsheet formula" in _refusal(
        _file(tmp_path, f"{HEADER}{photo},\n")
    )


@pytest.mark.faults
@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "submission.csv:1: the file is empty"),
        (HEADER, "has a header but no rows"),
        ("id,landmark\na,7 0.5\n", "no column 'landmarks' — did you mean 'landmark'?"),
        ("id,landmarks,note\na,7 0.5,=1\n", "submission.csv:1: has the columns id,landmarks,note"),
        (HEADER + "a,7 0,5\n", "submission.csv:2: has 3 values, the header has 2 columns"),
        (HEADER + ",7 0.5\n", "submission.csv:2: the id is empty"),
        (HEADER.encode() + b"M\xfc,7 0.5\n", "submission.csv:2: is not UTF-8"),
    ],
)
def test_read_submission_refuses_a_bad_file_by_line(tmp_path, content, said):
    assert said in _refusal(_file(tmp_path, content))


@pytest.mark.faults
def test_read_submission_counts_missing_extra_and_twice_given_ids_and_names_the_source(tmp_path):
    rows = "".join(f"extra{i},\n" for i in range(25)) + "a,7 0.5\na,\n"
    message = _refusal(_file(tmp_path, HEADER + rows), test_ids=["a", "b", "c"], ids_from="test.csv")
    assert "1 ids stand there more than once: a (line 28)" in message
    assert "2 ids of test.csv have no row: b, c" in message
    assert "25 ids are not in test.csv: extra0 (line 2), " in message
    assert "extra19 (line 21), … and 5 more" in message
    assert "engine submit" in message


@pytest.mark.faults
def test_read_submission_refuses_landmarks_that_training_never_saw(tmp_path):
    message = _refusal(_file(tmp_path, HEADER + "a,7 0.5\nb,\nc,9 0.1\n"), known_landmarks={"7", "8"})
    assert "1 answers name a landmark that training never saw: 9 of c (line 4)" in message


@pytest.mark.faults
def test_read_submission_shows_all_kinds_of_problems_together(tmp_path):
    path = _file(tmp_path, HEADER + "a,7 nan\nb,9 0.5\n")
    message = _refusal(path, test_ids=["a", "b", "c"], known_landmarks={"7"})
    for said in ("have no row: c", "never saw: 9 of b", "confidence 'nan'"):
        assert said in message


# ---- the report


def test_check_submission_tells_what_the_file_holds(tmp_path):
    path = _file(tmp_path, HEADER + "a,7 0.5\nb,\nc,7 0.25\nd,8 0.75\n")
    report = check_submission(path, ["d", "c", "b", "a"], {"7", "8"})
    assert (report.rows, report.answered, report.empty, report.landmarks) == (4, 3, 1, 2)
    assert (report.lowest, report.highest, report.tied, report.notices) == (0.25, 0.75, 0, ())


def test_check_submission_gives_notice_of_ties(tmp_path):
    report = check_submission(_file(tmp_path, HEADER + "a,7 0.5\nb,8 0.50\nc,7 0.25\nd,\ne,\n"))
    assert report.tied == 2
    assert "2 answers share their confidence" in report.notices[0]


@pytest.mark.faults
def test_check_submission_gives_notice_of_a_file_without_any_answer(tmp_path):
    report = check_submission(_file(tmp_path, HEADER + "a,\nb,\n"), ["a", "b"])
    assert (report.answered, report.lowest, report.highest) == (0, None, None)
    assert report.notices == ("no photo has an answer: the score will be 0",)


# ---- the disk

# Forks, so that a round costs milliseconds: of writers in place, about one in three left a broken file behind.
KILL_WRITERS = """
import os, random, signal, sys, time
from pathlib import Path
import pandas as pd
from submissions.submission import write_submission

path, ids = Path(sys.argv[1]), [f"{i:06}" for i in range(20_000)]
frames = [pd.DataFrame({"id": ids, "landmarks": f"{landmark} 0.5"}) for landmark in (1, 22)]
whole = []
for frame in frames:
    begun = time.monotonic()
    write_submission(path, frame)
    took = time.monotonic() - begun
    whole.append(path.read_bytes())
for trial in range(20):
    written, tell = os.pipe()
    writer = os.fork()
    while writer == 0:
        for frame in frames:
            write_submission(path, frame)
            os.write(tell, b"!")
    for _ in range(1 + trial % 2):
        os.read(written, 1)  # however slow the machine is, either file has been put in place
    time.sleep(random.uniform(0, 3 * took))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    os.close(written), os.close(tell)
    print(whole.index(path.read_bytes()), flush=True)
"""


@pytest.mark.faults
def test_kill_while_writing_leaves_the_old_or_the_new_file_whole(tmp_path):
    path = tmp_path / "submission.csv"
    command = [sys.executable, "-c", KILL_WRITERS, str(path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
    assert len(found) == 20
    assert set(found) == {"0", "1"}  # both: so the writers did write
    assert len(read_submission(path)) == 20_000


@pytest.mark.faults
def test_a_full_disk_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "submission.csv"
    write_submission(path, build_submission(_answers([]), ["a"]))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(ResourceError, match="disk full"):
            write_submission(path, build_submission(_answers([]), [f"{i:04}" for i in range(500)]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text(encoding="utf-8") == "id,landmarks\na,\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["submission.csv"]
