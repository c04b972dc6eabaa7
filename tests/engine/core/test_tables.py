"""A table is a contract: ids come back byte for byte, what breaks the contract never reaches the disk."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import ArtifactError
from engine.core.tables import (
    ANSWERS,
    CANDIDATES,
    CATALOG,
    FOLDS,
    QUERY_FEATURES,
    TableSchema,
    read_table,
    write_table,
)

FILES = Path(__file__).parent / "files"
ODD_IDS = ["0012345678901234", "12345678901234e1", "nan", "", "NA", "null", "None", "1.0", " 7", "=1", "\x00", "ß\n"]
CATALOG_VALUES = {
    "path": "train/x.jpg",
    "split": "train",
    "landmark_id": "7",
    "width": 15,
    "height": 10,
    "sha256": "",
    "duplicate_group": 2**40,
    "problem": None,
}
ids = st.lists(st.sampled_from(ODD_IDS) | st.text(st.characters(exclude_categories=["Cs"])), max_size=20)
float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


def _folds(names) -> pd.DataFrame:
    return pd.DataFrame({"id": list(names), "fold": range(len(names))}).astype({"id": str})


def _answers(**columns) -> pd.DataFrame:
    return pd.DataFrame({"id": ["q"], "landmark_id": ["7"], "confidence": [0.5], "decided_by": ["stack"]} | columns)


def _folds_100(folder):
    path = folder / "folds.parquet"
    write_table(path, _folds([f"{number:016x}" for number in range(100)]), FOLDS)
    return path


# ---- laws


@given(names=ids)
@settings(deadline=None, max_examples=40)
def test_ids_come_back_byte_for_byte_in_their_order(tmp_path_factory, names):
    path = tmp_path_factory.getbasetemp() / "folds.parquet"
    write_table(path, _folds(names), FOLDS)
    back = read_table(path, FOLDS)
    assert back["id"].tolist() == names
    assert back["fold"].tolist() == list(range(len(names)))


def test_the_odd_ids_of_the_challenge_stay_text(tmp_path):
    write_table(tmp_path / "folds.parquet", _folds(ODD_IDS), FOLDS)
    back = read_table(tmp_path / "folds.parquet", FOLDS)
    assert back["id"].tolist() == ODD_IDS
    assert not back["id"].isna().any()


@given(scores=st.lists(float32, min_size=1, max_size=20))
@settings(deadline=None, max_examples=40)
def test_scores_come_back_bit_for_bit_negative_ones_too(tmp_path_factory, scores):
    path = tmp_path_factory.getbasetemp() / "candidates.parquet"
    frame = pd.DataFrame({"member": "m", "query": "q", "landmark_id": "7", "score": scores, "rank": 1})
    write_table(path, frame, CANDIDATES)
    assert read_table(path, CANDIDATES)["score"].to_numpy().tobytes() == np.array(scores, np.float32).tobytes()


@given(inliers=st.lists(float32, min_size=1, max_size=20))
@settings(deadline=None, max_examples=20)
def test_candidates_take_evidence_as_further_float32_columns(tmp_path_factory, inliers):
    path = tmp_path_factory.getbasetemp() / "evidence.parquet"
    frame = pd.DataFrame({"member": "m", "query": "q", "landmark_id": "7", "score": 0.5, "rank": 1, "inliers": inliers})
    write_table(path, frame, CANDIDATES)
    assert read_table(path, CANDIDATES)["inliers"].to_numpy().tobytes() == np.array(inliers, np.float32).tobytes()


@given(order=st.permutations(range(8)))
@settings(deadline=None, max_examples=20)
def test_the_same_rows_give_the_same_bytes_whatever_index_and_column_order(tmp_path_factory, order):
    folder = tmp_path_factory.getbasetemp()
    frame = _folds([f"{number:016x}" for number in range(8)])
    write_table(folder / "a.parquet", frame, FOLDS)
    write_table(folder / "b.parquet", frame.set_axis(list(order), axis=0)[["fold", "id"]], FOLDS)
    assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()


@pytest.mark.parametrize("schema", [CATALOG, FOLDS, CANDIDATES, QUERY_FEATURES, ANSWERS], ids=lambda s: s.name)
def test_a_table_without_rows_keeps_its_columns_and_types(tmp_path, schema):
    empty = pd.DataFrame({name: [] for name in schema.columns})
    write_table(tmp_path / "empty.parquet", empty, schema)
    back = read_table(tmp_path / "empty.parquet", schema)
    assert list(back.columns) == list(schema.columns)
    assert pq.read_schema(tmp_path / "empty.parquet").types == list(schema.columns.values())


# ---- nulls


def test_no_answer_and_the_landmark_called_nan_are_two_things(tmp_path):
    frame = pd.concat([_answers(id=["a"], landmark_id=[None]), _answers(id=["b"], landmark_id=["nan"])])
    write_table(tmp_path / "answers.parquet", frame, ANSWERS)
    back = read_table(tmp_path / "answers.parquet", ANSWERS)
    assert back["landmark_id"].isna().tolist() == [True, False]
    assert back["landmark_id"].iloc[1] == "nan"


def test_a_column_of_nothing_but_nulls_stays_a_text_column(tmp_path):
    photos = pd.DataFrame([{"id": f"{number:016x}"} | CATALOG_VALUES for number in range(3)])
    write_table(tmp_path / "catalog.parquet", photos, CATALOG)
    assert pq.read_schema(tmp_path / "catalog.parquet").field("problem").type == pa.string()
    assert read_table(tmp_path / "catalog.parquet", CATALOG)["problem"].isna().all()


@pytest.mark.faults
@pytest.mark.parametrize("nothing", [None, math.nan, pd.NA])
def test_an_id_that_is_null_is_refused_with_file_and_column(tmp_path, nothing):
    frame = pd.DataFrame({"id": pd.Series(["a", nothing], dtype=object), "fold": [0, 1]})
    with pytest.raises(ArtifactError, match=r"folds\.parquet: column 'id' has 1 empty"):
        write_table(tmp_path / "folds.parquet", frame, FOLDS)


# ---- what breaks the contract


@pytest.mark.faults
@pytest.mark.parametrize(
    "columns",
    [
        {"id": [12345678901234]},  # an id that pandas took for a number
        {"id": pd.Series(["a", 1], dtype=object)},
        {"fold": [0.5]},
        {"fold": [2**15]},
        {"fold": pd.Series([10**30], dtype=object)},
        {"fold": ["first"]},
    ],
    ids=["number as id", "mixed ids", "half a fold", "beyond int16", "beyond int64", "text"],
)
def test_a_value_of_the_wrong_type_is_refused_and_nothing_is_written(tmp_path, columns):
    length = max(len(values) for values in columns.values())
    frame = pd.DataFrame({"id": ["a"] * length, "fold": [0] * length} | columns)
    with pytest.raises(ArtifactError, match="does not fit the table 'folds'"):
        write_table(tmp_path / "folds.parquet", frame, FOLDS)
    assert not list(tmp_path.iterdir())


@pytest.mark.faults
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_confidence_that_is_no_number_is_refused(tmp_path, value):
    with pytest.raises(ArtifactError, match="column 'confidence' has"):
        write_table(tmp_path / "answers.parquet", _answers(confidence=[value]), ANSWERS)


@pytest.mark.faults
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_a_feature_that_float32_cannot_hold_is_refused(tmp_path, value):
    frame = pd.DataFrame({"member": ["m"], "query": ["q"], "margin": [value]})
    with pytest.raises(ArtifactError, match="column 'margin' has"):
        write_table(tmp_path / "queries.parquet", frame, QUERY_FEATURES)


@pytest.mark.faults
def test_missing_and_unknown_columns_are_named(tmp_path):
    frame = pd.DataFrame({"id": ["a"], "flod": [1]})
    with pytest.raises(ArtifactError, match=r"missing columns \['fold'\], unknown columns \['flod'\]"):
        write_table(tmp_path / "folds.parquet", frame, FOLDS)


def test_query_features_take_further_columns_as_float32(tmp_path):
    frame = pd.DataFrame({"member": ["m"], "query": ["q"], "margin": [0.25], "views": [2], "mirrored": [True]})
    write_table(tmp_path / "queries.parquet", frame, QUERY_FEATURES)
    back = read_table(tmp_path / "queries.parquet", QUERY_FEATURES)
    assert back[["margin", "views", "mirrored"]].to_numpy().tolist() == [[0.25, 2.0, 1.0]]
    assert set(back.dtypes.iloc[2:]) == {np.dtype(np.float32)}


def test_a_failed_write_keeps_the_table_that_was_there(tmp_path):
    path = _folds_100(tmp_path)
    before = path.read_bytes()
    with pytest.raises(ArtifactError):
        write_table(path, pd.DataFrame({"id": [None], "fold": [0]}), FOLDS)
    assert path.read_bytes() == before


# ---- reading what is not right


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path):
    (tmp_path / "run=1").mkdir()
    assert list(read_table(_folds_100(tmp_path / "run=1"), FOLDS).columns) == ["id", "fold"]


@pytest.mark.faults
def test_a_missing_table_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"folds\.parquet: is missing"):
        read_table(tmp_path / "folds.parquet", FOLDS)


@pytest.mark.faults
def test_a_table_cut_anywhere_is_an_artifact_error(tmp_path):
    path = _folds_100(tmp_path)
    content = path.read_bytes()
    for length in range(0, len(content), 23):
        path.write_bytes(content[:length])
        with pytest.raises(ArtifactError, match="is damaged"):
            read_table(path, FOLDS)


@pytest.mark.faults
def test_a_flipped_bit_is_read_or_an_artifact_error_but_nothing_else(tmp_path):
    """Only the manifest's hash finds every flip; here none may end in another error."""
    path = _folds_100(tmp_path)
    content = path.read_bytes()
    refused = 0
    positions = range(0, len(content), 5)
    for position in positions:
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        try:
            read_table(path, FOLDS)
        except ArtifactError:
            refused += 1
    assert refused > len(positions) // 4


