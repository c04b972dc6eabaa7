"""The command line, from help to score: what it prints where, and what it tells to do next."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from typing import get_args

import pandas as pd
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from engine.boards import STUDIED, TABLES
from engine.cli import app
from engine.core.config import StackMethod, load_config, named_toml_files
from engine.core.runs import Run
from engine.pipeline.artifacts import STUDIES

COMMANDS = [
    "train-zoo", "stack", "leaderboard", "submit", "cv", "demo", "check-submission", "score", "check",
    "config show", "config init", "few-shot", "show-batch", "zoo list", "zoo show", "explain",
]  # fmt: skip
METHODS = get_args(StackMethod)
PRESETS = sorted(named_toml_files("engine.presets"))
HEAVY = ("torch", "timm", "kornia", "lightgbm", "sklearn", "pandas", "numpy", "pyarrow", "PIL")


def _column(path, name):
    with path.open(encoding="utf-8", newline="") as handle:
        return [row[name] for row in csv.DictReader(handle)]


# ---- help


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_says_what_it_does_and_shows_an_example(command):
    shown = CliRunner().invoke(app, [*command.split(), "--help"])
    assert shown.exit_code == 0
    assert f"Example: engine {command}" in shown.output


def test_help_lists_every_command():
    shown = CliRunner().invoke(app, ["--help"])
    listed = re.findall(r"^│ ([a-z][a-z-]+) ", shown.output, flags=re.MULTILINE)
    assert {command.split()[0] for command in COMMANDS} == set(listed)


@pytest.mark.parametrize("command", COMMANDS)
def test_example_of_every_command_can_be_parsed(command):
    found = get_command(app)
    for name in command.split():
        found = found.commands[name]
    words = found.epilog.partition(f"engine {command}")[2].partition(" > ")[0].split()
    found.make_context(command, words)  # raises for an unknown option or a missing one


def test_help_imports_nothing_heavy():
    command = [sys.executable, "-X", "importtime", "-m", "engine", "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in ended.stderr.splitlines()}
    assert "typer" in imported
    assert imported.isdisjoint(HEAVY)


def test_version_is_printed(here):
    assert here("--version").out == "landmark-engine 0.1.0\n"


def test_no_command_shows_the_help(here):
    said = here()
    assert said.code == 2
    assert "train-zoo" in said.out + said.err


# ---- the whole job


def test_every_stage_tells_the_next_command(finished_run):
    root = str(finished_run.root)
    assert finished_run.said["train-zoo"].next_command == ["stack", "--oof", "--run", root]
    assert finished_run.said["stack"].next_command == ["submit", "--run", root]


def test_data_goes_to_stdout_and_talk_to_stderr(finished_run):
    said = finished_run.said
    assert said["train-zoo"].out == ""
    assert said["stack"].out.startswith("Cross-validated GAP, 2 folds\n")
    assert "measure photos: 78/78 photos" in said["train-zoo"].err
    assert "stack: answered 14 test queries" in said["stack"].err
    assert "submission.csv: valid, 14 rows" in said["submit"].out


def test_progress_tells_of_every_training(finished_run):
    for member in ("tiny-frozen", "tiny-scratch"):
        for fold in (1, 2):
            assert re.search(
                rf"^{member} fold {fold}/2: .*validation GAP 0\.", finished_run.said["train-zoo"].err, re.MULTILINE
            )


def test_submission_has_every_test_id_once_in_the_order_of_test_csv(finished_run):
    assert _column(finished_run.root / "submission.csv", "id") == _column(finished_run.data / "test.csv", "id")


def test_submission_is_written_with_unix_newlines_and_full_precision(finished_run):
    content = (finished_run.root / "submission.csv").read_bytes()
    assert b"\r" not in content
    for answer in filter(None, _column(finished_run.root / "submission.csv", "landmarks")):
        confidence = answer.partition(" ")[2]
        assert repr(float(confidence)) == confidence


def test_a_second_start_says_what_to_do_next_and_prints_the_same_leaderboard(finished_run, run, here):
    assert here("train-zoo", "--run", run).next_command[:2] == ["stack", "--oof"]
    assert here("stack", "--oof", "--run", run).out == finished_run.said["stack"].out


def test_stack_without_oof_answers_the_test_set_and_shows_no_leaderboard(run, here):
    (run / "stack" / "answers.test.parquet").unlink()
    said = here("stack", "--run", run)
    assert (said.code, said.out) == (0, "")
    assert (run / "stack" / "answers.test.parquet").exists()


def test_submit_json_is_the_report(run, here):
    said = here("submit", "--run", run, "--json")
    report = json.loads(said.out)
    assert report["rows"] == 14
    assert report["file"] == str(run / "submission.csv")


# ---- leaderboard and cv


def test_leaderboard_rows_are_members_baselines_and_the_stack(finished_run, here):
    rows = json.loads(here("leaderboard", "--run", finished_run.root, "--json").out)
    kinds = {row["name"]: row["kind"] for row in rows}
    assert {name for name, kind in kinds.items() if kind == "member"} == {"tiny-frozen", "tiny-scratch"}
    assert {name for name, kind in kinds.items() if kind == "stack"} == {"stack"}
    assert {name for name, kind in kinds.items() if kind == "method"} == set(METHODS)
    assert {"mean", "logistic", "lambdarank"} <= {name for name, kind in kinds.items() if kind == "baseline"}
    assert set(kinds.values()) == {"member", "baseline", "method", "stack"}
    for row in rows:
        assert 0 <= row["gap_low"] <= row["gap"] <= row["gap_high"] <= 1
        assert row["fit_seconds"] >= 0


def test_leaderboard_is_the_one_that_stack_prints(finished_run, here):
    table = here("leaderboard", "--run", finished_run.root)
    assert table.out == finished_run.said["stack"].out
    again = here("stack", "--oof", "--json", "--run", finished_run.root)
    assert again.out == here("leaderboard", "--json", "--run", finished_run.root).out


def test_leaderboard_tells_what_views_are_worth(run, here):
    said = here("leaderboard", "--run", run, "--tta", "none,flip", "--json")
    rows = json.loads(said.out)
    assert [row["views"] for row in rows[:2]] == ["none", "flip"]
    assert rows[0]["gain"] is None
    assert rows[1]["gain"]["estimate"] == pytest.approx(rows[1]["gap"] - rows[0]["gap"])
    table = here("leaderboard", "--run", run, "--tta", "none,flip")
    assert f"{rows[1]['gap']:.4f}" in table.out
    assert "over none" in table.out


def _table(here, root, name):
    """A table as JSON, and as it is printed."""
    said = [here("leaderboard", "--run", root, "--table", name, *words) for words in (["--json"], [])]
    assert [each.code for each in said] == [0, 0], said[0].err + said[1].err
    return json.loads(said[0].out), said[1].out


@pytest.fixture(scope="module")
def studied(finished_run, tmp_path_factory, here):
    """A copy of the finished run with every study made, and what was said when each was made."""
    root = shutil.copytree(finished_run.root, tmp_path_factory.mktemp("studied") / "run")
    return root, {name: here("leaderboard", "--run", root, "--table", name) for name in STUDIED}


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_printed_and_given_as_json(name, studied, here):
    root, _ = studied
    found, printed = _table(here, root, name)
    assert found
    title, columns, rows = TABLES[name](
        found if name in STUDIED else json.loads((root / "stack" / "leaderboard.json").read_text(encoding="utf-8"))
    )
    assert printed.startswith(title)
    assert all(column in printed.splitlines()[1] for column in columns)
    for row in rows:
        assert len(row) == len(columns)
        assert all(cell in printed for cell in row)


def test_studies_are_made_once(studied, here):
    root, first = studied
    when = {name: (root / path).stat().st_mtime_ns for name, path in STUDIES.items()}
    for name in STUDIED:
        assert re.search(rf"study of {name}: (\d+)/\1 \w+ in ", first[name].err)  # told to the end
        again = here("leaderboard", "--run", root, "--table", name)
        assert (again.out, again.err) == (first[name].out, "")
    assert {name: (root / path).stat().st_mtime_ns for name, path in STUDIES.items()} == when


def test_a_study_of_another_stack_is_made_anew(run, here):
    words = ("leaderboard", "--run", run, "--table", "importance")
    assert here(*words).code == 0
    assert here("stack", "--run", run, "--set", "stack.method=linear").code == 0
    again = here(*words)
    assert "study of importance: " in again.err
    assert "most gain" not in again.out  # a linear stack has no trees


def test_a_study_needs_a_stack(run, here):
    Run(run).forget("stack/stacker.json")
    said = here("leaderboard", "--run", run, "--table", "worth")
    assert said.code == 4
    assert "run 'engine stack" in said.err


def test_leaderboard_tells_the_gap_by_size(studied, here):
    bands, printed = _table(here, studied[0], "sizes")
    rows = json.loads(here("leaderboard", "--run", studied[0], "--json").out)
    for band in bands:
        assert set(band["gaps"]) == {row["name"] for row in rows}
        assert band["shorter_side"] in " ".join(printed.split())


def test_leaderboard_tells_how_often_rare_landmarks_are_named(studied, here):
    bands, printed = _table(here, studied[0], "tail")
    rows = json.loads(here("leaderboard", "--run", studied[0], "--json").out)
    for band in bands:
        assert set(band["accuracies"]) == {row["name"] for row in rows}
        assert f"{band['photos']}: {band['queries']}" in " ".join(printed.split())


def test_the_leaderboard_tells_what_each_part_could_still_win(studied, here):
    rows, printed = _table(here, studied[0], "oracles")
    gaps = {row["name"]: row["gap"] for row in rows}
    assert gaps["stack"] <= min(gap for name, gap in gaps.items() if name != "stack")
    assert gaps["oracle label and ranking"] == max(gaps.values())
    assert "oracle gate" in printed


def test_the_leaderboard_tells_how_reliable_confidences_are(studied, here):
    found, printed = _table(here, studied[0], "calibration")
    assert sum(count for _, _, count in found["after"]["bins"]) > 0
    assert 0 <= found["after"]["ece"] <= 1
    assert f"before: expected calibration error {found['before']['ece']:.4f}" in printed


def test_the_costliest_queries_can_be_explained(studied, here):
    rows, _ = _table(here, studied[0], "costs")
    assert [row["cost"] for row in rows] == sorted((row["cost"] for row in rows), reverse=True)
    found = json.loads(here("explain", rows[0]["id"], "--run", studied[0], "--json").out)
    assert found["answer"] == rows[0]["answer"]
    assert found["confidence"] == rows[0]["confidence"]


def test_blanks_and_prevalence_and_other_queries_are_told_with_what_they_cost(studied, here):
    for row in _table(here, studied[0], "blanking")[0]:
        assert row["difference"]["estimate"] <= 0
    shares = [row["prevalence"] for row in _table(here, studied[0], "prevalence")[0]]
    assert shares == sorted(shares)
    names = {row["name"] for row in _table(here, studied[0], "transductive")[0]}
    assert names == {"stack", "stack demoted", "stack corrected", "stack corrected and demoted"}


def test_members_gate_and_honesty_are_studied(studied, here):
    worth, _ = _table(here, studied[0], "worth")
    assert [row["without"] for row in worth["without"]] == ["tiny-frozen", "tiny-scratch", "gate"]
    assert {row["member"] for row in worth["added"]} == {"tiny-frozen", "tiny-scratch"}
    lost = _table(here, studied[0], "importance")[0]["lost"]
    assert {"tiny-frozen", "tiny-scratch", "gate", "all"} <= {row["name"] for row in lost}
    checks, printed = _table(here, studied[0], "checks")
    assert checks["leaks"]["queries"] == 0
    assert printed.splitlines()[2].endswith("ok")
    assert checks["near_by"] == "tiny-frozen"
    counts = [each["photos"] for each in checks["lookalikes"]]
    assert counts == sorted(counts)
    likest = checks["likest"][0]
    near = json.loads(here("explain", likest["query"], "--run", studied[0], "--json").out)["near"][0]
    assert (near["id"], round(near["cosine"], 3)) == (likest["neighbour"], round(likest["cosine"], 3))
    assert f"{likest['query']} beside {likest['neighbour']} ({near['cosine']:.3f})" in printed


def test_lookalikes_are_not_searched_for_without_embeddings(run, here):
    for name in Run(run).names("embeddings/"):
        Run(run).forget(name)
    said = here("leaderboard", "--run", run, "--table", "checks")
    assert said.code == 0
    assert "no frozen member's embeddings are in the run" in said.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--table", "sise"], "--table: no table is called 'sise' — did you mean 'sizes'"),
        (["--table", "costs", "--tta", "none"], "--tta and --table are two tables"),
    ],
)
def test_the_leaderboard_is_asked_for_one_table_that_there_is(words, message, finished_run, here):
    said = here("leaderboard", "--run", finished_run.root, *words)
    assert (said.code, said.out) == (2, "")
    assert message in " ".join(said.err.replace("│", "").split())


# ---- explain


def test_explain_shows_what_led_to_an_answer(studied, here):
    photo = f"{0:016x}"
    found = json.loads(here("explain", photo, "--run", studied[0], "--json").out)
    printed = here("explain", photo, "--run", studied[0]).out
    assert printed.startswith(f"{photo}: answer {found['answer']}, confidence {found['confidence']:.4f}, rank ")
    assert "(train); it shows a: " in printed
    assert "gate: shows a landmark with probability" in printed
    for listed in found["members"].values():
        assert all(f"{each['score']:.4f}" in printed for each in listed)
    for judged in found["judged"]:
        assert f"What moved {judged['landmark_id']}: log-odds {judged['base']:+.3f}" in printed
        assert all(each["feature"] in printed for each in judged["movers"])
    assert all(each["id"] in printed for each in found["near"])


def test_explain_draws_what_is_near(studied, tmp_path, here):
    out = tmp_path / "near.png"
    said = here("explain", f"{9999:016x}", "--run", studied[0], "--out", out)
    assert said.code == 0
    assert f"picture: {out}" in said.out
    assert "its truth is not known here" in said.out
    with Image.open(out) as picture:
        assert picture.format == "PNG"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([f"{0:015x}x"], 3, "did you mean"),
        ([f"{0:016x}", "--member", "tiny-frosen"], 2, "did you mean 'tiny-frozen'"),
    ],
)
def test_explain_names_the_nearest_of_what_is_not_there(words, code, message, studied, here):
    said = here("explain", *words, "--run", studied[0])
    assert (said.code, said.out) == (code, "")
    assert message in said.err


# ---- the stack's settings


def _answers(root):
    return pd.read_parquet(root / "stack" / "answers.test.parquet").set_index("id")


@pytest.mark.parametrize("method", METHODS)
def test_the_stack_takes_the_method_that_is_named(method, run, here):
    said = here("stack", "--run", run, "--set", f"stack.method={method}")
    assert said.code == 0, said.err
    assert f"stack: {method}, fitted on" in said.err
    assert json.loads((run / "stack" / "stacker.json").read_text())["method"] == method
    assert set(pd.read_parquet(run / "stack" / "methods.oof.parquet")["decided_by"]) == {method}
    assert len(_answers(run)) == 14


def test_an_unknown_method_is_refused(run, here):
    said = here("stack", "--run", run, "--set", "stack.method=boosting")
    assert said.code == 2
    assert "two-stage" in said.err


def test_answers_below_a_confidence_are_left_out_of_the_submission(run, here):
    before = _answers(run)
    assert 0 < (before["confidence"] < 0.5).sum() < len(before)
    said = here("stack", "--run", run, "--set", "stack.blank_below=0.5")
    assert "fitted on" not in said.err
    assert here("submit", "--run", run).code == 0
    rows = zip(*(_column(run / "submission.csv", name) for name in ("id", "landmarks")), strict=True)
    assert {photo for photo, answer in rows if not answer} == set(before.index[before["confidence"] < 0.5])
    assert here("stack", "--run", run).code == 0
    pd.testing.assert_frame_equal(_answers(run), before)


def test_the_test_set_itself_may_tell_how_many_photos_show_a_landmark(run, here):
    before = _answers(run)
    said = here("stack", "--run", run, "--transductive")
    assert re.search(r"^transductive: \d+\.\d% of the test photos seem", said.err, re.MULTILINE)
    assert "fitted on" not in said.err
    after = _answers(run)
    assert after["landmark_id"].equals(before["landmark_id"])
    assert (after["confidence"] != before["confidence"]).any()
    assert here("stack", "--run", run).code == 0
    pd.testing.assert_frame_equal(_answers(run), before)


def test_landmarks_answered_too_often_in_the_test_set_are_lowered_when_told_to(run, here):
    assert here("stack", "--run", run, "--transductive").code == 0
    before = _answers(run)
    words = ("--set", "stack.demotion=2")
    assert "lowered by 2" in here("stack", "--run", run, "--transductive", *words).err
    after = _answers(run)
    assert after["landmark_id"].equals(before["landmark_id"])
    assert (after["confidence"] <= before["confidence"]).all()
    assert (after["confidence"] < before["confidence"]).any()
    alone = here("stack", "--run", run, *words)
    assert alone.code == 2
    assert "goes with transductive = true" in alone.err


def test_confidences_are_corrected_to_a_prevalence_when_told_to(run, here):
    before = _answers(run)
    words = ("stack", "--oof", "--run", run, "--prevalence", "0.1", "--json", "--set")
    said = here(*words, 'stack.correct="always"')
    assert {row["name"]: row["kind"] for row in json.loads(said.out)}["not corrected"] == "method"
    after = _answers(run)
    assert after["landmark_id"].equals(before["landmark_id"])
    assert (after["confidence"] <= before["confidence"]).all()
    assert (after["confidence"] < before["confidence"]).any()
    said = here(*words, 'stack.correct="never"')
    assert {row["name"]: row["kind"] for row in json.loads(said.out)}["corrected"] == "method"
    pd.testing.assert_frame_equal(_answers(run), before)


def test_unseen_landmarks_weigh_what_is_asked_for(run, here):
    plain, few, many = (
        {row["name"]: row["gap"] for row in json.loads(here("cv", "--run", run, *words, "--json").out)}
        for words in ((), ("--unseen", "0.05"), ("--unseen", "0.95"))
    )
    assert plain.keys() == few.keys() == many.keys()
    assert few["tiny-frozen"] != plain["tiny-frozen"] != many["tiny-frozen"]
    assert "95% of the others an unseen one" in here("leaderboard", "--run", run).out


def test_costs_are_of_the_gap_at_the_prevalence_asked_for(run, here):
    def read():
        return [row["cost"] for row in json.loads(here("leaderboard", "--run", run, "--table", "costs", "--json").out)]

    before = read()
    same_answers = ("--set", 'stack.correct="never"')
    assert here("stack", "--oof", "--run", run, "--prevalence", "0.2", *same_answers).code == 0
    assert read() != before


def test_left_to_itself_the_correction_is_made_where_it_wins_out_of_fold(run, here):
    before = _answers(run)
    for share in ("0.02", "0.9"):
        board = {
            r["name"]: r["gap"]
            for r in json.loads(here("stack", "--oof", "--run", run, "--prevalence", share, "--json").out)
        }
        won = "not corrected" in board
        assert not won or board["stack"] > board["not corrected"]
        assert _answers(run)["confidence"].equals(before["confidence"]) != won


def test_another_calibration_changes_confidences_and_not_their_order(run, here):
    def read():
        return pd.read_parquet(run / "stack" / "answers.test.parquet").set_index("id")["confidence"]

    assert here("stack", "--run", run, "--set", "stack.calibration=none").code == 0
    before = read()
    said = here("stack", "--run", run, "--set", "stack.calibration=platt")
    assert said.code == 0
    assert "fitted on" not in said.err  # only the calibration is new
    assert (read() != before).any()
    assert read().rank().equals(before.rank())


def test_an_unknown_calibration_is_refused(run, here):
    said = here("stack", "--run", run, "--set", "stack.calibration=plat")
    assert said.code == 2
    assert "platt" in said.err


def test_cv_uses_what_the_run_has_and_prints_the_leaderboard(finished_run, run, here):
    said = here("cv", "--data", finished_run.data, "--run", run)
    assert said.code == 0
    assert said.out == finished_run.said["stack"].out
    assert "fold 1/2" not in said.err
    assert said.next_command == ["submit", "--run", str(run)]


def test_cv_weighs_the_queries_to_a_prevalence(run, here):
    plain = json.loads(here("leaderboard", "--run", run, "--json").out)
    weighed = json.loads(here("cv", "--run", run, "--prevalence", "0.2", "--json").out)
    gap = {row["name"]: row["gap"] for row in plain}
    others = [row for row in weighed if row["name"] in gap and row["name"] != "stack"]
    more = {row["name"] for row in weighed} - set(gap)
    assert more in ({"corrected"}, {"not corrected"})
    assert all(row["gap"] <= gap[row["name"]] for row in others)  # more queries without a landmark are in the way
    assert any(row["gap"] < gap[row["name"]] for row in others)


# ---- score and the checks


def test_a_perfect_submission_scores_one(competition, tmp_path, here):
    truth = dict(zip(*(_column(competition / "solution.csv", name) for name in ("id", "landmarks")), strict=True))
    perfect = tmp_path / "perfect.csv"
    rows = [f"{photo},{landmark and landmark + ' 0.5'}\n" for photo, landmark in truth.items()]
    perfect.write_text("id,landmarks\n" + "".join(rows))
    score = json.loads(here("score", perfect, competition / "solution.csv", "--json").out)
    assert (score["gap"], score["queries"], score["correct"]) == (1.0, 14, 10)
    assert here("score", perfect, competition / "solution.csv").out.startswith("GAP 1.0000 (95 % interval 1.0000 ..")


def test_the_run_s_own_submission_can_be_scored(finished_run, here):
    said = here("score", finished_run.root / "submission.csv", finished_run.data / "solution.csv", "--json")
    score = json.loads(said.out)
    assert 0 <= score["gap_low"] <= score["gap"] <= score["gap_high"] <= 1
    assert (score["queries"], score["with_landmark"]) == (14, 10)


def test_check_submission_agrees_with_submit(finished_run, here):
    path = finished_run.root / "submission.csv"
    assert here("check-submission", path, "--data", finished_run.data).out == finished_run.said["submit"].out
    alone = json.loads(here("check-submission", path, "--json").out)
    assert alone["rows"] == 14


def test_a_submission_without_an_answer_is_legal_and_loudly_noticed(competition, tmp_path, here):
    empty = tmp_path / "empty.csv"
    empty.write_text("id,landmarks\n" + "".join(f"{photo},\n" for photo in _column(competition / "test.csv", "id")))
    said = here("check-submission", empty, "--data", competition)
    assert said.code == 0
    assert "NOTICE: no query is answered; this file scores 0" in said.err


def test_check_counts_what_there_is(competition, here):
    said = here("check", "--data", competition, "--json")
    summary = json.loads(said.out)
    assert said.code == 0
    assert summary["train photos"] == 50
    assert summary["nonlandmark photos"] == 14
    assert summary["test photos"] == 14
    assert summary["landmarks"] == 6
    assert summary["bad"] == []
    assert "landmarks" in here("check", "--data", competition).out


# ---- configurations


@pytest.mark.parametrize("preset", PRESETS)
def test_config_show_prints_a_preset_that_can_be_read_back(preset, tmp_path, here):
    mine = tmp_path / "mine.toml"
    mine.write_text(here("config", "show", preset).out, encoding="utf-8")
    assert load_config(str(mine)) == load_config(preset)


def test_config_init_writes_a_preset_to_edit_and_leaves_an_existing_file_alone(tmp_path, here):
    mine = tmp_path / "new folder" / "mine.toml"
    said = here("config", "init", mine, "--from", "tiny")
    assert said.code == 0
    assert f"next: engine train-zoo --config '{mine}' --data FOLDER" in said.err
    assert tomllib.loads(mine.read_text(encoding="utf-8"))["folds"] == {"count": 2}
    again = here("config", "init", mine)
    assert again.code == 2
    assert "exists already" in again.err
    assert load_config(str(mine)).folds.count == 2


def test_run_remembers_its_configuration_with_its_changes(finished_run):
    saved = load_config(str(finished_run.root / "config.toml"))
    assert saved == load_config("tiny", {"threads": 1})


# ---- terminals, pipes and locales


def test_without_a_terminal_there_are_no_escape_codes(finished_run, apart):
    env = {"TERM": "xterm-256color"}
    for words in (["leaderboard", "--run", finished_run.root], ["--help"], ["stack", "--oof", "--run", "nothing"]):
        said = apart(*words, env=env)
        assert "\x1b" not in said.out + said.err


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
@pytest.mark.parametrize(("no_color", "styled"), [("1", False), ("", True)])
def test_a_terminal_gets_styles_unless_no_color_is_set(finished_run, no_color, styled):
    master, slave = os.openpty()
    env = os.environ | {"TERM": "xterm-256color", "NO_COLOR": no_color}
    command = [sys.executable, "-m", "engine", "leaderboard", "--run", str(finished_run.root)]
    subprocess.run(command, stdout=slave, env=env, check=True)
    os.close(slave)
    assert (b"\x1b[" in os.read(master, 1 << 16)) is styled
    os.close(master)


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGPIPE")
@pytest.mark.parametrize("words", [["config", "show", "cpu"], ["--help"], ["--version"]])
def test_a_closed_pipe_ends_the_command_without_a_traceback(words):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "engine", *words]
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert ended.returncode in (0, -signal.SIGPIPE)
    assert ended.stderr == ""


def test_a_narrow_terminal_folds_a_table_and_loses_nothing(finished_run, apart):
    wide, narrow = (apart("check", "--data", finished_run.data, env={"COLUMNS": width}).out for width in ("200", "40"))
    assert max(map(len, narrow.splitlines()[1:])) <= 40  # the title is a path, to be copied in one piece
    assert sorted("".join(narrow.split())) == sorted("".join(wide.split()))


@pytest.mark.parametrize("env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_a_locale_without_utf_8_does_not_crash(finished_run, env, apart):
    run, data = finished_run.root, finished_run.data
    for words in (
        ["--help"],
        ["config", "show", "cpu"],
        ["leaderboard", "--run", run],
        ["check-submission", run / "submission.csv", "--data", data],
    ):
        said = apart(*words, env=env | {"PYTHONCOERCECLOCALE": "0"})
        assert said.code == 0, said.err
        assert said.out
    said = apart("stack", "--run", run / "é", env=env | {"PYTHONCOERCECLOCALE": "0"})
    assert said.code == 4
    assert "is not a run" in said.err
    assert "Traceback" not in said.err


# ---- errors


def test_an_error_is_one_message_and_a_hint_unless_debug_is_given(tmp_path, here):
    said = here("leaderboard", "--run", tmp_path)
    assert said.code == 4
    assert said.err.splitlines()[0].startswith(f"error: {tmp_path}: is not a run")
    assert said.err.splitlines()[1].startswith("hint: start with 'engine train-zoo")
    debug = here("--debug", "leaderboard", "--run", tmp_path)
    assert debug.code == 4
    assert "Traceback" in debug.err


def test_a_fault_of_the_engine_itself_is_said_in_one_line(monkeypatch, tmp_path, here):
    def fail(*_):
        raise ZeroDivisionError("one by zero")

    monkeypatch.setattr("engine.pipeline.read_leaderboard", fail)
    said = here("leaderboard", "--run", tmp_path)
    assert said.code == 1
    assert "error: ZeroDivisionError: one by zero" in said.err
    assert "Traceback" not in said.err


def test_running_out_of_memory_is_a_resource_error(monkeypatch, tmp_path, here):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("engine.pipeline.read_leaderboard", fail)
    assert here("leaderboard", "--run", tmp_path).code == 6


def test_an_interrupt_outside_a_training_ends_in_130(monkeypatch, tmp_path, here):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("engine.pipeline.read_leaderboard", fail)
    said = here("leaderboard", "--run", tmp_path)
    assert said.code == 130
    assert "run the same command again to go on" in said.err


# ---- the zoo


def test_zoo_list_names_every_recipe_with_its_parameters(here):
    listed = {row["name"]: row for row in json.loads(here("zoo", "list", "--json").out)}
    assert listed.keys() == named_toml_files("zoo.recipes").keys()
    assert listed["resnet50-fc"]["head_parameters"] == 30_634_599  # of the challenge's slides
    few = {row["name"]: row for row in json.loads(here("zoo", "list", "--landmarks", "10", "--json").out)}
    assert few["resnet50-fc"]["head_parameters"] == 2049 * 10
    shown = {line.split()[0]: " ".join(line.split()[3:]) for line in here("zoo", "list").out.splitlines()}
    assert shown["resnet50-fc"] == "linear 30,634,599 224 hub"
    assert shown["inception-v3"] == "linear + auxiliary 30,634,599 + 14,055,015 299 hub"


def test_zoo_show_prints_a_recipe_that_can_be_read_back(tmp_path, here):
    shown = here("zoo", "show", "resnet50-hadamard").out
    (tmp_path / "mine.toml").write_text(shown, encoding="utf-8")
    assert here("zoo", "show", str(tmp_path / "mine.toml")).out == shown
    assert tomllib.loads(shown)["head"]["kind"] == "hadamard"


def test_show_batch_draws_what_training_sees(run, tmp_path, here):
    out = tmp_path / "batch.png"
    said = here("show-batch", "tiny-scratch", "--run", str(run), "--out", str(out), "--photos", "5", "--json")
    made = json.loads(said.out)
    assert made["batch"] == str(out)
    for name in ("batch", "sizes"):
        with Image.open(made[name]) as picture:
            assert picture.format == "PNG"
            assert picture.width > 500
    assert all(row["there"] == row["shown"] for row in made["classes"])  # the plain sampler shows each photo once
    assert "are shown" in here("show-batch", "tiny-scratch", "--run", str(run), "--out", str(out)).out


@pytest.mark.parametrize(("shots", "message"), [("0,1", "a landmark needs photos"), ("", "a landmark needs photos")])
def test_few_shot_refuses_landmarks_without_photos(shots, message, finished_run, here):
    said = here("few-shot", "--run", str(finished_run.root), "--shots", shots)
    assert said.code == 2
    assert message in said.err


def test_some_members_and_folds_may_be_trained_first(competition, tmp_path, here):
    words = ("train-zoo", "--config", "tiny", "--data", str(competition), "--run", str(tmp_path / "run"))
    said = here(*words, "--members", "tiny-scratch", "--folds", "1,0")
    assert said.code == 0
    assert "for the other members and folds" in said.err
    trained = sorted(path.parent.name for path in (tmp_path / "run/zoo").rglob("weights.safetensors"))
    assert trained == ["fold0", "fold1"]
    assert not (tmp_path / "run/zoo/tiny-frozen").exists()


def test_a_recipe_that_ships_becomes_a_member_with_settings_of_its_own(competition, tmp_path, here):
    words = ("train-zoo", "--config", "tiny", "--data", str(competition), "--run", str(tmp_path / "run"))
    changes = ("backbone.name=test_resnet", "input.size=32", "train.epochs=1", "train.lr=3e-4", "folds.count=2")
    said = here(*words, "--members", "resnet18-scratch", *(word for change in changes for word in ("--set", change)))
    assert said.code == 0, said.err
    config = load_config(str(tmp_path / "run/config.toml"))
    assert config.folds.count == 2
    *others, added = config.members
    assert (added.recipe, added.set["train.lr"], added.set["input.size"]) == ("resnet18-scratch", 3e-4, 32)
    assert others == list(load_config("tiny").members)  # who were not asked for
    assert (tmp_path / "run/scores/resnet18-scratch.oof.parquet").exists()


def test_cv_takes_settings_of_recipes_and_of_the_run(competition, tmp_path, here):
    words = ("cv", "--config", "tiny", "--data", str(competition), "--run", str(tmp_path / "run"), "--prevalence=0.3")
    said = here(*words, "--set=train.epochs=1", "--set=folds.count=2", "--set=stack.method=linear")
    assert said.code == 0, said.err
    assert "weighted so that 30% of them show a known landmark" in said.out
    assert all(member.set["train.epochs"] == 1 for member in load_config(str(tmp_path / "run/config.toml")).members)


def test_a_setting_of_recipes_goes_to_every_member_and_only_in_training(run, here):
    said = here("train-zoo", "--run", run, "--set", "train.lrr=1")
    assert said.code == 2
    assert "did you mean 'lr'" in said.err
    assert "unknown key 'train'" in here("stack", "--run", run, "--set", "train.lr=1").err
    said = here("train-zoo", "--run", run, "--set", "train.lr=0.001")
    assert said.code == 4  # finished work of another setting is refused, with the difference
    assert "train.lr" in said.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--members", "resnet50-hadamad"], "did you mean 'resnet50-hadamard'"),
        (["--members", "tiny-scrach"], "no member is called 'tiny-scrach' — did you mean 'tiny-scratch'"),
        (["--folds", "0,7"], "there is no fold 7"),
        (["--folds", "one"], "wanted numbers"),
    ],
)
def test_unknown_members_and_folds_are_told_before_any_work(words, message, competition, tmp_path, here):
    said = here("train-zoo", "--config", "tiny", "--data", str(competition), "--run", str(tmp_path / "run"), *words)
    assert said.code == 2
    assert message in said.err
    assert not (tmp_path / "run/catalog.parquet").exists()
