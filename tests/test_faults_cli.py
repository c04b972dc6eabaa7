"""Bad input from the command line: one clear message with file, row and remedy, the right exit code, nothing lost."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from engine.core.runs import Run

pytestmark = pytest.mark.faults

FIRST, SECOND = f"{0:016x}", f"{1:016x}"  # the first rows of train.csv
QUERY = f"{9999:016x}"  # the first of test.csv
TINY = ["--config", "tiny", "--set", "threads=1"]
ONE_MEMBER = ["--set", 'members=[{recipe = "tiny-frozen"}]']


def _edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def _append(path, text):
    with path.open("a", encoding="utf-8", newline="") as handle:
        handle.write(text)


def _refused(said, code, *parts):
    """The command ended in this code with these words on stderr, a hint or a list of known names, and no traceback."""
    assert said.code == code, said.err
    for part in parts:
        assert str(part) in said.err
    assert said.out == ""
    assert "Traceback" not in said.err


# ---- data folders

CSV_FAULTS = {
    "no train.csv": (lambda data: (data / "train.csv").unlink(), ["train.csv: is missing", "--data takes the folder"]),
    "empty": (lambda data: (data / "train.csv").write_bytes(b""), ["train.csv:1: the file is empty"]),
    "header only": (
        lambda data: (data / "test.csv").write_text("id,url\n"),
        ["test.csv: has a header but no rows"],
    ),
    "another header": (
        lambda data: _edit(data / "train.csv", "landmark_id", "landmark"),
        ["train.csv:1: has no column 'landmark_id' — did you mean 'landmark'?"],
    ),
    "column twice": (
        lambda data: _edit(data / "train.csv", "id,url", "id,id"),
        ["train.csv:1: column 'id' stands there 2 times"],
    ),
    "ragged": (
        lambda data: _edit(data / "train.csv", f"{SECOND},,a", f"{SECOND},a"),
        ["train.csv:3: has 2 values, the header has 3 columns", "correct those rows"],
    ),
    "open quote": (lambda data: _append(data / "train.csv", '"'), ["train.csv:52: is not CSV"]),
    "latin-1": (
        lambda data: (data / "train.csv").write_bytes("id,url,landmark_id\n0,,Köln\n".encode("latin-1")),
        ["train.csv:2: is not UTF-8"],
    ),
    "id twice": (
        lambda data: _append(data / "train.csv", f"{FIRST},,a\n"),
        [f"train.csv:52: id '{FIRST}' stands already at", "train.csv:2"],
    ),
    "two labels": (
        lambda data: _append(data / "train.csv", f"{FIRST},,b\n"),
        [f"id '{FIRST}' stands already at", "with another landmark_id"],
    ),
    "id in two splits": (
        lambda data: _append(data / "test.csv", f"{FIRST},\n"),
        [f"test.csv:16: id '{FIRST}' stands already at", "train.csv:2"],
    ),
    "id that is a path": (
        lambda data: _append(data / "train.csv", "../../etc/passwd,,a\n"),
        ["train.csv:52: id '../../etc/passwd' does not match", "data.id_pattern"],
    ),
    "formula as landmark": (
        lambda data: _append(data / "train.csv", f"{'f' * 16},,=cmd()\n"),
        ["train.csv:52: landmark_id '=cmd()' does not match"],
    ),
    "missing photo": (
        lambda data: (data / "train" / f"{FIRST}.jpg").unlink(),
        [f"train/{FIRST}.jpg: is missing", "1 photos to fetch again, or to remove from the CSVs"],
    ),
    "two photos of one id": (
        lambda data: (data / "train" / f"{FIRST}.png").write_bytes(b""),
        [f"{FIRST}.png: ", f"{FIRST}.jpg has the same id", "keep one of the two"],
    ),
    "link out of the folder": (
        lambda data: (data / "train" / "out.jpg").symlink_to("/etc/passwd"),
        ["out.jpg: is a link that leaves the data folder"],
    ),
}


@pytest.mark.parametrize("fault", CSV_FAULTS)
def test_train_zoo_refuses_a_data_folder_that_is_wrong(fault, data, tmp_path, here):
    spoil, parts = CSV_FAULTS[fault]
    spoil(data)
    said = here("train-zoo", *TINY, "--data", data, "--run", tmp_path / "run")
    _refused(said, 3, *parts)
    assert "hint: " in said.err or "did you mean" in said.err


def test_check_refuses_the_same(data, here):
    _append(data / "train.csv", f"{FIRST},,a\n")
    _refused(here("check", "--data", data), 3, f"train.csv:52: id '{FIRST}' stands already")


def test_a_data_folder_that_is_not_there_is_named(tmp_path, here):
    for command in (["train-zoo", *TINY, "--run", tmp_path / "run"], ["check"]):
        _refused(here(*command, "--data", tmp_path / "phtos"), 3, f"{tmp_path / 'phtos' / 'train.csv'}: is missing")


def test_problems_of_several_files_are_told_at_once(data, tmp_path, here):
    _append(data / "train.csv", f"{FIRST},,a\n")
    _append(data / "test.csv", f"{'e' * 16}\n")
    _edit(data / "train_nonlandmark.csv", "id,url", "image,url")
    said = here("train-zoo", *TINY, "--data", data, "--run", tmp_path / "run")
    _refused(said, 3, "train.csv:52: id", "test.csv:16: has 1 values", "train_nonlandmark.csv:1: has no column 'id'")


def test_what_is_odd_but_right_in_a_csv_is_read(data, here):
    text = (data / "train.csv").read_text(encoding="utf-8")
    text = text.replace(f"{FIRST},,a", f'{FIRST},"line one\nline two, and a comma","a"').replace("\n", "\r\n") + "\r\n"
    (data / "train.csv").write_text("\ufeff" + text, encoding="utf-8", newline="")
    said = here("check", "--data", data, "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["train photos"] == 50


# ---- broken photos


def _break_photos(data):
    """One training photo that is cut, a query that is HTML, a query that is not there."""
    cut = data / "train" / f"{FIRST}.jpg"
    cut.write_bytes(cut.read_bytes()[:400])
    queries = [row["id"] for row in csv.DictReader((data / "test.csv").read_text().splitlines())]
    (data / "test" / f"{queries[0]}.jpg").write_text("<html>404</html>")
    (data / "test" / f"{queries[1]}.jpg").unlink()
    return queries


def test_broken_photos_beyond_the_limit_are_listed_and_refused(data, tmp_path, here):
    _break_photos(data)
    run = tmp_path / "run"
    said = here("train-zoo", *TINY, "--data", data, "--run", run)
    _refused(said, 3, f"train/{FIRST}.jpg: truncated", f"test/{QUERY}.jpg: not an image",
             "2 of 77 photos cannot be used", "data.max_bad_fraction (now 0.01)")  # fmt: skip
    assert f"{run / 'bad_images.csv'}" in said.err


def test_broken_photos_below_the_limit_are_set_aside_and_the_run_goes_on(data, tmp_path, here):
    queries = _break_photos(data)
    run = tmp_path / "run"
    limit = ["--set", "data.max_bad_fraction=0.05"]
    said = here("train-zoo", *TINY, *ONE_MEMBER, *limit, "--data", data, "--run", run)
    assert said.code == 0, said.err
    assert f"3 photos cannot be used and are set aside: {run / 'bad_images.csv'}" in said.err
    with (run / "bad_images.csv").open(encoding="utf-8", newline="") as handle:
        set_aside = {row["id"]: row["reason"] for row in csv.DictReader(handle)}
    assert set_aside == {FIRST: "truncated", queries[0]: "not an image (JPEG, PNG, WEBP)", queries[1]: "missing"}

    assert here("stack", "--run", run).code == 0
    _refused(here("submit", "--run", run), 3, f"test photo {queries[0]}: not an image",
             f"test photo {queries[1]}: missing", "--allow-missing")  # fmt: skip
    assert not (run / "submission.csv").exists()

    assert here("submit", "--run", run, "--allow-missing").code == 0
    with (run / "submission.csv").open(encoding="utf-8", newline="") as handle:
        answers = {row["id"]: row["landmarks"] for row in csv.DictReader(handle)}
    assert list(answers) == queries
    assert [photo for photo, answer in answers.items() if not answer] == queries[:2]


def test_photos_that_were_mended_are_no_longer_listed(data, tmp_path, here):
    whole = (data / "train" / f"{FIRST}.jpg").read_bytes()
    run = tmp_path / "run"
    words = ["train-zoo", *TINY, "--data", data, "--run", run, "--device", "quantum"]  # ends before any training
    _break_photos(data)
    here(*words, "--set", "data.max_bad_fraction=1")
    assert (run / "bad_images.csv").exists()
    (data / "train" / f"{FIRST}.jpg").write_bytes(whole)
    for photo in (data / "test.csv").read_text().split()[1:]:
        Image.new("RGB", (20, 20), "red").save(data / "test" / f"{photo.strip(',')}.jpg")
    here(*words)
    assert not (run / "bad_images.csv").exists()


def test_check_lists_what_cannot_be_used(data, here):
    queries = _break_photos(data)
    said = here("check", "--data", data, "--json")
    assert said.code == 3
    assert {row["id"]: row["reason"] for row in json.loads(said.out)["bad"]} == {
        FIRST: "truncated",
        queries[0]: "not an image (JPEG, PNG, WEBP)",
        queries[1]: "missing",
    }
    table = here("check", "--data", data)
    assert table.code == 3
    assert f"train/{FIRST}.jpg" in table.out
    assert "truncated" in table.out


# ---- configuration

CONFIG_FAULTS = {
    "unknown preset": (["--config", "cpuu"], ["unknown preset 'cpuu' — did you mean 'cpu'"]),
    "no such file": (["--config", "mine.toml"], ["mine.toml: cannot be read (No such file or directory)"]),
    "unknown key": (["--set", "folds.cuont=3"], ["unknown key 'folds.cuont' — did you mean 'count'?"]),
    "unknown section": (["--set", "fold.count=3"], ["unknown key 'fold' — did you mean 'folds'?"]),
    "bad value": (["--set", "folds.count=-1"], ["folds.count", "greater than or equal to 2", "(got -1)"]),
    "not a number": (["--set", "stack.learning_rate=nan"], ["stack.learning_rate"]),
    "bad type": (["--set", "seed=often"], ["seed", "valid integer", "(got 'often')"]),
    "malformed": (["--set", "folds.count"], ["--set 'folds.count': wanted KEY=VALUE", "--set folds.count=3"]),
    "prevalence": (["--set", "validation.prevalence=1.5"], ["validation.prevalence", "less than 1"]),
    "unknown recipe": (
        ["--set", 'members=[{recipe = "tiny-frozn"}]'],
        ["unknown recipe 'tiny-frozn' — did you mean 'tiny-frozen'"],
    ),
    "unknown recipe key": (
        ["--set", 'members=[{recipe = "tiny-frozen", set = {"train.epoch" = 3}}]'],
        ["recipe tiny-frozen: unknown key 'train.epoch' — did you mean 'epochs'"],
    ),
    "no member": (["--set", "members=[]"], ["members", "at least 1 item"]),
    "one member twice": (
        ["--set", 'members=[{recipe = "tiny-frozen"}, {recipe = "tiny-frozen"}]'],
        ["two members are called 'tiny-frozen'", "give one of them a name"],
    ),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_train_zoo_refuses_a_configuration_that_is_wrong(fault, competition, tmp_path, here):
    words, parts = CONFIG_FAULTS[fault]
    config = [] if "--config" in words else ["--config", "tiny"]
    said = here("train-zoo", *config, *words, "--data", competition, "--run", tmp_path / "run")
    _refused(said, 2, *parts)
    assert not (tmp_path / "run" / "catalog.parquet").exists()  # told before any photo was read


def test_every_problem_of_a_configuration_is_told_at_once(competition, tmp_path, here):
    path = tmp_path / "mine.toml"
    path.write_text('sed = 1\n[folds]\ncount = 1\n[gate]\nenabled = "yes"\n[[members]]\nrecipe = 3\n', encoding="utf-8")
    said = here("train-zoo", "--config", path, "--data", competition, "--run", tmp_path / "run")
    _refused(said, 2, f"{path}: unknown key 'sed' — did you mean 'seed'?", f"{path}: folds.count",
             f"{path}: gate.enabled", f"{path}: members.0.recipe")  # fmt: skip


@pytest.mark.parametrize("text", ["a = 1\na = 2\n", "[folds\n", "\xff", "[" * 5000])
def test_a_file_that_is_not_toml_is_named(text, competition, tmp_path, here):
    path = tmp_path / "mine.toml"
    path.write_bytes(text.encode("latin-1"))
    said = here("train-zoo", "--config", path, "--data", competition, "--run", tmp_path / "run")
    _refused(said, 2, f"{path}: is not valid TOML")


def test_an_unknown_backbone_is_told_with_its_nearest_names(competition, tmp_path, here):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('name = "mine"\n[backbone]\nname = "resnet5O"\nweights = "random"\n', encoding="utf-8")
    words = [*TINY, "--set", f"members=[{{recipe = '{recipe}'}}]", "--data", competition]
    _refused(here("train-zoo", *words, "--run", tmp_path / "run"), 2, "backbone 'resnet5O'", "resnet50")


def test_a_new_run_without_photos_asks_for_them(tmp_path, here):
    _refused(here("train-zoo", "--config", "tiny", "--run", tmp_path / "run"), 2, "add --data FOLDER")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train-zo"], "No such command"),
        (["train-zoo"], "--run"),
        (["train-zoo", "--rnu", "x"], "No such option"),
        (["score", "one.csv"], "Missing argument"),
        (["cv", "--prevalence", "half"], "--prevalence"),
        (["check"], "--data"),
    ],
)
def test_wrong_usage_is_told(words, part, here):
    _refused(here(*words), 2, part)


def test_config_show_and_init_know_the_nearest_preset(tmp_path, here):
    for words in (["show", "tinny"], ["init", tmp_path / "mine.toml", "--from", "tinny"]):
        _refused(here("config", *words), 2, "unknown preset 'tinny' — did you mean 'tiny'?")


# ---- the machine


def test_a_run_that_cannot_be_made_is_named(tmp_path, competition, here):
    (tmp_path / "file").write_text("not a folder")
    run = tmp_path / "file" / "run"
    said = here("train-zoo", *TINY, "--data", competition, "--run", run)
    _refused(said, 6, f"{run}: cannot be written (Not a directory)", "choose a folder you may write to")
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_that_may_not_be_written_is_named(run, here):
    run.chmod(0o500)
    said = here("train-zoo", "--run", run)
    run.chmod(0o700)
    _refused(said, 6, f"{run}: cannot be locked (Permission denied)")


@pytest.mark.parametrize("device", ["quantum", "cuda:99", "mps:7"])
def test_a_device_that_is_not_there_is_named(device, competition, tmp_path, here):
    words = ["train-zoo", *TINY, "--data", competition, "--run", tmp_path / "run", "--device", device]
    _refused(here(*words), 6, f"device '{device}' is not", "hint: use")


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_full_disk_leaves_the_run_as_it_was(run):
    """A limit on the size of files stands for the disk: the stacker's file is larger."""
    names = ("stack/stacker.json", "manifest.json", "stack/answers.test.parquet")
    before = {name: (run / name).read_bytes() for name in names}
    limited = "import resource, runpy; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
    command = [sys.executable, "-c", limited + "runpy.run_module('engine', run_name='__main__')"]
    words = ["stack", "--run", str(run), "--set", "stack.trees=30"]
    ended = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 6, ended.stderr
    assert "disk full or file too large" in ended.stderr
    assert "run the same command again; what was finished is kept" in ended.stderr
    assert {name: (run / name).read_bytes() for name in names} == before
    assert not list(run.rglob("*.unfinished"))


