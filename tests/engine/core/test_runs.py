"""A run resumes by content: what was made from the same inputs and is whole stays, everything else is named."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.errors import ArtifactError, ResourceError
from engine.core.runs import MANIFEST, Run, describe_changes
from engine.core.storage import UNFINISHED, read_json, sha256_file, sha256_json, write_json, write_text
from engine.core.tables import FOLDS

INPUTS = {"folds.count": 5, "catalog": "ab" * 32, "views": ["plain", "flip"]}
TRAIN = "engine train-zoo"
json_inputs = st.dictionaries(
    st.text(max_size=5), st.none() | st.booleans() | st.integers() | st.text(max_size=5), max_size=5
)


def _made(root: Path, name: str = "zoo/a/weights.bin", content: str = "w" * 1000) -> Run:
    run = Run(root, create=True)
    write_text(run.path(name), content)
    run.record(name, kind="weights", version=1, inputs=INPUTS, facts={"seconds": 1.5})
    return run


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# ---- the manifest


def test_what_was_recorded_is_found_by_another_process(tmp_path):
    path = _made(tmp_path).path("zoo/a/weights.bin")
    run = Run(tmp_path)
    entry = run.find("zoo/a/weights.bin")
    assert (entry.kind, entry.schema_version, entry.bytes, entry.inputs) == ("weights", 1, 1000, INPUTS)
    assert entry.sha256 == sha256_file(path) == run.hash_of("zoo/a/weights.bin", made_by=TRAIN)
    assert entry.facts == {"seconds": 1.5}
    assert run.verified("zoo/a/weights.bin", made_by=TRAIN) == path


def test_names_are_listed_by_prefix_in_order(tmp_path):
    for name in ("zoo/b", "zoo/a", "folds"):
        run = _made(tmp_path, name)
    assert run.names("zoo/") == ["zoo/a", "zoo/b"]
    assert Run(tmp_path).names() == ["folds", "zoo/a", "zoo/b"]


def test_the_same_artifacts_give_the_same_manifest_whatever_their_order(tmp_path):
    for folder, names in (("one", "ab"), ("two", "ba")):
        for name in names:
            _made(tmp_path / folder, name)
    assert (tmp_path / "one" / MANIFEST).read_bytes() == (tmp_path / "two" / MANIFEST).read_bytes()


def test_a_forgotten_artifact_is_gone_from_disk_and_manifest(tmp_path):
    _made(tmp_path, "a").forget("a")
    assert not (tmp_path / "a").exists()
    assert Run(tmp_path).names() == []


def test_a_table_of_a_run_comes_back_and_is_entered_with_its_schema(tmp_path):
    folds = pd.DataFrame({"id": ["0012345678901234", "nan"], "fold": [0, 1]})
    Run(tmp_path, create=True).save_table("folds.parquet", folds, FOLDS, INPUTS)
    run = Run(tmp_path)
    assert (run.find("folds.parquet").kind, run.find("folds.parquet").schema_version) == ("folds", 1)
    assert run.load_table("folds.parquet", FOLDS, made_by=TRAIN).to_dict("list") == folds.to_dict("list")


@pytest.mark.faults
def test_every_flipped_bit_of_a_table_is_found_before_it_is_read(tmp_path):
    Run(tmp_path, create=True).save_table("folds.parquet", pd.DataFrame({"id": ["a"], "fold": [0]}), FOLDS, INPUTS)
    content = (tmp_path / "folds.parquet").read_bytes()
    for position in range(0, len(content), 11):
        flipped = bytearray(content)
        flipped[position] ^= 1 << (position % 8)
        (tmp_path / "folds.parquet").write_bytes(flipped)
        with pytest.raises(ArtifactError, match="damaged or edited"):
            Run(tmp_path).load_table("folds.parquet", FOLDS, made_by=TRAIN)


@pytest.mark.faults
def test_a_folder_that_is_no_run_is_refused_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(ArtifactError, match=r"is not a run \(no manifest\.json\) — start with 'engine train-zoo --run"):
        Run(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.faults
def test_a_run_below_a_file_is_a_resource_error(tmp_path):
    (tmp_path / "file").write_text("here first")
    with pytest.raises(ResourceError, match="cannot be written"):
        Run(tmp_path / "file" / "run", create=True)


@pytest.mark.faults
@pytest.mark.parametrize(
    "rest",
    [{}, {"artifacts": []}, {"artifacts": {"a": None}}, {"artifacts": {"a": {"kind": "x", "colour": "red"}}}],
)
def test_a_manifest_with_broken_entries_is_an_artifact_error(tmp_path, rest):
    write_json(tmp_path / MANIFEST, {"schema_version": 1} | rest)
    with pytest.raises(ArtifactError, match=r"manifest\.json: is damaged"):
        Run(tmp_path)


@pytest.mark.faults
def test_a_manifest_cut_anywhere_is_an_artifact_error(tmp_path):
    _made(tmp_path)
    content = (tmp_path / MANIFEST).read_bytes().rstrip()
    for length in range(0, len(content), 29):
        (tmp_path / MANIFEST).write_bytes(content[:length])
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            Run(tmp_path)


@pytest.mark.faults
def test_a_manifest_of_another_version_is_refused_with_both_versions(tmp_path):
    _made(tmp_path)
    write_json(tmp_path / MANIFEST, read_json(tmp_path / MANIFEST) | {"schema_version": 9})
    with pytest.raises(ArtifactError, match="schema version 9, this engine reads 1"):
        Run(tmp_path)


# ---- fresh or not


def test_an_artifact_is_fresh_while_inputs_and_bytes_agree(tmp_path):
    run = _made(tmp_path)
    assert run.is_fresh("zoo/a/weights.bin", INPUTS)
    assert Run(tmp_path).is_fresh("zoo/a/weights.bin", dict(reversed(INPUTS.items())))
    assert not run.is_fresh("zoo/b/weights.bin", INPUTS)


def test_an_input_given_as_a_tuple_is_still_fresh_when_it_comes_back_as_a_list(tmp_path):
    _made(tmp_path)
    assert Run(tmp_path).is_fresh("zoo/a/weights.bin", INPUTS | {"views": ("plain", "flip")})


def test_facts_are_never_compared(tmp_path):
    run = _made(tmp_path)
    run.record("zoo/a/weights.bin", kind="weights", version=1, inputs=INPUTS, facts={"seconds": 99})
    assert Run(tmp_path).is_fresh("zoo/a/weights.bin", INPUTS)


def test_changed_inputs_are_described_one_by_one(tmp_path):
    _made(tmp_path)
    run = Run(tmp_path)
    changed = {"folds.count": 3, "catalog": "cd" * 32, "views": ["plain", "flip"], "seed": 0}
    assert not run.is_fresh("zoo/a/weights.bin", changed)
    assert run.changes("zoo/a/weights.bin", changed) == [
        "catalog: abababababab… -> cdcdcdcdcdcd…",
        "folds.count: 5 -> 3",
        "seed: (absent) -> 0",
    ]
    assert run.changes("zoo/b/weights.bin", changed) == []


@given(inputs=json_inputs)
@settings(deadline=None, max_examples=30)
def test_nothing_changed_describes_nothing(inputs):
    assert describe_changes(inputs, dict(reversed(inputs.items()))) == []


@given(old=json_inputs, new=json_inputs)
@settings(deadline=None, max_examples=50)
def test_a_change_is_seen_from_both_sides(old, new):
    there, back = describe_changes(old, new), describe_changes(new, old)
    assert len(there) == len(back)
    assert (not there) == (sha256_json(old) == sha256_json(new))


@pytest.mark.faults
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "longer"])
def test_damaged_bytes_are_an_artifact_error_that_names_the_way_back(tmp_path, damage):
    path = _made(tmp_path).path("zoo/a/weights.bin")
    if damage == "flip":
        _flip_a_bit(path)
    else:
        path.write_text({"cut": "w" * 500, "empty": "", "longer": "w" * 1001}[damage])
    run = Run(tmp_path)
    assert not run.is_fresh("zoo/a/weights.bin", INPUTS)
    with pytest.raises(ArtifactError, match="damaged or edited — delete it and run 'engine train-zoo' again"):
        run.verified("zoo/a/weights.bin", made_by=TRAIN)


@pytest.mark.faults
def test_damage_is_found_after_the_bytes_were_verified_once(tmp_path):
    run = _made(tmp_path)
    path = run.verified("zoo/a/weights.bin", made_by=TRAIN)
    _flip_a_bit(path)
    os.utime(path, ns=(0, 0))  # a clock that ticks coarsely cannot hide the write from this test
    with pytest.raises(ArtifactError, match="damaged or edited"):
        run.hash_of("zoo/a/weights.bin", made_by=TRAIN)


@pytest.mark.faults
def test_a_file_that_is_gone_or_was_never_made_names_its_command(tmp_path):
    run = _made(tmp_path)
    run.path("zoo/a/weights.bin").unlink()
    for name in ("zoo/a/weights.bin", "zoo/never"):
        assert not run.is_fresh(name, INPUTS)
        with pytest.raises(ArtifactError, match="has not been made yet — run 'engine train-zoo' first"):
            run.verified(name, made_by=TRAIN)


@pytest.mark.faults
def test_a_file_written_again_but_not_recorded_is_not_trusted(tmp_path):
    run = _made(tmp_path)
    write_text(run.path("zoo/a/weights.bin"), "v" * 1000)  # killed before the manifest was saved
    assert not Run(tmp_path).is_fresh("zoo/a/weights.bin", INPUTS)


# ---- the lock

HOLD_THE_LOCK = """
import sys
from pathlib import Path
from engine.core.runs import Run
with Run(Path(sys.argv[1]), create=True).locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def _another_process_holds(root):
    command = [sys.executable, "-c", HOLD_THE_LOCK, root]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"locked\n"
            yield holder
        finally:
            holder.kill()


