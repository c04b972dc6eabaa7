"""What a person sees: names as they are, numbers that line up, and nothing that only a terminal understands."""

from __future__ import annotations

import json

import pytest

from engine.console import ConsoleProgress, print_json, print_table, stdout

ODD = ["[bold]name[/bold]", "[/x]", "train.csv:100: :smile:", "[1]", "à run"]


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch):
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("text", ODD)
def test_text_is_printed_as_it_is(text, capsys):
    ConsoleProgress().say(text)
    stdout().print(text)
    print_table(text, (text, "n"), [(text, "1")])
    shown = capsys.readouterr()
    assert shown.err == f"{text}\n"
    assert shown.out.count(text) == 4


def test_long_talk_stays_on_one_line(capsys):
    ConsoleProgress().say("word " * 100)
    assert capsys.readouterr().err.count("\n") == 1


def test_a_table_in_a_file_is_never_folded(capsys):
    print_table("title", ("name", "GAP", "reason"), [("n" * 64, "0.5", "r" * 200), ("b", "0.25", "s")])
    title, header, first, second = capsys.readouterr().out.splitlines()
    assert title.strip() == "title"
    assert first.split() == ["n" * 64, "0.5", "r" * 200]
    assert second.endswith(" s")
    assert first.index("0.5") + 3 == second.index("0.25") + 4 == header.index("GAP") + 3  # numbers to the right


def test_a_table_in_a_narrow_window_is_folded_and_loses_nothing(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    print_table("title", ("name", "GAP"), [("n" * 64, "0.5")])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 40
    assert shown.count("n") == 64 + len("name") - 3  # and one n in the header
    assert "0.5" in shown


def test_a_task_without_a_terminal_ends_in_one_line(capsys):
    with ConsoleProgress().task("embed", 3, "photo") as advance:
        for _ in range(3):
            advance(1, "loss [1]")
    assert capsys.readouterr().err == "embed: 3/3 photos in 0.0 s loss [1]\n"


def test_a_long_task_without_a_terminal_tells_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr("engine.console.QUIET_SECONDS", -1)
    with ConsoleProgress().task("embed", 4, "photo") as advance:
        advance(1, "")
        advance(1, "120/s")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("embed: 1/4 photos, about ")
    assert lines[1].startswith("embed: 2/4 photos, about ")
    assert lines[1].endswith(" s left 120/s")
    assert lines[2].startswith("embed: 2/4 photos in ")


def test_a_task_that_fails_does_not_claim_its_end(capsys):
    task = ConsoleProgress().task("embed", 3, "photo")
    task.__enter__()(1, "")
    assert not task.__exit__(ValueError, ValueError("no"), None)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with ConsoleProgress().task("embed [x]", 3, "photo") as advance:
        advance(3, "[/y]")
    shown = capsys.readouterr().err
    assert "\x1b[" in shown
    for part in ("embed [x]", "3/3", "photos", "100%", "[/y]"):
        assert part in shown


def test_no_color_leaves_a_bar_without_colours(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    with ConsoleProgress().task("embed", 3, "photo") as advance:
        advance(3, "")
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "\x1b[3" not in shown  # no colour; the cursor may still be moved


def test_json_goes_to_stdout_in_plain_ascii_and_refuses_what_is_no_number(capsys):
    print_json({"name": "à", "gap": 0.1})
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"name": "à", "gap": 0.1}
    assert shown.out.isascii()
    assert shown.err == ""
    with pytest.raises(ValueError):
        print_json({"gap": float("nan")})
