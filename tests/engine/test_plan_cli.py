"""`train-zoo --dry-run` says what training would take, and writes nothing."""

import json


def test_a_dry_run_prints_what_is_left_and_makes_nothing(competition, tmp_path, here):
    root = tmp_path / "run"
    words = ("train-zoo", "--dry-run", "--config", "tiny", "--set", "threads=1", "--data", competition, "--run", root)
    said = here(*words, "--json")
    assert said.code == 0, said.err
    plans = json.loads(said.out)
    assert [plan["member"] for plan in plans] == ["tiny-frozen", "tiny-scratch"]
    assert all(plan["seconds"] > 0 and not plan["finished"] for plan in plans)
    assert not root.exists()
    shown = here(*words, "--members", "tiny-scratch", "--folds", "0")
    assert [line.split()[0] for line in shown.out.splitlines()[1:]] == ["member", "tiny-scratch", "total"]
    assert "nothing was trained" in shown.err


def test_a_finished_run_takes_no_time_and_stays_as_it_is(run, here):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    plans = json.loads(here("train-zoo", "--dry-run", "--run", run, "--json").out)
    assert [(plan["finished"], plan["seconds"]) for plan in plans] == [(True, 0)] * 2
    assert here("train-zoo", "--dry-run", "--run", run, "--set", "folds.count=2").code == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_an_unknown_member_is_refused(run, here):
    said = here("train-zoo", "--dry-run", "--run", run, "--members", "tiny-frozn")
    assert said.code == 2
    assert "tiny-frozen" in said.err
