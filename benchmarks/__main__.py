"""`python -m benchmarks NAME...`: runs benchmarks, prints their tables and writes their results."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import budget, comparisons, machine, overhead
from benchmarks.options import BenchmarkError, Options
from benchmarks.report import write_json

RESULTS = Path(__file__).parent / "results"

BENCHMARKS: dict[str, Callable[[Options], dict[str, Any]]] = {
    **{name: partial(comparisons.run, name) for name in comparisons.COMPARISONS},
    "budget": budget.run,
    "overhead": overhead.run,
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help=f"{', '.join(BENCHMARKS)}, or all.")],
    rows: Annotated[int | None, typer.Option(min=1, help="Training rows.")] = None,
    arms: Annotated[str | None, typer.Option(help="Only these arms, with commas between them.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often every arm runs.")] = 1,
    cores: Annotated[int | None, typer.Option(min=1, help="CPU cores per arm; all without it.")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="Tiny sizes; the numbers mean nothing.")] = False,
    seconds: Annotated[float, typer.Option(min=1, help="The time budget of `budget`.")] = 120.0,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds `budget` has.")] = 5,
    timeout: Annotated[float, typer.Option(min=1, help="An arm that takes longer is ended.")] = 3600.0,
    keep: Annotated[bool, typer.Option("--keep", help="Keeps the arms' files and output.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS,
) -> None:
    """Runs rayft and the other ways to run the same search, one after another in this invocation."""
    wanted = list(BENCHMARKS) if names == ["all"] else names
    if unknown := [name for name in wanted if name not in BENCHMARKS]:
        raise typer.BadParameter(f"unknown benchmark {unknown[0]!r}, available are {', '.join(BENCHMARKS)}")
    with work_folder(keep) as folder:
        options = Options(
            work=folder,
            cores=cores or machine.cores(),
            rows=rows,
            arms=tuple(arms.split(",")) if arms else None,
            repeats=repeats,
            smoke=smoke,
            seconds=seconds,
            seeds=seeds,
            timeout=timeout,
        )
        failed = [name for name in wanted if not measure(name, options, out)]
    if failed:
        print(f"failed: {', '.join(failed)}")
        raise typer.Exit(1)


@contextmanager
def work_folder(keep: bool) -> Iterator[Path]:
    """A temporary folder, which stays if asked to: it holds what every arm wrote and printed."""
    folder = Path(tempfile.mkdtemp(prefix="rayft-bench-"))
    try:
        yield folder
    finally:
        if keep:
            print(f"kept {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def measure(name: str, options: Options, out: Path) -> bool:
    """Runs one benchmark and writes its result at once; returns whether there is one, and doesn't stop the next one."""
    described, started = machine.describe(), time.time()
    try:
        result = BENCHMARKS[name](options)
    except BenchmarkError as error:
        print(f"{name}: {error}")
        return False
    settings = {key: value for key, value in asdict(options).items() if key != "work"}
    path = out / f"{name}{'-smoke' if options.smoke else ''}.json"
    head = {"benchmark": name, "settings": settings, "machine": described, "seconds": round(time.time() - started, 1)}
    write_json(path, {**head, **result})
    print(f"wrote {path}")
    return True


if __name__ == "__main__":
    app()
