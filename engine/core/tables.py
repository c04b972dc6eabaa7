"""The tables the three packages meet at, each with a versioned schema, as Parquet.

| table          | one row is                  | stands in a run at                        |
|----------------|-----------------------------|-------------------------------------------|
| catalog        | a photo                     | catalog.parquet                           |
| folds          | a training photo            | folds.parquet                             |
| candidates     | (member, query, landmark)   | scores/<member>.{oof,test}.parquet        |
| query_features | (member, query)             | scores/<member>.{oof,test}.queries.parquet, gate/{oof,test}.parquet |
| answers        | a query                     | stack/answers.{oof,test}.parquet          |

A photo id and a landmark id are text, byte for byte as in the CSV: `0012345678901234` is never a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from engine.core.errors import ArtifactError
from engine.core.storage import atomic_path


@dataclass(frozen=True)
class TableSchema:
    """A table's contract.

    Attributes:
        name: the table's name, stored in the file.
        version: raised on every change of meaning or columns.
        columns: column name to Arrow type, in order.
        optional: columns that may hold nulls.
        open_ended: further float32 columns are allowed (what there is to tell differs by member).
        readable: older versions whose files are files of this one too.
    """

    name: str
    version: int
    columns: Mapping[str, pa.DataType]
    optional: frozenset[str] = frozenset()
    open_ended: bool = False
    readable: frozenset[int] = frozenset()


CATALOG = TableSchema(
    "catalog",
    1,
    {
        "id": pa.string(),
        "path": pa.string(),  # of the file, relative to the data folder, with forward slashes
        "split": pa.string(),  # train, nonlandmark or test
        "landmark_id": pa.string(),  # null unless split is train
        "width": pa.int32(),  # upright, in pixels; 0 when the photo cannot be read
        "height": pa.int32(),
        "sha256": pa.string(),  # of the file's bytes; empty when missing
        "duplicate_group": pa.int64(),  # photos that show the same picture share one
        "problem": pa.string(),  # null for a usable photo, else the reason it was set aside
    },
    optional=frozenset({"landmark_id", "problem"}),
)
FOLDS = TableSchema("folds", 1, {"id": pa.string(), "fold": pa.int16()})
CANDIDATES = TableSchema(
    "candidates",
    2,
    {
        "member": pa.string(),
        "query": pa.string(),
        "landmark_id": pa.string(),
        "score": pa.float32(),  # finite, may be negative, higher is better
        "rank": pa.int16(),  # 1 is the member's best for this query
    },
    open_ended=True,  # by what else a member can tell of a candidate: cosines, votes, inliers
    readable=frozenset({1}),  # had no further columns
)
QUERY_FEATURES = TableSchema("query_features", 1, {"member": pa.string(), "query": pa.string()}, open_ended=True)
ANSWERS = TableSchema(
    "answers",
    1,
    {
        "id": pa.string(),
        "landmark_id": pa.string(),  # null: no answer
        "confidence": pa.float64(),  # P(this answer is right), 0..1
        "decided_by": pa.string(),
    },
    optional=frozenset({"landmark_id"}),
)


def _arrow_schema(schema: TableSchema, frame: pd.DataFrame) -> pa.Schema:
    extra = [name for name in frame.columns if name not in schema.columns]
    missing = [name for name in schema.columns if name not in frame.columns]
    if missing or (extra and not schema.open_ended):
        raise ArtifactError(f"table '{schema.name}': missing columns {missing}, unknown columns {extra}")
    fields = [pa.field(name, kind) for name, kind in schema.columns.items()]
    fields += [pa.field(name, pa.float32()) for name in extra]
    return pa.schema(fields, metadata={"table": schema.name, "version": str(schema.version)})


def write_table(path: Path, frame: pd.DataFrame, schema: TableSchema) -> None:
    """Write a table atomically after checking it against its schema.

    Args:
        path: the Parquet file.
        frame: at least the schema's columns; order of columns does not matter, order of rows is kept.
        schema: the contract.

    Raises:
        ArtifactError: on a missing or unknown column, a null where none is allowed, or a number that is not finite.
        ResourceError: when the file cannot be written.
    """
    arrow = _arrow_schema(schema, frame)
    try:
        table = pa.Table.from_pandas(frame[arrow.names], schema=arrow, preserve_index=False, safe=True)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise ArtifactError(f"{path}: does not fit the table '{schema.name}': {error}") from error
    for field in arrow:
        column = table.column(field.name)
        if column.null_count and field.name not in schema.optional:
            raise ArtifactError(f"{path}: column '{field.name}' has {column.null_count} empty or NaN values")
        if pa.types.is_floating(field.type) and not np.isfinite(column.to_numpy()).all():
            raise ArtifactError(f"{path}: column '{field.name}' has values that are not finite")
    table = table.replace_schema_metadata(arrow.metadata)  # without pandas' own metadata: same rows, same bytes
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(path: Path, schema: TableSchema) -> pd.DataFrame:
    """Read a table back.

    Raises:
        ArtifactError: when the file is missing, damaged, another table, or of a version that is not readable.
    """
    try:
        table = pq.read_table(path)
        found = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        frame: pd.DataFrame = table.to_pandas()
    except FileNotFoundError:
        raise ArtifactError(f"{path}: is missing", hint="run the stage that makes it") from None
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: text that is not UTF-8
        raise ArtifactError(f"{path}: is damaged ({error})", hint="delete it and run its stage again") from error
    versions = {str(version) for version in {schema.version, *schema.readable}}
    if found.get("table") != schema.name or found.get("version") not in versions:
        raise ArtifactError(
            f"{path}: is table '{found.get('table')}' version {found.get('version')}, "
            f"wanted '{schema.name}' version {schema.version}",
            hint="make it again with this version of the engine",
        )
    return frame