# ---- files of a run


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"schema_version": 99}', b'{"schema_version": 1}', b"\xff\xfe"]
)
def test_a_damaged_manifest_is_refused_by_every_stage(content, run, here):
    (run / "manifest.json").write_bytes(content)
    for words in (["train-zoo"], ["stack"], ["submit"], ["leaderboard"]):
        _refused(here(*words, "--run", run), 4, f"{run / 'manifest.json'}: ")


def test_a_damaged_configuration_of_a_run_is_named(run, here):
    _edit(run / "config.toml", "count = 2", "count = 1")
    _refused(here("train-zoo", "--run", run), 2, f"{run / 'config.toml'}: folds.count")


def test_a_run_whose_photos_have_gone_names_their_folder(data, tmp_path, here):
    run = tmp_path / "run"
    words = ["train-zoo", *TINY, "--data", data, "--run", run, "--device", "quantum"]  # ends before any training
    assert here(*words).code == 6
    data.rename(tmp_path / "elsewhere")
    _refused(here("train-zoo", "--run", run), 3, f"{data / 'train.csv'}: is missing")
    assert Run(run).find("catalog.parquet") is not None


# ---- submissions and solutions

GOOD_ROW = f"{QUERY},a 0.5"
SUBMISSION_FAULTS = {
    "empty file": ("", ["submission.csv:1: the file is empty"]),
    "another header": ("id,landmark\n" + GOOD_ROW, ["has no column 'landmarks' — did you mean"]),
    "further column": (f"id,landmarks,x\n{GOOD_ROW},1\n", ["wanted only id,landmarks"]),
    "missing ids": ("id,landmarks\n" + GOOD_ROW, ["13 ids of", "test.csv have no row", f"{9998:016x}"]),
    "unknown id": (f"id,landmarks\n{'f' * 16},\n", ["1 ids are not in", f"{'f' * 16} (line 2)"]),
    "id twice": (f"id,landmarks\n{GOOD_ROW}\n{GOOD_ROW}\n", [f"1 ids stand there more than once: {QUERY} (line 3)"]),
    "NaN": (f"id,landmarks\n{QUERY},a nan\n", ["submission.csv:2: confidence 'nan' is not a plain number"]),
    "infinity": (f"id,landmarks\n{QUERY},a inf\n", ["submission.csv:2: confidence 'inf' is not a plain number"]),
    "overflow": (f"id,landmarks\n{QUERY},a 1e999\n", ["submission.csv:2: confidence '1e999'"]),
    "subnormal": (f"id,landmarks\n{QUERY},a 1e-320\n", ["submission.csv:2: confidence '1e-320'"]),
    "decimal comma": (f'id,landmarks\n{QUERY},"a 0,5"\n', ["submission.csv:2: confidence '0,5'"]),
    "unquoted comma": (f"id,landmarks\n{QUERY},a 0,5\n", ["submission.csv:2: has 3 values"]),
    "unknown landmark": (f"id,landmarks\n{QUERY},zz 0.5\n", ["landmark that training never saw: zz"]),
    "two answers": (f"id,landmarks\n{QUERY},a 0.5 b 0.4\n", ["submission.csv:2: 'a 0.5 b 0.4' is not one answer"]),
    "no confidence": (f"id,landmarks\n{QUERY},a\n", ["submission.csv:2: 'a' is not one answer"]),
    "formula": (f"id,landmarks\n{QUERY},=cmd() 1\n", ["submission.csv:2: '=cmd() 1' begins like a spreadsheet"]),
    "not UTF-8": (f"id,landmarks\n{QUERY},\udcff 1\n", ["submission.csv:2: is not UTF-8"]),
}


