import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest

from rayft.config import SweepConfig
from rayft.errors import RunError
from rayft.sweep.run_folder import PACKAGES, RunFolder, write_atomically
from rayft.sweep.study import SweepStudy
from tests.sweep.conftest import sweep

HOLDER = """
import sys
from pathlib import Path
from rayft.sweep.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def config() -> SweepConfig:
    return sweep(search={"trials": 3, "start_with": [{"strategy": "full"}], "time_limit": "30m"})


def test_a_new_run_holds_its_configuration_and_environment(config: SweepConfig, tmp_path: Path) -> None:
    run = RunFolder.create(str(tmp_path / "deep" / "runs"), "first", config)

    assert run.path == tmp_path / "deep" / "runs" / "first"
    assert run.config() == config
    assert sorted(p.name for p in run.path.iterdir()) == ["environment.json", "sweep.yaml"]
    environment = json.loads((run.path / "environment.json").read_text())
    assert set(environment["packages"]) == set(PACKAGES)


def test_the_users_environment_and_arguments_are_not_recorded(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(sys, "argv", ["/usr/bin/rayft", "sweep", "--set", "search.study=postgresql://me:pass@host/db"])
    run = RunFolder.create(str(tmp_path), "first", config)

    text = (run.path / "environment.json").read_text()
    assert "hf_secret" not in text
    assert "pass" not in text
    assert json.loads(text)["command"] == ["rayft", "sweep"]


def test_a_taken_name_gets_a_number(config: SweepConfig, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")

    names = [RunFolder.create(str(tmp_path), "run", config).path.name for _ in range(3)]
    assert names == ["run", "run-2", "run-3"]
    assert RunFolder.create(str(tmp_path), "file", config).path.name == "file-2"
    assert RunFolder.create(str(tmp_path), "dangling", config).path.name == "dangling-2"
    assert not (tmp_path / "gone").exists()


def test_sweeps_that_start_at_the_same_time_get_folders_of_their_own(config: SweepConfig, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: RunFolder.create(str(tmp_path), "run", config).path, range(8)))
    assert len(set(made)) == 8


@pytest.mark.parametrize("storage", ["a-file", "a-file/below", "/proc/rayft"])
def test_storage_that_cannot_be_written_is_the_users_error(config: SweepConfig, tmp_path: Path, storage: str) -> None:
    (tmp_path / "a-file").touch()
    with pytest.raises(RunError, match="storage: can't be written: ") as caught:
        RunFolder.create(str(tmp_path / storage), "run", config)
    assert str(tmp_path / storage) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a-file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_the_users_error(config: SweepConfig, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(RunError, match="Permission denied"):
            RunFolder.create(str(tmp_path), "run", config)
    finally:
        tmp_path.chmod(0o700)


def test_a_run_in_remote_storage_has_a_copy_here_that_others_find(
    config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYFT_CACHE", str(tmp_path / "here"))
    storage = f"file://{tmp_path}/far"
    runs = [RunFolder.create(storage, "run", config) for _ in range(2)]
    assert [run.address for run in runs] == [f"{storage}/run", f"{storage}/run-2"]
    assert (tmp_path / "far" / "run-2" / "sweep.yaml").exists()
    assert runs[0].path.is_relative_to(tmp_path / "here")

    monkeypatch.setenv("RAYFT_CACHE", str(tmp_path / "there"))
    found = RunFolder.find(f"{storage}/run")
    assert found.config() == config
    assert found.path.is_relative_to(tmp_path / "there")
    with pytest.raises(RunError, match=r"is not a run: it has no sweep\.yaml"):
        RunFolder.find(f"{storage}/walk")


def test_a_run_is_found_by_any_way_to_it(config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    run = RunFolder.create(str(tmp_path / "runs"), "first", config)
    assert run.path == tmp_path / "disk" / "first"  # what Ray and the study are given doesn't change with the link
    (tmp_path / "latest").symlink_to(run.path)
    monkeypatch.chdir(tmp_path)

    assert RunFolder.find("latest") == RunFolder.find("runs/first") == run


def test_what_is_no_run_is_refused_with_those_near_it(config: SweepConfig, tmp_path: Path) -> None:
    for name in ("beta", "alpha"):
        RunFolder.create(str(tmp_path), name, config)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"alpa: no such run folder; .* has alpha, beta$"):
        RunFolder.find(str(tmp_path / "alpa"))
    with pytest.raises(RunError, match=r"empty: is not a run folder: it has no sweep\.yaml"):
        RunFolder.find(str(tmp_path / "empty"))
    with pytest.raises(RunError, match=r"run: no such run folder$"):
        RunFolder.find(str(tmp_path / "nowhere" / "run"))
    with pytest.raises(RunError, match="no such run folder"):
        RunFolder.find(str(tmp_path / "alpha" / "sweep.yaml"))


def test_two_processes_cannot_write_one_run(config: SweepConfig, tmp_path: Path) -> None:
    run = RunFolder.create(str(tmp_path), "run", config)
    command = [sys.executable, "-c", HOLDER, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        for _ in range(2):  # looking at the lock doesn't break it
            with pytest.raises(RunError, match=f"is in use by process {holder.pid} on "):
                run.lock()
        holder.kill()  # and a killed process leaves none behind
        holder.wait()
        with run.lock():
            assert (run.path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    with run.lock():
        pass


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sweep.yaml"
    write_atomically(path, "old: ä\n")
    assert path.read_text(encoding="utf-8") == "old: ä\n"

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old: ä\n"
    monkeypatch.undo()
    write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["sweep.yaml"]  # the leftover was taken over


def test_an_extended_sweeps_configuration_replaces_the_old_one(config: SweepConfig, tmp_path: Path) -> None:
    run = RunFolder.create(str(tmp_path), "run", config)
    longer = config.model_copy(update={"search": config.search.model_copy(update={"trials": 9})})
    run.write_config(longer)
    assert run.config() == longer


def test_sweeps_that_share_a_database_have_studies_of_their_own(tmp_path: Path, tables: Path) -> None:
    shared = sweep(search={"study": f"sqlite:///{tables}"})
    runs = [RunFolder.create(str(tmp_path / storage), "run", shared) for storage in ("a", "b")]
    SweepStudy.of_run(runs[0], runs[0].config()).ask()

    assert [len(SweepStudy.of_run(run, run.config()).records()) for run in runs] == [1, 0]
    moved = RunFolder(runs[0].path.rename(tmp_path / "moved"))
    assert len(SweepStudy.of_run(moved, moved.config()).records()) == 1
    runs[0] = moved
    assert not (runs[0].path / "study.db").exists()
    own = RunFolder.create(str(tmp_path), "own", sweep())
    SweepStudy.of_run(own, own.config()).ask()
    assert len(SweepStudy.of_run(RunFolder.find(str(own.path)), RunFolder.find(str(own.path)).config()).records()) == 1
    assert (own.path / "study.db").exists()


@pytest.mark.parametrize("lost", ["the study", "its trials", "its name"])
def test_a_study_that_is_gone_from_its_database_is_not_begun_anew(tmp_path: Path, tables: Path, lost: str) -> None:
    url = f"sqlite:///{tables}"
    run = RunFolder.create(str(tmp_path), f"gone-{lost}", sweep(search={"study": url}))
    SweepStudy.of_run(run, run.config()).ask()
    run.trial(0).mkdir(parents=True)
    if lost == "its name":
        (run.path / "environment.json").write_text("{}")
    else:
        optuna.delete_study(study_name=run.study_name, storage=url)
    if lost == "its trials":
        optuna.create_study(study_name=run.study_name, storage=url, direction="maximize")
    studies = optuna.get_all_study_names(url)

    with pytest.raises(RunError, match="put a copy of it back"):
        SweepStudy.of_run(run, run.config())
    assert optuna.get_all_study_names(url) == studies


def test_a_lock_that_can_t_be_made_is_the_users_error(config: SweepConfig, tmp_path: Path) -> None:
    run = RunFolder.create(str(tmp_path), "run", config)
    (run.path / ".lock").mkdir()
    with pytest.raises(RunError, match="can't be written: Is a directory"):
        run.lock()


def test_what_a_killed_process_has_left_half_written_is_rolled_back(tmp_path: Path) -> None:
    """SQLite can't do that where the file is opened to be read only, and calls it damaged."""
    run = RunFolder.create(str(tmp_path), "run", sweep())
    SweepStudy.of_run(run, run.config()).ask()
    code = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 1")  # pages go to the file before the commit, and so the journal is there
database.execute("BEGIN")
database.execute("CREATE TABLE filler (text)")
database.executemany("INSERT INTO filler VALUES (?)", [("x" * 1000,)] * 2000)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, run.path / "study.db"])
    assert (run.path / "study.db-journal").exists()
    study = SweepStudy.of_run(run, run.config())
    assert [record.state for record in study.records()] == ["running"]
    assert study.ask()[0] == 1
