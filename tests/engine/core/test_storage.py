"""A file is whole or it is not there: under kill -9, on a full disk, in a folder that cannot be written."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import ArtifactError, ResourceError
from engine.core.storage import (
    atomic_path,
    make_folder,
    read_json,
    sha256_file,
    sha256_json,
    write_json,
    write_text,
)

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of the bytes "abc", as FIPS 180-2 prints it

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
json_objects = st.dictionaries(st.text(), json_values, max_size=4)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _write_then_fail(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ValueError


def test_a_write_makes_the_missing_folders_and_leaves_one_file(tmp_path):
    write_text(tmp_path / "a folder" / "übung" / "file.txt", "text")
    assert _names(tmp_path / "a folder" / "übung") == ["file.txt"]


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None, max_examples=30)
def test_text_is_on_disk_byte_for_byte(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "text.csv"
    write_text(path, text)
    assert path.read_bytes() == text.encode()


@given(value=json_objects)
@settings(deadline=None, max_examples=50)
def test_json_comes_back_equal_with_its_keys_in_order(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value
    assert list(read_json(path)) == list(value)


def test_a_number_that_is_none_never_reaches_a_json_file(tmp_path):
    write_json(tmp_path / "facts.json", {"loss": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "facts.json", {"loss": math.nan})
    assert read_json(tmp_path / "facts.json") == {"loss": 1.5}


def test_an_error_while_writing_keeps_the_old_file_and_no_temporary_one(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(ValueError):
        _write_then_fail(tmp_path / "file")
    assert _names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.faults
@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe", b"[1, 2]", b"3"])
def test_json_that_is_cut_or_no_object_is_an_artifact_error_with_its_path(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"manifest\.json: is not"):
        read_json(tmp_path / "manifest.json")


@pytest.mark.faults
def test_missing_json_is_an_artifact_error(tmp_path):
    with pytest.raises(ArtifactError, match="is missing"):
        read_json(tmp_path / "manifest.json")


def test_sha256_is_the_published_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == ABC


@given(value=json_objects)
@settings(deadline=None, max_examples=50)
def test_a_settings_hash_ignores_the_order_of_keys_and_survives_json(value):
    turned = dict(reversed(value.items()))
    assert sha256_json(turned) == sha256_json(value) == sha256_json(json.loads(json.dumps(value)))


# ---- the machine says no


@pytest.mark.faults
def test_a_path_below_a_file_is_a_resource_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("here first")
    for target in (tmp_path / "file" / "out.txt", tmp_path / "file" / "folder" / "out.txt"):
        with pytest.raises(ResourceError, match="cannot be written") as caught:
            write_text(target, "text")
        assert str(target.parent) in caught.value.message
    with pytest.raises(ResourceError, match="cannot be written"):
        make_folder(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "here first"


@pytest.mark.faults
def test_a_folder_in_the_way_is_a_resource_error_and_stays(tmp_path):
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(ResourceError, match=r"out\.csv: cannot be written"):
        write_text(tmp_path / "out.csv", "text")
    assert _names(tmp_path) == ["out.csv"]


FULL_DISK = """
import resource, sys
from pathlib import Path
from engine.core.errors import ResourceError
from engine.core.storage import write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
try:
    write_text(Path(sys.argv[1]), "new" * 100_000)
except ResourceError as error:
    print(error.exit_code, error)
"""


@pytest.mark.faults
@pytest.mark.skipif(os.name != "posix", reason="needs RLIMIT_FSIZE")
def test_a_full_disk_is_a_resource_error_that_keeps_the_old_file_and_no_temporary_one(tmp_path):
    write_text(tmp_path / "file", "old")
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "file"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"6 {tmp_path / 'file'}: disk full")
    assert "free some space" in done.stdout
    assert _names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


WRITE_FOREVER = """
import itertools, sys
from pathlib import Path
from engine.core.storage import write_text
for letter in itertools.cycle("ab"):
    write_text(Path(sys.argv[1]), letter * 4_000_000)
    print(letter, flush=True)
"""


@pytest.mark.faults
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_file_is_whole_after_each_of_twelve_kills_while_it_is_written(tmp_path):
    path = tmp_path / "file"
    for delay in np.random.default_rng(0).uniform(0, 0.02, size=12):  # seconds: one write takes about ten milliseconds
        with subprocess.Popen([sys.executable, "-c", WRITE_FOREVER, path], stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()  # it is at work
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
        assert writer.returncode == -signal.SIGKILL
        assert path.read_bytes() in (b"a" * 4_000_000, b"b" * 4_000_000)
    write_text(path, "and can be written again")
    assert path.read_text() == "and can be written again"
