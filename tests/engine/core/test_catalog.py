"""The catalog: ids byte for byte, every photo found or named, every fault of a data folder refused by its place."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from engine.core.catalog import (
    bad_images,
    build_catalog,
    check_bad_fraction,
    check_missing,
    extra_photos,
    scan,
    usable,
)
from engine.core.config import DataConfig
from engine.core.errors import DataError
from engine.core.progress import Progress
from engine.core.storage import sha256_file
from engine.core.tables import CATALOG, read_table, write_table

CONFIG = DataConfig()
LOOSE = DataConfig(id_pattern=".*")


def refusal(data, config=CONFIG):
    with pytest.raises(DataError) as caught:
        build_catalog(data, config)
    assert caught.value.exit_code == 3
    return str(caught.value)


def rewrite(data, text, name="train.csv"):
    (data / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def a_jpeg(draw, seed=1):
    buffer = io.BytesIO()
    Image.fromarray(draw(seed)).save(buffer, "JPEG")
    return buffer.getvalue()


# --- what a good folder gives ----------------------------------------------------------------------------------------


def test_build_catalog_has_a_row_per_photo_in_the_order_of_the_csvs(make_data, photo_id):
    data = make_data({"9": [5, 3], "10": [4]}, nonlandmark=[8, 7], test=[2, 1])
    catalog = build_catalog(data, CONFIG)
    assert catalog["id"].tolist() == [photo_id(n) for n in (5, 3, 4, 8, 7, 2, 1)]
    assert catalog["split"].tolist() == ["train"] * 3 + ["nonlandmark"] * 2 + ["test"] * 2
    assert catalog["landmark_id"].dropna().tolist() == ["9", "9", "10"]
    assert catalog["path"].tolist()[::3] == [
        f"{d}/{photo_id(n)}.jpg" for d, n in (("train", 5), ("train_nonlandmark", 8), ("test", 1))
    ]
    assert set(zip(catalog["width"], catalog["height"], strict=True)) == {(96, 72)}
    assert catalog["sha256"].tolist() == [sha256_file(data / path) for path in catalog["path"]]
    assert catalog["duplicate_group"].tolist() == list(range(7))
    assert catalog["problem"].isna().all()


def test_the_catalog_fits_its_table(make_data, tmp_path):
    catalog = build_catalog(make_data({"9": [1, 2]}, test=[3]), CONFIG)
    write_table(tmp_path / "catalog.parquet", catalog, CATALOG)
    read = read_table(tmp_path / "catalog.parquet", CATALOG)
    assert read.fillna("").to_dict("records") == catalog.fillna("").to_dict("records")


def test_only_train_csv_is_required_and_url_may_be_absent(make_data, photo_id):
    data = make_data({"a": [1], "b": [2]})
    rewrite(data, f"landmark_id,id\na,{photo_id(1)}\nb,{photo_id(2)}\n")
    assert build_catalog(data, CONFIG)["landmark_id"].tolist() == ["a", "b"]


@pytest.mark.parametrize("word", ["", "None"])
def test_a_training_row_without_a_landmark_is_a_nonlandmark_photo(make_data, photo_id, word):
    data = make_data({"a": [1], "b": [2]})
    rewrite(data, f"id,url,landmark_id\n{photo_id(1)},,a\n{photo_id(2)},,{word}\n")
    row = build_catalog(data, CONFIG).iloc[1]
    assert (row["split"], row["path"]) == ("nonlandmark", f"train/{photo_id(2)}.jpg")
    assert pd.isna(row["landmark_id"])
    assert pd.isna(row["problem"])


def test_photos_are_found_in_nested_folders_and_in_other_formats(make_data, photo_id, draw):
    data = make_data({"a": [1], "b": [2, 3, 4]})
    nested = data / "train" / "0" / "0" / "0"
    nested.mkdir(parents=True)
    (data / "train" / f"{photo_id(1)}.jpg").rename(nested / f"{photo_id(1)}.jpg")
    for number, kind in ((2, "PNG"), (3, "WEBP"), (4, "JPEG")):
        (data / "train" / f"{photo_id(number)}.jpg").unlink()
        Image.fromarray(draw(number)).save(data / "train" / f"{photo_id(number)}.{kind}")
    catalog = build_catalog(data, CONFIG)
    assert catalog["problem"].isna().all()
    assert catalog["path"].tolist() == [
        f"train/0/0/0/{photo_id(1)}.jpg",
        *(f"train/{photo_id(number)}.{kind}" for number, kind in ((2, "PNG"), (3, "WEBP"), (4, "JPEG"))),
    ]


def test_copies_share_a_group_across_splits(make_data, photo_id, draw):
    data = make_data({"a": [1], "b": [2]}, nonlandmark=[3], test=[4, 5])
    (data / "test" / f"{photo_id(4)}.jpg").write_bytes((data / "train" / f"{photo_id(2)}.jpg").read_bytes())
    Image.fromarray(draw(3)[:, ::-1]).resize((64, 64)).save(data / "test" / f"{photo_id(5)}.jpg")
    assert build_catalog(data, CONFIG)["duplicate_group"].tolist() == [0, 1, 2, 1, 2]


def test_the_progress_is_told_of_every_photo(make_data):
    class Counting(Progress):
        done = 0

        def task(self, label, total, unit):
            self.total = total
            return super().task(label, total, unit)

    told = Counting()
    build_catalog(make_data({"a": [1, 2], "b": [3]}, test=[4]), CONFIG, progress=told)
    assert told.total == 4


@pytest.mark.faults
@pytest.mark.parametrize("text", ["0012345678901234", "12345678901234e1", "nan", "NA", "null", "1e5", "007", "inf"])
def test_ids_and_landmarks_survive_byte_for_byte(make_data, tmp_path, photo_id, text):
    data = make_data({"a": [1], "b": [2]})
    (data / "train" / f"{photo_id(1)}.jpg").rename(data / "train" / f"{text}.jpg")
    rewrite(data, f"id,url,landmark_id\n{text},,{text}\n{photo_id(2)},,b\n")
    catalog = build_catalog(data, DataConfig(id_pattern="[0-9A-Za-z]+"))
    write_table(tmp_path / "catalog.parquet", catalog, CATALOG)
    row = read_table(tmp_path / "catalog.parquet", CATALOG).iloc[0]
    assert (row["id"], row["landmark_id"], row["path"]) == (text, text, f"train/{text}.jpg")
    assert pd.isna(row["problem"])


@pytest.mark.faults
def test_a_csv_may_have_a_byte_order_mark_crlf_and_quoted_newlines(make_data, photo_id):
    data = make_data({"a": [1], "b": [2]})
    rewrite(data, f'\ufeffid,url,landmark_id\r\n{photo_id(1)},"two\r\nlines",a\r\n{photo_id(2)},,b\r\n\r\n')
    assert build_catalog(data, CONFIG)["landmark_id"].tolist() == ["a", "b"]


# --- CSVs that are refused -------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_folder_without_train_csv_is_refused(tmp_path):
    assert "train.csv: is missing — --data takes the folder that holds train.csv" in refusal(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"train\.csv: is missing"):
        scan(tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["train.csv", "train_nonlandmark.csv", "test.csv"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "{name}:1: the file is empty"),
        (b"id,url,landmark_id\n", "{name}: has a header but no rows"),
        (b"url,landmark_id\nx,1\n", "{name}:1: has no column 'id'"),
        (b"id,id,landmark_id\na,a,1\n", "{name}:1: column 'id' stands there 2 times"),
        (b"id,landmark_id\n0000000000000009,1\n0000000000000008\n", "{name}:3: has 1 values"),
        (b"id,landmark_id\n0000000000000009,caf\xe9\n", "{name}:2: is not UTF-8"),
        (b'id,landmark_id\n"0000000000000009,1\n', "{name}:2: is not CSV"),
    ],
    ids=["empty", "header only", "no id", "duplicate header", "ragged", "latin-1", "open quote"],
)
def test_a_bad_csv_is_refused_by_file_and_line(make_data, name, content, said):
    data = make_data({"a": [1], "b": [2]}, nonlandmark=[3], test=[4])
    rewrite(data, content, name)
    assert said.format(name=data / name) in refusal(data)


@pytest.mark.faults
@pytest.mark.parametrize(
    "photo",
    ["../../etc/passwd", "/etc/passwd", "a\0b", "CON", "0" * 300, "=cmd()", "", " 000000000000001", "000000000000000A"],
)
def test_an_illegal_id_is_refused_and_never_becomes_a_path(make_data, photo):
    data = make_data({"a": [1]})
    rewrite(data, f'id,url,landmark_id\n"{photo}",,a\n')
    said = refusal(data)
    assert "train.csv:2: id " in said
    assert "does not match [0-9a-f]{16}" in said
    assert len(said) < 500


@pytest.mark.faults
@pytest.mark.parametrize("photo", ["../../secret", "..", "/etc/passwd", "a\0b"])
def test_not_even_a_loose_pattern_lets_an_id_leave_the_folder(make_data, tmp_path, draw, photo):
    data = make_data({"a": [1]})
    Image.fromarray(draw(1)).save(tmp_path / "secret.jpg")
    rewrite(data, f'id,url,landmark_id\n"{photo}",,a\n')
    row = build_catalog(data, LOOSE).iloc[0]
    assert (row["problem"], row["sha256"], row["width"]) == ("missing", "", 0)


@pytest.mark.faults
@pytest.mark.parametrize("landmark", ["1 2", "=1+1", "x" * 65, "ü", "<script>", "none/1"])
def test_an_illegal_landmark_is_refused(make_data, photo_id, landmark):
    data = make_data({"a": [1]})
    rewrite(data, f"id,url,landmark_id\n{photo_id(1)},,{landmark}\n")
    assert "train.csv:2: landmark_id " in refusal(data)


@pytest.mark.faults
def test_an_id_twice_is_refused_with_both_places(make_data, photo_id):
    data = make_data({"a": [1], "b": [2]}, nonlandmark=[3], test=[4])
    rewrite(data, f"id,landmark_id\n{photo_id(1)},a\n{photo_id(1)},a\n{photo_id(1)},b\n")
    rewrite(data, f"id,url\n{photo_id(4)},\n{photo_id(1)},\n", "test.csv")
    said = refusal(data)
    assert f"train.csv:3: id '{photo_id(1)}' stands already at {data}/train.csv:2\n" in said
    assert f"train.csv:4: id '{photo_id(1)}' stands already at {data}/train.csv:2 with another landmark_id\n" in said
    assert f"test.csv:3: id '{photo_id(1)}' stands already at {data}/train.csv:2" in said


@pytest.mark.faults
def test_the_first_twenty_problems_of_all_files_are_shown_together(make_data, photo_id):
    data = make_data({"a": [1]}, test=[2])
    rewrite(data, "id,landmark_id\n" + "".join(f"bad{n},a\n" for n in range(30)))
    assert "… and 10 more" in refusal(data)
    rewrite(data, "id,landmark_id\nbad,a\n")
    rewrite(data, f"id,url\n{photo_id(2)}\n", "test.csv")
    said = refusal(data)
    assert "train.csv:2" in said
    assert "test.csv:2" in said


# --- photos that are missing, broken or not where they should be -----------------------------------------------------


@pytest.fixture
def broken(make_data, photo_id, draw):
    """Photos 1 and 2 are good; the others are broken, missing, and one too many."""
    data = make_data({"a": [1, 2], "b": [3, 4]}, nonlandmark=[5, 6], test=[7, 8])
    whole = a_jpeg(draw)
    contents = {("train", 3): b"", ("train", 4): whole[: len(whole) // 2]}
    contents |= {("train_nonlandmark", 5): b"<html>404</html>", ("test", 7): b"BM" + bytes(60)}
    for (folder, number), content in contents.items():
        (data / folder / f"{photo_id(number)}.jpg").write_bytes(content)
    (data / "train_nonlandmark" / f"{photo_id(6)}.jpg").unlink()
    (data / "test" / f"{photo_id(8)}.jpg").unlink()
    (data / "test" / "stranger.jpg").write_bytes(whole)
    (data / "test" / "notes.txt").write_text("no photo")
    return data


@pytest.mark.faults
def test_broken_and_missing_photos_are_set_aside_with_their_reason(broken, photo_id):
    catalog = build_catalog(broken, CONFIG)
    bad = bad_images(catalog)
    assert bad.columns.tolist() == ["id", "split", "path", "reason"]
    assert dict(zip(bad["id"], bad["reason"], strict=True)) == {
        photo_id(3): "empty file",
        photo_id(4): "truncated",
        photo_id(5): "not an image (JPEG, PNG, WEBP)",
        photo_id(6): "missing",
        photo_id(7): "not an image (JPEG, PNG, WEBP)",
        photo_id(8): "missing",
    }
    assert usable(catalog, "train", "nonlandmark", "test")["id"].tolist() == [photo_id(1), photo_id(2)]
    assert (catalog["sha256"] == "").tolist() == [False] * 5 + [True, False, True]
    assert catalog["duplicate_group"].is_unique


@pytest.mark.faults
def test_missing_photos_are_refused_in_the_splits_asked_for(broken, photo_id):
    catalog = build_catalog(broken, CONFIG)
    check_missing(catalog, "train")
    with pytest.raises(DataError, match=f"train_nonlandmark/{photo_id(6)}.jpg: is missing — 1 photos to fetch again"):
        check_missing(catalog, "train", "nonlandmark")
    with pytest.raises(DataError, match=f"test/{photo_id(8)}.jpg"):
        check_missing(catalog, "test")


@pytest.mark.faults
def test_too_many_broken_photos_are_refused_and_a_few_are_not(broken):
    catalog = build_catalog(broken, CONFIG)
    with pytest.raises(DataError, match=r"4 of 6 photos cannot be used.*max_bad_fraction \(now 0.01\)") as caught:
        check_bad_fraction(catalog, CONFIG)
    assert "truncated" in str(caught.value)
    check_bad_fraction(catalog, DataConfig(max_bad_fraction=0.7))


@pytest.mark.faults
def test_extra_photos_are_listed(broken):
    assert extra_photos(broken, build_catalog(broken, CONFIG)) == ["test/stranger.jpg"]


@pytest.mark.faults
def test_two_files_of_one_id_are_refused(make_data, photo_id, draw):
    data = make_data({"a": [1], "b": [2]})
    Image.fromarray(draw(1)).save(data / "train" / f"{photo_id(1)}.png")
    assert f"{photo_id(1)}.png: {data}/train/{photo_id(1)}.jpg has the same id — keep one of the two" in refusal(data)


@pytest.mark.faults
@pytest.mark.parametrize("target", ["photo", "folder", "nested folder"])
def test_links_that_leave_the_data_folder_are_refused(make_data, tmp_path, photo_id, draw, target):
    data = make_data({"a": [1], "b": [2]})
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.fromarray(draw(1)).save(outside / f"{photo_id(1)}.jpg")
    if target == "photo":
        (data / "train" / f"{photo_id(1)}.jpg").unlink()
        (data / "train" / f"{photo_id(1)}.jpg").symlink_to(outside / f"{photo_id(1)}.jpg")
    elif target == "folder":
        shutil.rmtree(data / "train")
        (data / "train").symlink_to(outside)
    else:
        (data / "train" / "0").symlink_to(outside)
    assert "is a link that leaves the data folder — copy the photos there" in refusal(data)
    with pytest.raises(DataError, match="is a link"):
        scan(data)


@pytest.mark.faults
def test_links_inside_the_data_folder_are_followed_and_circles_are_not(make_data, photo_id):
    data = make_data({"a": [1], "b": [2]})
    photo = data / "train" / f"{photo_id(1)}.jpg"
    photo.rename(data / "original.jpg")
    photo.symlink_to(data / "original.jpg")
    (data / "train" / "circle").symlink_to(data / "train")
    (data / "train" / "loop.jpg").symlink_to(data / "train" / "loop.jpg")
    (data / "train" / "dangling.jpg").symlink_to(data / "train" / "nothing.jpg")
    assert build_catalog(data, CONFIG)["problem"].isna().all()
    assert scan(data)["photos"] == 2


def test_a_data_folder_may_itself_be_a_link(make_data, tmp_path):
    (tmp_path / "link").symlink_to(make_data({"a": [1], "b": [2]}))
    assert build_catalog(tmp_path / "link", CONFIG)["problem"].isna().all()


# --- scan ------------------------------------------------------------------------------------------------------------


def test_scan_changes_with_every_csv_and_every_photo(make_data, photo_id):
    data = make_data({"a": [1], "b": [2]}, test=[3])
    seen = [scan(data)]
    assert scan(data) == seen[0]
    assert seen[0]["photos"] == 3
    assert seen[0]["train.csv"] == sha256_file(data / "train.csv")
    assert "train_nonlandmark.csv" not in seen[0]
    changes = [
        lambda: rewrite(data, f"id,url\n{photo_id(3)},x\n", "test.csv"),
        lambda: (data / "train" / f"{photo_id(1)}.jpg").write_bytes(b"shorter"),
        lambda: (data / "train" / f"{photo_id(1)}.jpg").rename(data / "train" / "renamed.jpg"),
        (data / "test" / f"{photo_id(3)}.jpg").unlink,
        (data / "train" / "caf\udce9.jpg").touch,  # a name that is not UTF-8
    ]
    for change in changes:
        change()
        assert scan(data) not in seen
        seen.append(scan(data))


# --- the real photos -------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_the_real_photos_make_a_whole_catalog(mini, mini_catalog):
    catalog = mini_catalog
    assert catalog["split"].value_counts().to_dict() == {"train": 4071, "test": 1970, "nonlandmark": 740}
    assert catalog["landmark_id"].nunique() == 132
    assert catalog["problem"].isna().all()
    assert extra_photos(mini, catalog) == []
    assert ((catalog["width"] == 64) & (catalog["height"] == 64)).sum() == 863 + 264 + 103
    assert np.minimum(catalog["width"], catalog["height"]).min() == 10


@pytest.mark.real
def test_the_real_photos_have_few_copies_left_and_each_group_shows_one_landmark(mini_catalog):
    catalog = mini_catalog
    grouped = catalog[catalog["duplicate_group"].duplicated(keep=False)]
    assert 20 <= grouped["duplicate_group"].nunique() <= 60  # its exact and nearest copies were taken out
    assert grouped.groupby("duplicate_group")["landmark_id"].nunique(dropna=False).max() == 1