@pytest.mark.faults
def test_a_run_held_by_a_live_process_is_refused_with_its_pid(tmp_path):
    with _another_process_holds(tmp_path) as holder:
        with (
            pytest.raises(ResourceError, match=rf"another process \(pid {holder.pid}\)"),
            Run(tmp_path, create=True).locked(),
        ):
            pass
        holder.communicate()  # it ends by itself
        with Run(tmp_path, create=True).locked():
            pass


@pytest.mark.faults
@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_the_lock_of_a_killed_process_is_recovered(tmp_path):
    with _another_process_holds(tmp_path) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (tmp_path / ".lock.pid").read_text() == f"{holder.pid}\n"
        with Run(tmp_path, create=True).locked():
            assert (tmp_path / ".lock.pid").read_text() == f"{os.getpid()}\n"


def test_the_lock_is_released_when_the_work_fails(tmp_path):
    run = Run(tmp_path, create=True)
    with pytest.raises(TimeoutError, match="of the work, not of the lock"), run.locked():
        raise TimeoutError("of the work, not of the lock")
    with run.locked():
        pass


def test_what_another_command_recorded_since_is_kept(tmp_path):
    early = Run(tmp_path, create=True)
    _made(tmp_path, "theirs")
    with early.locked():
        write_text(early.path("ours"), "text")
        early.record("ours", kind="text", version=1, inputs={})
    assert Run(tmp_path).names() == ["ours", "theirs"]


def test_half_files_of_a_killed_command_are_swept_up_and_nothing_else(tmp_path):
    run = _made(tmp_path)
    run.path(f"zoo/a/.weights.bin.1{UNFINISHED}").write_text("half")
    run.path("zoo/a/.hidden.tmp").write_text("of another program")
    with run.locked():
        pass
    assert {path.name for path in run.path("zoo/a").iterdir()} == {"weights.bin", ".hidden.tmp"}


@pytest.mark.faults
def test_a_run_that_cannot_be_locked_is_a_resource_error(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ResourceError, match="cannot be locked"), Run(tmp_path, create=True).locked():
        pass
