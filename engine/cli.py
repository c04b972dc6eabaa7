"""The command line: thin commands over `engine.pipeline`, imported when a command runs so that --help is quick."""

from __future__ import annotations

import io
import shlex
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from engine import __version__
from engine.core.errors import EngineError

app = typer.Typer(
    name="engine",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Open-set landmark recognition: photos and CSVs in, a ranked and validated submission out.",
    epilog="Start with [bold]engine demo[/bold], or [bold]engine train-zoo --data FOLDER --run runs/first[/bold].",
)
zoo_app = typer.Typer(no_args_is_help=True, help="The recipes that ship: what they are, and what they cost.")
app.add_typer(zoo_app, name="zoo")
config_app = typer.Typer(no_args_is_help=True, help="Show the configurations that ship, or write one to edit.")
app.add_typer(config_app, name="config")

INTERRUPTED = 130
_state = {"debug": False}

DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder with train.csv, test.csv, train_nonlandmark.csv and the photos.")
]
RunOption = Annotated[Path, typer.Option("--run", help="Folder that everything is made in; reused when it is there.")]
ConfigOption = Annotated[
    str | None, typer.Option("--config", help="cpu, gpu, zoo, or a TOML file. Default: the run's own, or cpu.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated.")
]
ZooSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting, or train.lr and such in these members; may be repeated."
    ),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.")]
