import csv
from pathlib import Path

import pytest

from benchmarks import workload
from benchmarks.arms.job import SPACE, Job
from benchmarks.arms.rayft import sweep_file
from benchmarks.comparisons import ARMS, COMPARISONS
from benchmarks.options import BenchmarkError
from rayft.config import SweepConfig


def rows_of(path: str) -> list[tuple[str, ...]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


def job(files: workload.Files, **more: object) -> Job:
    values = {"configs": workload.replay_configs(), "epochs": 2, "work": "work", **more}
    return Job(model=files.model, train=files.train, validation=files.validation, **values)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> workload.Files:
    return workload.write_files(tmp_path_factory.mktemp("data"), 60, 40, 50)


def test_the_splits_are_disjoint_and_the_same_each_time(files: workload.Files, tmp_path: Path) -> None:
    again = workload.write_files(tmp_path, 60, 40, 50)
    splits = [rows_of(path) for path in (files.train, files.validation, files.test)]
    assert [len(rows) for rows in splits] == [60, 40, 50]
    assert len({text for rows in splits for text, _ in rows}) == 150
    assert [rows_of(path) for path in (again.train, again.validation, again.test)] == splits


def test_more_training_rows_leave_validation_and_test_as_they_are(files: workload.Files, tmp_path: Path) -> None:
    more = workload.write_files(tmp_path, 80, 40, 50)
    assert rows_of(more.validation) == rows_of(files.validation)
    assert rows_of(more.test) == rows_of(files.test)
    assert rows_of(more.train)[:60] == rows_of(files.train)


def test_too_many_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"rows must be <= \d+, but got 1000000"):
        workload.write_files(tmp_path, 1_000_000, 40, 50)


def test_random_configurations_depend_on_the_seed_alone_and_lie_in_the_space() -> None:
    configs = workload.random_configs(200, seed=3)
    assert configs == workload.random_configs(200, seed=3) != workload.random_configs(200, seed=4)
    assert {config["freeze_depth"] for config in configs} == set(range(7))
    assert {config["batch_size"] for config in configs} == {16, 32}
    rates = [config["learning_rate"] for config in configs]
    assert min(rates) >= SPACE["learning_rate"]["low"] and max(rates) <= SPACE["learning_rate"]["high"]


@pytest.mark.parametrize("name", COMPARISONS)
def test_rayft_accepts_the_sweep_file_of_every_comparison(name: str, files: workload.Files) -> None:
    comparison = COMPARISONS[name]
    given = job(files, configs=comparison.configs, epochs=comparison.epochs, early_stopping=comparison.early_stopping)
    for arm in comparison.arms:
        if ARMS[arm].module == "rayft":
            sweep = SweepConfig.model_validate(sweep_file(ARMS[arm].job(given)))
            assert sweep.search.trials == len(sweep.search.start_with) == len(comparison.configs)


def test_rayft_accepts_the_sweep_file_of_the_budget(files: workload.Files) -> None:
    sweep = SweepConfig.model_validate(sweep_file(job(files, configs=[], test=files.test, deadline=4e9)))
    assert sweep.search.time_limit is not None and sweep.search.start_with == []


def test_a_job_survives_its_file(files: workload.Files, tmp_path: Path) -> None:
    given = job(files, options={"cached": True}, deadline=12.5)
    given.save(tmp_path / "job.json")
    assert Job.load(tmp_path / "job.json") == given