@pytest.mark.parametrize("fault", SUBMISSION_FAULTS)
def test_check_submission_refuses_what_breaks_the_rules(fault, competition, tmp_path, here):
    text, parts = SUBMISSION_FAULTS[fault]
    path = tmp_path / "submission.csv"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    _refused(here("check-submission", path, "--data", competition), 5, *parts)


@pytest.mark.parametrize("fault", sorted(SUBMISSION_FAULTS.keys() - {"unknown landmark"}))
def test_score_refuses_the_same(fault, competition, tmp_path, here):
    text, _ = SUBMISSION_FAULTS[fault]
    path = tmp_path / "submission.csv"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    _refused(here("score", path, competition / "solution.csv"), 5, path)


def test_every_problem_of_a_submission_is_told_at_once(competition, tmp_path, here):
    path = tmp_path / "submission.csv"
    path.write_text(f"id,landmarks\n{QUERY},a nan\n{9998:016x},b\n{'f' * 16},zz 1\n")
    _refused(here("check-submission", path, "--data", competition), 5, "submission.csv:2: ", "submission.csv:3: ",
             "12 ids of", "1 ids are not in", "zz of", "engine submit")  # fmt: skip


def test_a_submission_that_is_not_there_is_named(competition, tmp_path, here):
    for words in (
        ["check-submission", tmp_path / "no.csv"],
        ["score", tmp_path / "no.csv", competition / "solution.csv"],
    ):
        _refused(here(*words), 5, f"{tmp_path / 'no.csv'}: cannot be read (No such file or directory)")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["solution.csv:1: the file is empty"]),
        ("id,truth\n1,a\n", ["solution.csv:1: has no column 'landmarks'"]),
        (f"id,landmarks\n{QUERY},a b\n", ["solution.csv:2: 'a b' is not one landmark id"]),
        (f"id,landmarks\n{QUERY},a\n{QUERY},b\n", [f"solution.csv:3: id '{QUERY}' stands there a second time"]),
        (f"id,landmarks\n{QUERY},a\n", ["13 ids are not in", "solution.csv"]),
    ],
)
def test_score_refuses_a_solution_that_is_wrong(text, parts, finished_run, tmp_path, here):
    solution = tmp_path / "solution.csv"
    solution.write_text(text)
    _refused(here("score", finished_run.root / "submission.csv", solution), 5, *parts)