ForceOption = Annotated[
    bool, typer.Option("--force-new", help="Train anew what was made from other settings, instead of refusing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
MembersOption = Annotated[str, typer.Option("--members", metavar="A,B", help="Only these members.")]
TrainedOption = Annotated[
    str, typer.Option("--members", metavar="A,B", help="Only these members; a recipe that ships becomes one.")
]
FoldsOption = Annotated[str, typer.Option("--folds", metavar="0,2", help="Only these folds, counted from 0.")]
PrevalenceOption = Annotated[
    float | None,
    typer.Option("--prevalence", help="Share of queries with a known landmark that the GAP is to stand for, 0..1."),
]
UnseenOption = Annotated[
    float | None,
    typer.Option("--unseen", help="Of the other queries, the share that shows a landmark never trained on, 0..1."),
]


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"landmark-engine {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version
    _state["debug"] = debug


@app.command("train-zoo", epilog="Example: engine train-zoo --config cpu --data photos --run runs/first")
def train_zoo(
    run: RunOption,
    data: DataOption = None,
    config: ConfigOption = None,
    settings: ZooSetOption = None,
    device: DeviceOption = None,
    members: TrainedOption = "",
    folds: FoldsOption = "",
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast/--keep-going", help="End at the first member that fails, or train the others.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on with interrupted trainings, or begin those anew.")
    ] = True,
    force_new: ForceOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing: measure a few steps, print what is left and its time.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON on stdout.")] = False,
) -> None:
    """Train every member of the zoo and the gate, fold by fold; what is finished is not done again."""
    from engine import pipeline
    from engine.console import ConsoleProgress

    progress = ConsoleProgress()
    request = _request(
        run, data, config, settings, device,
        force_new=force_new, members=members, folds=folds, fail_fast=fail_fast, resume=resume,
    )  # fmt: skip
    if dry_run:
        from engine.show import show_plans

        show_plans(pipeline.plan_zoo(request, progress), as_json=as_json)
        progress.say("nothing was trained; the same command without --dry-run trains")
        return
    pipeline.train_zoo(request, progress)
    if request.is_partial:
        progress.say(_next("train-zoo", "--run", run) + ", for the other members and folds, and the gate")
    else:
        progress.say(_next("stack", "--oof", "--run", run))


@app.command("few-shot", epilog="Example: engine few-shot --run runs/first --shots 1,5 --members lite1-neighbours")
def few_shot(
    run: RunOption,
    shots: Annotated[
        str, typer.Option("--shots", metavar="1,2", help="How many photos to leave of a landmark.")
    ] = "1,2,3,5",
    members: MembersOption = "",
    folds: FoldsOption = "",
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cut some landmarks down to a few training photos, and count how often members are right about them."""
    from engine import pipeline
    from engine.console import ConsoleProgress
    from engine.show import show_few_shot

    request = _request(run, None, None, None, device, members=members, folds=folds)
    rows = pipeline.few_shot(request, _numbers(shots, "--shots"), ConsoleProgress())
    show_few_shot(rows, as_json=as_json)


@app.command("show-batch", epilog="Example: engine show-batch lite0-finetune --run runs/first --out batch.png")
def show_batch(
    recipe: Annotated[str, typer.Argument(help="A member of the run, a recipe that ships, or a TOML file.")],
    run: RunOption,
    out: Annotated[
        Path, typer.Option("--out", help="The picture; class sizes go beside it, to NAME.sizes.png.")
    ] = Path("batch.png"),
    epoch: Annotated[int, typer.Option("--epoch", min=1, help="Whose random changes to show.")] = 1,
    photos: Annotated[int, typer.Option("--photos", min=1, max=512, help="How many.")] = 32,
    as_json: JsonOption = False,
) -> None:
    """Draw an augmented batch with its labels, and what the sampler makes of the class sizes."""
    from engine import pipeline, show

    drawn = pipeline.show_batch(run, recipe, out, epoch=epoch - 1, count=photos)
    show.show_batch(drawn, as_json=as_json)


@app.command(epilog="Example: engine stack --oof --run runs/first")
def stack(
    run: RunOption,
    oof: Annotated[
        bool, typer.Option("--oof", help="Also cross-validate: out-of-fold answers and the leaderboard.")
    ] = False,
    prevalence: PrevalenceOption = None,
    unseen: UnseenOption = None,
    transductive: Annotated[
        bool,
        typer.Option(
            "--transductive", help="Correct confidences to the share of landmarks that the test set suggests."
        ),
    ] = False,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge the members' candidates into one calibrated answer per query."""
    from engine import pipeline
    from engine.boards import show_leaderboard
    from engine.console import ConsoleProgress, print_json

    progress = ConsoleProgress()
    settings = [*(settings or []), *(["stack.transductive=true"] if transductive else [])]
    request = _request(run, None, None, settings, None, prevalence=prevalence, unseen=unseen)
    pipeline.stack(request, progress, cross_validate=oof)
    if oof:
        show_leaderboard(pipeline.read_leaderboard(run), as_json=as_json)
    elif as_json:
        print_json(pipeline.describe_stack(run))
    progress.say(_next("submit", "--run", run))


@app.command(epilog="Example: engine leaderboard --run runs/first --json")
def leaderboard(
    run: RunOption,
    tta: Annotated[
        str,
        typer.Option(
            "--tta",
            metavar="none,flip",
            help="Members in these test-time views: none, flip, five-crop, ten-crop, scales.",
        ),
    ] = "",
    members: MembersOption = "",
    table: Annotated[
        str,
        typer.Option(
            "--table",
            metavar="NAME",
            help="Another table: pairs, choice, gate, sizes, tail, oracles, calibration, costs, prevalence, blanking, "
            "transductive; or, after minutes when first asked for: worth, importance, checks.",
        ),
    ] = "",
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the cross-validated GAP of every member, baseline and method and of the stack; or a table beside it."""
    from engine import pipeline
    from engine.boards import STUDIED, TABLES, show_leaderboard, show_table
    from engine.console import ConsoleProgress
    from engine.core.errors import ConfigError, did_you_mean
    from engine.show import show_views

    if tta and table:
        raise typer.BadParameter("--tta and --table are two tables; ask for one of them")
    if table and table not in TABLES:
        raise ConfigError(f"--table: no table is called '{table}' — {did_you_mean(table, TABLES)}")
    request = _request(run, None, None, None, device, members=members)
    if tta:
        show_views(pipeline.measure_views(request, _listed(tta), ConsoleProgress()), as_json=as_json)
    elif table:
        studied = table in STUDIED
        found = pipeline.study(request, table, ConsoleProgress()) if studied else pipeline.read_leaderboard(run)
        show_table(found, table, as_json=as_json)
    else:
        show_leaderboard(pipeline.read_leaderboard(run), as_json=as_json)


@app.command(epilog="Example: engine explain 0123456789abcdef --run runs/first --out explained.png")
def explain(
    query: Annotated[str, typer.Argument(help="The id of a training or test photo.")],
    run: RunOption,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also draw the photo and its nearest training photos, as PNG.")
    ] = None,
    member: Annotated[
        str | None,
        typer.Option("--member", help="The frozen member that says what is near. Default: the first."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show everything that led to one answer: candidates, gate, the features that moved it, the nearest photos."""
    from engine.boards import show_explanation
    from engine.pipeline.explaining import explain_query

    show_explanation(explain_query(run, query, member=member, picture=out), as_json=as_json)


@app.command(epilog="Example: engine submit --run runs/first")
def submit(
    run: RunOption,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave test photos that cannot be read without an answer.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write RUN/submission.csv, one row per test photo, and check it."""
    from engine import pipeline
    from engine.console import ConsoleProgress
    from engine.show import show_report

    path, report = pipeline.submit(run, ConsoleProgress(), allow_missing=allow_missing)
    show_report(path, report, as_json=as_json)


@app.command(epilog="Example: engine cv --data photos --run runs/first")
def cv(
    data: DataOption = None,
    run: Annotated[Path | None, typer.Option("--run", help="The run to use or make. Default: runs/cv-demo.")] = None,
    config: ConfigOption = None,
    prevalence: PrevalenceOption = None,
    unseen: UnseenOption = None,
    settings: SetOption = None,
    device: DeviceOption = None,
    force_new: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Cross-validate the whole job: train what is missing, stack, show GAP with an interval. No --data: the demo's."""
    from engine import pipeline
    from engine.boards import show_leaderboard
    from engine.console import ConsoleProgress

    progress = ConsoleProgress()
    if data is None and run is None:
        data, run, config = pipeline.demo_inputs(Path("runs/cv-demo"), config, progress)
    request = _request(
        run or Path("runs/cv"), data, config, settings, device,
        prevalence=prevalence, unseen=unseen, force_new=force_new,
    )  # fmt: skip
    pipeline.train_zoo(request, progress)
    pipeline.stack(pipeline.RunRequest(request.run), progress, cross_validate=True)  # as it was trained
    show_leaderboard(pipeline.read_leaderboard(request.run), as_json=as_json)
    progress.say(_next("submit", "--run", request.run))


@app.command(epilog="Example: engine demo --run runs/demo")
def demo(
    run: RunOption = Path("runs/demo"),
    config: Annotated[
        str | None, typer.Option("--config", help="A preset or a TOML file. Default: demo, or demo-scratch.")
    ] = None,
    settings: SetOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a small competition, train, stack, submit, and score the submission against its own truth."""
    from dataclasses import asdict

    from engine import pipeline
    from engine.boards import show_leaderboard
    from engine.console import ConsoleProgress, print_json, stdout
    from engine.show import show_score

    progress = ConsoleProgress()
    data, run, config = pipeline.demo_inputs(run, config, progress)
    request = _request(run, data, config, settings, device)
    pipeline.train_zoo(request, progress)
    pipeline.stack(pipeline.RunRequest(request.run), progress, cross_validate=True)  # as it was trained
    path, _ = pipeline.submit(run, progress)
    score = pipeline.score(path, pipeline.demo_solution(run))
    if as_json:
        print_json(asdict(score) | {"submission": str(path), "run": str(run), "data": str(data)})
        return
    show_leaderboard(pipeline.read_leaderboard(run), as_json=False)
    show_score(score)
    for what, where in (("photos", data), ("run", run), ("submission", path)):
        stdout().print(f"{what + ':':<12}{where}")
    progress.say("next: engine train-zoo --data FOLDER --run runs/first, with photos of your own")


@app.command("check-submission", epilog="Example: engine check-submission runs/first/submission.csv --data photos")
def check_submission(
    file: Annotated[Path, typer.Argument(help="The CSV file, id,landmarks.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Compare with this folder's test.csv and train.csv.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a submission: every test id once, finite confidences, known landmarks; exit code 5 when it is not so."""
    from engine import pipeline
    from engine.show import show_report

    show_report(file, pipeline.check_file(file, data), as_json=as_json)


@app.command(epilog="Example: engine score runs/first/submission.csv solution.csv")
def score(
    file: Annotated[Path, typer.Argument(help="The submission, id,landmarks.")],
    solution: Annotated[Path, typer.Argument(help="The truth, id,landmarks; empty where there is no landmark.")],
    as_json: JsonOption = False,
) -> None:
    """Score a submission against a solution: exact GAP with a bootstrap interval."""
    from dataclasses import asdict

    from engine import pipeline
    from engine.console import print_json
    from engine.show import show_score

    result = pipeline.score(file, solution)
    if as_json:
        print_json(asdict(result))
    else:
        show_score(result)


@app.command(epilog="Example: engine check --data photos")
def check(
    data: Annotated[Path, typer.Option("--data", help="Folder with train.csv and the photos.")],
    config: Annotated[str, typer.Option("--config", help="Whose limits to use.")] = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Read every photo and CSV of a data folder and list what cannot be used; exit code 3 when there is."""
    from engine import pipeline
    from engine.console import ConsoleProgress
    from engine.show import show_data

    summary, bad = pipeline.check_data(data, config, ConsoleProgress())
    show_data(data, summary, bad, as_json=as_json)
    if bad:
        raise typer.Exit(3)


@config_app.command("show", epilog="Example: engine config show cpu > mine.toml")
def config_show(name: Annotated[str, typer.Argument(help="cpu, gpu, zoo, demo, or a TOML file.")] = "cpu") -> None:
    """Print a configuration as it ships, with its comments."""
    from engine.core.config import load_config, resolve_toml

    load_config(name)
    typer.echo(resolve_toml(name, "engine.presets", what="preset").read_text(encoding="utf-8"), nl=False)


@config_app.command("init", epilog="Example: engine config init mine.toml --from cpu")
def config_init(
    file: Annotated[Path, typer.Argument(help="The TOML file to write.")] = Path("engine.toml"),
    source: Annotated[str, typer.Option("--from", help="The preset to start from.")] = "cpu",
) -> None:
    """Write a preset to a file of your own to edit; an existing file is left alone."""
    from engine.core.config import resolve_toml
    from engine.core.errors import ConfigError
    from engine.core.storage import write_text

    if file.exists():
        raise ConfigError(f"{file}: exists already", hint="choose another name, or remove it first")
    write_text(file, resolve_toml(source, "engine.presets", what="preset").read_text(encoding="utf-8"))
    train = _next("train-zoo", "--config", file, "--data", "FOLDER", "--run", "runs/first")
    typer.echo(f"{file} written; {train}", err=True)


@zoo_app.command("list", epilog="Example: engine zoo list --landmarks 200")
def zoo_list(
    landmarks: Annotated[
        int, typer.Option("--landmarks", min=1, help="Count the head's parameters for so many.")
    ] = 14951,
    as_json: JsonOption = False,
) -> None:
    """List every recipe with its backbone, head, parameters, input and weights."""
    from engine import pipeline
    from engine.console import ConsoleProgress
    from engine.show import show_recipes

    show_recipes(pipeline.describe_recipes(landmarks, ConsoleProgress()), landmarks, as_json=as_json)


@zoo_app.command("show", epilog="Example: engine zoo show resnet50-hadamard > mine.toml")
def zoo_show(name: Annotated[str, typer.Argument(help="A recipe that ships, or a TOML file.")]) -> None:
    """Print a whole recipe, with the defaults that its file leaves out."""
    from engine import pipeline

    typer.echo(pipeline.recipe_text(name), nl=False)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _numbers(text: str, option: str) -> tuple[int, ...]:
    from engine.core.errors import ConfigError

    try:
        return tuple(int(word) for word in _listed(text))
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}: wanted numbers", hint=f"for example {option} 1,2") from error


def _next(*words: str | Path) -> str:
    """The command to run next, ready to be pasted whatever its paths are made of."""
    return f"next: engine {shlex.join(map(str, words))}"


def _request(
    run: Path,
    data: Path | None,
    config: str | None,
    settings: list[str] | None,
    device: str | None,
    *,
    prevalence: float | None = None,
    unseen: float | None = None,
    force_new: bool = False,
    members: str = "",
    folds: str = "",
    fail_fast: bool = False,
    resume: bool = True,
) -> Any:
    from engine.core.config import parse_settings
    from engine.pipeline import RunRequest

    changes = parse_settings(settings or [])
    if device is not None:
        changes["device"] = device
    shares = {"validation.prevalence": prevalence, "validation.unseen": unseen}
    changes |= {key: share for key, share in shares.items() if share is not None}
    chosen = (_listed(members), _numbers(folds, "--folds"))
    return RunRequest(run, data, config, changes, force_new, *chosen, fail_fast, resume)


def main() -> None:
    """The `engine` command: errors become one clear message and their exit code."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `engine … | head` ends like any other tool
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a path that the locale cannot spell is no reason to fail
    try:
        app()
    except EngineError as error:
        _fail(error, str(error.message), error.hint, error.exit_code)
    except (KeyboardInterrupt, SystemExit) as error:  # typer makes an exit of 130 of an interrupt, without a word
        if isinstance(error, SystemExit) and error.code != INTERRUPTED:
            raise
        _fail(error, "interrupted; what was finished is kept", "run the same command again to go on", INTERRUPTED)
    except MemoryError as error:
        _fail(error, "out of memory", "use fewer or smaller members, or a machine with more", 6)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a fault of ours, said in one line
        _fail(error, f"{type(error).__name__}: {error}", "this is a fault of the engine; --debug shows where", 1)


def _fail(error: BaseException, message: str, hint: str | None, code: int) -> None:
    if _state["debug"]:
        traceback.print_exception(error)
    print(f"error: {message}", file=sys.stderr)  # noqa: T201 - stderr is for talk
    if hint:
        print(f"hint: {hint}", file=sys.stderr)  # noqa: T201
    sys.exit(code)


if __name__ == "__main__":
    main()
