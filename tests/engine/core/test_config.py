"""Configuration: what is written wrongly is refused with its key, its nearest names, and everything else wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.core.config import (
    EngineConfig,
    Section,
    apply_settings,
    flatten,
    load_config,
    named_toml_files,
    parse_section,
    parse_settings,
    read_toml,
    resolve_toml,
    set_dotted,
)
from engine.core.errors import ConfigError

ONE_MEMBER = 'members = [{recipe = "efficientnet-lite0"}]\n'
keys = st.text(st.sampled_from("abc"), min_size=1, max_size=2)
dotted_keys = st.lists(keys, min_size=1, max_size=3).map(".".join)
nested = st.recursive(st.integers(), lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=6)


class Schedule(Section):
    """A section such as a recipe has."""

    epochs: int = 8
    lr: float = 0.1
    sizes: tuple[int, ...] = ()


def _write(folder, text):
    path = folder / "my.toml"
    path.write_text(ONE_MEMBER + text, encoding="utf-8")
    return path


def _problems(folder, text) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(str(_write(folder, text)))
    return [line.removeprefix(f"{folder / 'my.toml'}: ") for line in caught.value.message.splitlines()]


def _value_at(values, dotted):
    for part in dotted.split("."):
        values = values[part]
    return values


# ---- reading


def test_a_file_that_says_little_gets_the_defaults(tmp_path):
    config = load_config(str(_write(tmp_path, "[folds]\ncount = 3\n")))
    assert config == EngineConfig.model_validate({"members": [{"recipe": "efficientnet-lite0"}], "folds": {"count": 3}})
    assert config.folds.unseen_share == EngineConfig.model_fields["folds"].default.unseen_share


def test_a_configuration_cannot_be_changed_after_it_was_read(tmp_path):
    config = load_config(str(_write(tmp_path, "")))
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1


def test_whole_numbers_are_fine_where_fractions_are_wanted(tmp_path):
    assert load_config(str(_write(tmp_path, "[stack]\nlearning_rate = 1\n"))).stack.learning_rate == 1


def test_a_file_saved_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "bom.toml").write_text("seed = 7\n", encoding="utf-8-sig")
    assert read_toml(tmp_path / "bom.toml") == {"seed": 7}


@pytest.mark.parametrize("name", named_toml_files("engine.presets"))
def test_every_preset_that_ships_is_valid(name):
    assert load_config(name).members


# ---- what is refused


@pytest.mark.faults
def test_an_unknown_key_gets_its_nearest_names(tmp_path):
    with pytest.raises(ConfigError) as caught:
        parse_section(Schedule, {"epoch": 3}, source="recipe x")
    assert caught.value.message == "recipe x: unknown key 'epoch' — did you mean 'epochs'?"
    assert _problems(tmp_path, "[folds]\ncuont = 3\n") == ["unknown key 'folds.cuont' — did you mean 'count'?"]


@pytest.mark.faults
def test_an_unknown_key_of_a_member_is_compared_with_a_members_keys(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('members = [{recipe = "a"}, {recipe = "b", nmae = "c"}]\n')
    with pytest.raises(ConfigError, match=r"unknown key 'members\.1\.nmae' — did you mean 'name'\?"):
        load_config(str(path))


@pytest.mark.faults
def test_every_problem_is_shown_at_once(tmp_path):
    problems = _problems(
        tmp_path, 'sede = 1\nseed = "one"\n[folds]\ncount = -5\n[stack]\nlearning_rate = nan\nleafs = 3\n'
    )
    assert {line.partition(" (got")[0].partition(": ")[0] for line in problems} == {
        "unknown key 'sede' — did you mean 'seed'?",
        "seed",
        "folds.count",
        "stack.learning_rate",
        "unknown key 'stack.leafs' — did you mean 'leaves'?",
    }
    assert len(problems) == 5


@pytest.mark.faults
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[folds]\ncount = -5\n", "folds.count: Input should be greater than or equal to 2 (got -5)"),
        ("[stack]\nlearning_rate = nan\n", "stack.learning_rate: Input should be a finite number (got nan)"),
        ("[stack]\nl2 = inf\n", "stack.l2: Input should be a finite number (got inf)"),
        ('seed = "3"\n', "seed: Input should be a valid integer (got '3')"),
        ("seed = 2024-01-01\n", "seed: Input should be a valid integer (got '2024-01-01')"),
        ("threads = true\n", "threads: Input should be a valid integer (got True)"),
        ("[stack]\ntrees = 3.0\n", "stack.trees: Input should be a valid integer (got 3.0)"),
        ('[gate]\nenabled = "no"\n', "gate.enabled: Input should be a valid boolean (got 'no')"),
        ("device = 0\n", "device: Input should be a valid string (got 0)"),
        ('precision = "half"\n', "precision: Input should be 'auto', 'fp32', 'bf16' or 'fp16' (got 'half')"),
        ("folds = 3\n", "folds: Input should be an object (got 3)"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_with_its_key(tmp_path, text, problem):
    assert _problems(tmp_path, text) == [problem]


@pytest.mark.faults
def test_an_id_pattern_that_is_no_regular_expression_is_refused(tmp_path):
    assert "is not a regular expression" in _problems(tmp_path, "[data]\nid_pattern = '[0-9'\n")[0]


@pytest.mark.faults
def test_a_zoo_without_members_is_refused(tmp_path):
    (tmp_path / "empty.toml").write_text("")
    (tmp_path / "none.toml").write_text("members = []\n")
    for name in ("empty", "none"):
        with pytest.raises(ConfigError, match="members: "):
            load_config(str(tmp_path / f"{name}.toml"))


@pytest.mark.faults
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"seed = 1\nseed = 2", id="duplicate key"),
        pytest.param(b"seed = ", id="no value"),
        pytest.param(b"[folds\n", id="open bracket"),
        pytest.param(b'name = "caf\xe9"', id="latin-1"),
        pytest.param(b"seed = " + b"9" * 5000, id="endless digits"),
        pytest.param(b"a = " + b"[" * 5000, id="endless brackets"),
    ],
)
def test_a_file_that_is_not_toml_is_a_config_error_with_its_path(tmp_path, content):
    (tmp_path / "my.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"my\.toml: is not valid TOML"):
        load_config(str(tmp_path / "my.toml"))


@pytest.mark.faults
def test_a_syntax_error_is_found_by_line_and_column(tmp_path):
    (tmp_path / "my.toml").write_text("seed = 1\nthreads == 2\n")
    with pytest.raises(ConfigError, match="line 2, column 10"):
        read_toml(tmp_path / "my.toml")


@pytest.mark.faults
@pytest.mark.parametrize("name", ["nowhere.toml", "no/where.toml", "no/where"])
def test_a_missing_file_is_a_config_error_with_its_path(name):
    with pytest.raises(ConfigError, match=f"{name}: cannot be read"):
        load_config(name)


@pytest.mark.faults
def test_a_problem_of_a_whole_section_names_its_source():
    with pytest.raises(ConfigError, match=r"^recipe x: sizes\.1: "):
        parse_section(Schedule, {"sizes": [1, "2"]}, source="recipe x")


def test_a_name_is_a_shipped_file_and_anything_like_a_path_is_a_path(tmp_path):
    for name, path in named_toml_files("engine.presets").items():
        assert resolve_toml(name, "engine.presets", what="preset") == path
    assert resolve_toml(str(tmp_path / "a b.toml"), "engine.presets", what="preset") == tmp_path / "a b.toml"


@pytest.mark.faults
def test_an_unknown_name_is_a_config_error_that_says_what_it_was_to_be():
    with pytest.raises(ConfigError, match="unknown preset 'zzz' — "):
        resolve_toml("zzz", "engine.presets", what="preset")


# ---- settings from the command line


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("folds.count=3", 3),
        ("stack.l2 = 1e-3", 0.001),
        ("gate.enabled=false", False),
        ("device=cpu", "cpu"),
        ("device=cuda:1", "cuda:1"),
        ('device="cpu"', "cpu"),
        ("data.id_pattern=[0-9a-f]{16}", "[0-9a-f]{16}"),
        ("members.name=a=b", "a=b"),
        ("device=", ""),
        ("seed=" + "9" * 5000, "9" * 5000),
    ],
)
def test_a_setting_is_toml_or_else_text(assignment, value):
    assert list(parse_settings([assignment]).values()) == [value]


@pytest.mark.faults
@pytest.mark.parametrize("assignment", ["folds.count", "=3", " =3", ""])
def test_a_setting_without_a_key_or_a_value_is_refused(assignment):
    with pytest.raises(ConfigError, match="wanted KEY=VALUE"):
        parse_settings([assignment])


def test_settings_win_over_the_file(tmp_path):
    path = _write(tmp_path, "seed = 1\n[folds]\ncount = 5\nunseen_share = 0.25\n")
    config = load_config(str(path), parse_settings(["folds.count=3", "device=cpu"]))
    assert (config.seed, config.device, config.folds.count, config.folds.unseen_share) == (1, "cpu", 3, 0.25)


@pytest.mark.faults
def test_a_setting_below_a_plain_value_is_refused_by_its_key(tmp_path):
    with pytest.raises(ConfigError, match="seed: Input should be a valid integer"):
        load_config(str(_write(tmp_path, "seed = 1\n")), {"seed.low": 3})


@given(values=st.dictionaries(keys, nested, max_size=3), key=dotted_keys, value=st.integers())
@settings(deadline=None, max_examples=50)
def test_setting_a_key_is_a_copy_that_holds_the_value_and_setting_it_again_changes_nothing(values, key, value):
    before = repr(values)
    changed = set_dotted(values, key, value)
    assert _value_at(changed, key) == value
    assert set_dotted(changed, key, value) == changed
    assert repr(values) == before


@given(values=st.dictionaries(keys, nested, max_size=3))
@settings(deadline=None, max_examples=20)
def test_no_settings_change_nothing(values):
    assert apply_settings(values, {}) == values


# ---- what a run remembers


def test_a_section_is_remembered_as_dotted_keys(tmp_path):
    flat = flatten(load_config(str(_write(tmp_path, "[folds]\ncount = 3\n"))), prefix="config")
    assert flat["config.folds.count"] == 3
    assert flat["config.data.id_pattern"] == "[0-9a-f]{16}"


def test_one_written_as_a_fraction_is_the_same_setting():
    assert flatten(Schedule(lr=1)) == flatten(Schedule(lr=1.0)) == {"epochs": 8, "lr": 1, "sizes": []}
    assert repr(flatten(Schedule(lr=1.0))["lr"]) == "1"


@given(count=st.integers(2, 100), share=st.floats(0, 0.99), bags=st.integers(1, 9))
@settings(deadline=None, max_examples=30)
def test_what_a_run_remembers_gives_the_same_configuration_back(count, share, bags):
    values = {"members": [{"recipe": "a", "set": {"train.epochs": 3}}], "stack": {"bags": bags}}
    config = parse_section(EngineConfig, values | {"folds": {"count": count, "unseen_share": share}}, source="law")
    assert parse_section(EngineConfig, apply_settings({}, flatten(config)), source="law") == config
