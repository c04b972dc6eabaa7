"""What stands where in the pictures, pixel by pixel; how they look was looked at."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageColor

from zoo.pictures import AFTER, BEFORE, batch_picture, class_sizes_picture, neighbours_picture

COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]], dtype=torch.uint8)
PHOTOS = COLOURS[:, :, None, None].expand(5, 3, 4, 4)


def _places(picture, colour):
    """Rows and columns of the pixels of a colour."""
    return np.nonzero((np.asarray(picture) == ImageColor.getrgb(colour)).all(axis=-1))


# ---- batch


def test_photos_stand_in_rows_as_squares_of_the_tile():
    picture = batch_picture(PHOTOS, ["x"] * 5, columns=2, tile=40)
    tops, lefts = [], []
    for colour in COLOURS.tolist():
        rows, columns = _places(picture, "#{:02x}{:02x}{:02x}".format(*colour))
        assert len(rows) == 40 * 40
        tops.append(rows.min())
        lefts.append(columns.min())
    assert tops[0] == tops[1] < tops[2] == tops[3] < tops[4]
    assert lefts[0] == lefts[2] == lefts[4] < lefts[1] == lefts[3]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_pixels_are_enlarged_as_they_are(dtype):
    photo = torch.arange(48, dtype=dtype).reshape(1, 3, 4, 4) * 5
    picture = np.asarray(batch_picture(photo, [""], tile=16))
    expected = photo[0].repeat_interleave(4, 1).repeat_interleave(4, 2).permute(1, 2, 0).numpy()
    side = (picture.shape[1] - 16) // 2
    assert np.array_equal(picture[side : side + 16, side : side + 16], expected)


def test_floats_beyond_the_range_of_a_photo_are_clipped():
    picture = batch_picture(torch.full((1, 3, 4, 4), -7.0), [""], tile=16)
    assert len(_places(picture, "#000000")[0]) == 256
    assert np.asarray(batch_picture(torch.full((1, 3, 4, 4), 300.0), [""], tile=16)).min() == 255


def test_a_label_is_written_below_its_photo_and_cut_at_its_tile():
    white = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    picture = np.asarray(batch_picture(white, ["a label much wider than its photo", ""], tile=64)).min(axis=-1)
    rows, columns = np.nonzero(picture < 128)
    assert rows.min() > 64
    assert 50 < columns.max() < picture.shape[1] / 2


@settings(deadline=None, max_examples=60)
@given(label=st.text(max_size=30))
def test_a_label_may_be_any_text(label):
    assert batch_picture(PHOTOS[:1], [label], tile=32).size == batch_picture(PHOTOS[:1], [""], tile=32).size


@pytest.mark.parametrize("label", ["\ud800", "\x00", "two\nlines", "日本語", "عربى", "שלום", "👩‍👩‍👧", "a" * 10_000])
def test_a_label_that_is_hard_to_write_makes_the_picture_no_larger(label):
    assert batch_picture(PHOTOS[:1], [label], tile=32).size == batch_picture(PHOTOS[:1], [""], tile=32).size


@pytest.mark.parametrize("count", [4, 6])
def test_each_photo_needs_a_label(count):
    with pytest.raises(ValueError, match="zip"):
        batch_picture(PHOTOS, ["x"] * count)


# ---- neighbours

RED, BLUE = np.full((20, 40, 3), (255, 0, 0), np.uint8), np.full((80, 40, 3), (0, 0, 255), np.uint8)


def test_neighbours_stand_in_a_row_whole_and_in_their_own_shape():
    picture = neighbours_picture([RED, BLUE], [["a"], ["b"]], tile=60)
    for colour, height, width in (("#ff0000", 30, 60), ("#0000ff", 60, 30)):
        rows, columns = _places(picture, colour)
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (height, width)
    assert _places(picture, "#ff0000")[1].max() < _places(picture, "#0000ff")[1].min()


def test_the_first_photo_alone_is_framed():
    picture = neighbours_picture([RED, BLUE], [[""], [""]], tile=60)
    rows, columns = _places(picture, AFTER)
    reds = _places(picture, "#ff0000")
    assert columns.min() < reds[1].min()
    assert reds[1].max() < columns.max() < _places(picture, "#0000ff")[1].min()
    assert rows.min() < reds[0].min()


def test_lines_are_written_below_each_other_and_cut_at_their_tile():
    white = np.full((9, 9, 3), 255, np.uint8)
    picture = np.asarray(neighbours_picture([white, white], [["wider than its photo"] * 2, [""]], tile=64)).copy()
    picture[:80] = 255  # the frame
    rows, columns = np.nonzero(picture.min(axis=-1) < 128)
    assert columns.max() < picture.shape[1] / 2
    assert np.diff(np.unique(rows)).max() > 3


def test_each_neighbour_needs_its_lines():
    with pytest.raises(ValueError, match="zip"):
        neighbours_picture([RED, BLUE], [["a"]], tile=60)


# ---- class sizes


def _heights(picture, colour, classes):
    """The row of a curve in the middle of each class's step."""
    rows, columns = _places(picture, colour)
    left, right = columns.min(), columns.max()
    middles = left + (np.arange(classes) + 0.5) * (right - left) / classes
    return [rows[columns == round(middle)].mean() for middle in middles]


def test_sizes_fall_from_left_to_right_by_equal_factors():
    before = np.array([10, 1000, 1, 100])
    heights = _heights(class_sizes_picture(before, before), BEFORE, 4)
    np.testing.assert_allclose(np.diff(heights), np.diff(heights)[0], atol=1)  # a factor of ten is one distance
    assert heights[0] < heights[-1]  # rows count from the top


def test_the_curve_of_what_is_shown_belongs_to_the_same_classes():
    before, after = np.array([10, 1000, 1, 100]), np.array([900.0, 9.0, 90.0, 90.0])
    heights = _heights(class_sizes_picture(before, after), AFTER, 4)
    assert heights[0] > heights[1]  # of the largest class least is shown
    assert heights[1] == heights[3]
    assert heights[2] == min(heights)


def test_equally_large_classes_are_drawn_as_their_mean():
    spread = class_sizes_picture(np.array([100, 4, 4]), np.array([100.0, 10.0, 30.0]))
    assert spread.tobytes() == class_sizes_picture(np.array([100, 4, 4]), np.array([100.0, 20.0, 20.0])).tobytes()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([1], [1]),
        ([5, 5], [0, 0]),
        ([3, 0], [0.01, 2]),
        ([1] * 7, [14_951] * 7),
        (list(range(1, 15_000)), [1] * 14_999),
    ],
    ids=["one photo", "nothing shown", "rarely shown", "all alike", "the challenge"],
)
def test_extreme_sizes_make_a_picture_with_both_curves(before, after):
    picture = class_sizes_picture(np.array(before), np.array(after))
    assert picture.size == (900, 520)
    for colour in (BEFORE, AFTER):
        rows, columns = _places(picture, colour)
        drawn = rows > 60  # below the legend
        assert np.ptp(columns[drawn]) > 750
