"""A strict reader for every CSV the engine is given: text stays text, and a bad row is named by file and line.

In: a CSV file in UTF-8 with a header (byte order mark, CRLF and quoted newlines are fine). Out: one dict per row, every
value byte for byte, because `0012345678901234`, `12345678901234e1` and `nan` are ids. Rows are streamed: the
challenge's own `train.csv` has 1.2 million.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine.core.errors import EngineError, did_you_mean, raise_problems


def read_rows(path: Path, required: Sequence[str], *, error: type[EngineError]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield a CSV's rows with the line each begins on; blank lines are skipped, further columns are kept.

    The file is read while the rows are taken, so every error is raised by the iteration, not by this call. Ragged rows
    are not yielded; they are reported together after the last row.

    Args:
        path: the file.
        required: columns it must have.
        error: the kind of error to raise, e.g. `DataError` for data, `SubmissionError` for a submission.

    Yields:
        (line, row): the 1-based line, the header being line 1, and column name to value.

    Raises:
        EngineError: of the given kind, when the file is missing, empty, not UTF-8 or not CSV, when it has no rows,
            lacks a column or names one twice, or when a row has more or fewer values than the header.
    """
    records = _read_records(path, error)
    header_line, header = next(records, (1, []))
    _check_header(f"{path}:{header_line}", header, required, error)
    ragged: list[str] = []
    line = header_line
    for line, values in records:
        if len(values) == len(header):
            yield line, dict(zip(header, values, strict=True))
        else:
            ragged.append(f"{path}:{line}: has {len(values)} values, the header has {len(header)} columns")
    raise_problems(error, ragged, hint="correct those rows; a value that contains a comma must be quoted")
    if line == header_line:
        raise error(f"{path}: has a header but no rows", hint="check that it was written completely")


def _read_records(path: Path, error: type[EngineError]) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with the line it begins on (a quoted newline makes it end on a later one)."""
    begins = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            for values in reader:
                if values:
                    yield begins, values
                begins = reader.line_num + 1
    except UnicodeDecodeError:
        raise error(f"{path}:{_undecodable_line(path)}: is not UTF-8", hint="save the file as UTF-8") from None
    except csv.Error as problem:
        raise error(f"{path}:{begins}: is not CSV ({problem})", hint="check the quotes from that row on") from None
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror})", hint="check the path") from problem


def _undecodable_line(path: Path) -> int:
    """The line of the first byte that is not UTF-8; the streaming decoder only knows its place inside a chunk."""
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as problem:
        return len((content[: problem.start] + b".").splitlines())
    return 1  # pragma: no cover - the file was changed between the two readings


def _check_header(where: str, header: Sequence[str], required: Sequence[str], error: type[EngineError]) -> None:
    wanted = f"the first line must name the columns {','.join(required)}, separated by commas"
    if not header:
        raise error(f"{where}: the file is empty", hint=wanted)
    problems = [f"{where}: column '{name}' stands there {n} times" for name, n in Counter(header).items() if n > 1]
    problems += [
        f"{where}: has no column '{name}' — {did_you_mean(name, header)}" for name in required if name not in header
    ]
    raise_problems(error, problems, hint=wanted)