def test_a_solution_without_any_landmark_cannot_be_scored(finished_run, tmp_path, here):
    ids = [row["id"] for row in csv.DictReader((finished_run.root / "submission.csv").read_text().splitlines())]
    solution = tmp_path / "solution.csv"
    solution.write_text("id,landmarks\n" + "".join(f"{photo},\n" for photo in ids))
    _refused(here("score", finished_run.root / "submission.csv", solution), 3, "landmark")


# ---- exit codes and streams of a real process


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["train-zoo", "--config", "cpuu", "--run", "run"], 2),
        (["train-zoo", "--config", "tiny", "--data", "nothing", "--run", "run"], 3),
        (["submit", "--run", "nothing"], 4),
        (["check-submission", "nothing.csv"], 5),
        (["train-zoo", "--config", "tiny", "--data", "nothing", "--run", "/dev/null/run"], 6),
    ],
)
def test_a_process_ends_in_the_exit_code_of_its_error(words, code, tmp_path, apart):
    said = apart(*words, cwd=tmp_path)
    _refused(said, code)
    assert said.err.startswith("error: ")
    assert "hint: " in said.err or "did you mean" in said.err


@pytest.mark.parametrize("words", [["--config", "cpuu"], ["--config", "tiny", "--data", "nothing"]])
def test_a_mistake_is_told_before_torch_is_imported(words, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "engine", "train-zoo", "--run", str(tmp_path / "run"), *words]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert ended.returncode in (2, 3)
    assert "pandas" in imported
    assert "torch" not in imported