def test_candidates_of_version_1_are_candidates_without_evidence(tmp_path):
    first = FILES / "candidates-version-1.parquet"
    assert pq.read_schema(first).metadata[b"version"] == b"1"
    candidates = read_table(first, CANDIDATES)
    assert candidates.columns.tolist() == list(CANDIDATES.columns)
    assert candidates["score"].tolist() == [0.75, 0.125, -0.5]
    write_table(tmp_path / "again.parquet", candidates, CANDIDATES)
    assert pq.read_schema(tmp_path / "again.parquet").metadata[b"version"] == b"2"
    pd.testing.assert_frame_equal(read_table(tmp_path / "again.parquet", CANDIDATES), candidates)


@pytest.mark.faults
@pytest.mark.parametrize(("version", "is_read"), [(1, True), (2, False), (3, True), (4, True), (5, False)])
def test_only_versions_that_a_schema_names_are_read(tmp_path, version, is_read):
    write_table(tmp_path / "t.parquet", _folds(["a"]), TableSchema("folds", version, FOLDS.columns))
    schema = TableSchema("folds", 4, FOLDS.columns, readable=frozenset({1, 3}))
    if is_read:
        assert len(read_table(tmp_path / "t.parquet", schema)) == 1
    else:
        with pytest.raises(ArtifactError, match=f"version {version}, wanted 'folds' version 4"):
            read_table(tmp_path / "t.parquet", schema)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (TableSchema("folds", 2, FOLDS.columns), "is table 'folds' version 1, wanted 'folds' version 2"),
        (TableSchema("wings", 1, FOLDS.columns), "is table 'folds' version 1, wanted 'wings' version 1"),
    ],
)
def test_another_table_or_version_is_refused_with_both_sides(tmp_path, schema, message):
    with pytest.raises(ArtifactError, match=message):
        read_table(_folds_100(tmp_path), schema)


@pytest.mark.faults
def test_a_parquet_file_of_another_program_is_refused(tmp_path):
    _folds(["a"]).to_parquet(tmp_path / "folds.parquet")
    with pytest.raises(ArtifactError, match="is table 'None'"):
        read_table(tmp_path / "folds.parquet", FOLDS)


FULL_DISK = """
import resource, sys
from pathlib import Path
import pandas as pd
from engine.core.errors import ResourceError
from engine.core.tables import FOLDS, write_table
frame = pd.DataFrame({"id": [f"{n * 7919 % 99991:016x}" for n in range(9000)], "fold": 0})
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))
try:
    write_table(Path(sys.argv[1]), frame, FOLDS)
except ResourceError as error:
    print(error.exit_code, error)
"""


@pytest.mark.faults
@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_keeps_the_old_table_and_no_temporary_file(tmp_path):
    path = _folds_100(tmp_path)
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"6 {path}: disk full")
    assert [file.name for file in tmp_path.iterdir()] == ["folds.parquet"]
    assert len(read_table(path, FOLDS)) == 100
