import json
import shlex
from pathlib import Path

import pytest
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE
from ray._private.runtime_env.packaging import create_package

from rayft.errors import RunError
from rayft.jobs import package
from rayft.jobs.package import cluster_storage, entrypoint, packed, runtime_env
from rayft.sweep_file import load_sweep


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more").mkdir()
    for name in ("train.csv", "more/a.csv", "more/b.csv"):
        (tmp_path / name).write_text("text,label\nfine,good\n")
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "weights").write_bytes(b"1" * 1000)
    return tmp_path


def write_sweep(project: Path, data: object, model: str = "model") -> Path:
    path = project / "sweep.yaml"
    path.write_text(json.dumps({"model": model, "data": data, "search_space": {"strategy": ["full", "lora"]}}))
    return path


def test_a_package_holds_all_that_the_sweep_names_and_runs_from_its_own_folder(
    project: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"train": ["train.csv", "more/*.csv"], "validation": 0.2, "test": "more/a.csv", "unlabeled": None}
    config = load_sweep(write_sweep(project, {key: value for key, value in data.items() if value is not None}))
    with packed(config, "/shared/runs", with_files=True) as made:
        monkeypatch.chdir(made.folder)
        sent = load_sweep(made.folder / "sweep.yaml")
        assert sent.model == "model" and (made.folder / "model/deep/weights").stat().st_size == 1000
        assert sent.data.train == ["data/train/0-train.csv", "data/train/1-a.csv", "data/train/2-b.csv"]
        assert (sent.data.validation, sent.data.test) == (0.2, "data/test/0-a.csv")
        assert all(Path(name).is_file() for name in sent.data.train)
        assert sent.storage == "/shared/runs"
        assert made.bytes == sum(made.files.values()) > 1000
        assert set(made.files) >= {"sweep.yaml", "model/deep/weights", "data/test/0-a.csv"}
        folder = made.folder
    assert not folder.exists()


def test_names_of_the_hub_stay_names(project: Path) -> None:
    config = load_sweep(write_sweep(project, {"train": "hub:ag_news"}, model="bert-base-uncased"))
    with packed(config, "s3://bucket/runs", with_files=True) as made:
        sent = load_sweep(made.folder / "sweep.yaml")
        assert (sent.model, sent.data.train) == ("bert-base-uncased", "hub:ag_news")
        assert set(made.files) == {"sweep.yaml"}


def test_without_files_paths_are_those_of_all_nodes(project: Path) -> None:
    config = load_sweep(write_sweep(project, {"train": "train.csv"}))
    with packed(config, "runs", with_files=False) as made:
        sent = load_sweep(made.folder / "sweep.yaml")
        assert sent.data.train == str(project / "train.csv")
        assert set(made.files) == {"sweep.yaml"}


def test_too_much_to_send_is_refused_with_sizes_and_a_way_out(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "LIMIT_BYTES", 900)
    config = load_sweep(write_sweep(project, {"train": "train.csv"}))
    with (
        pytest.raises(RunError, match=r"at most 0 MB; put it on the Hub, or .* --no-files"),
        packed(config, "runs", True),
    ):
        pass


def test_what_is_just_taken_is_taken_by_rays_job_server_too(project: Path, tmp_path: Path) -> None:
    config = load_sweep(write_sweep(project, {"train": "train.csv"}))
    with (project / "train.csv").open("r+b") as file:
        file.truncate(package.LIMIT_BYTES - 10_000)
    with packed(config, "runs", with_files=True) as made:
        create_package(str(made.folder), tmp_path / "sent.zip", include_gitignore=True)
    assert package.LIMIT_BYTES < (tmp_path / "sent.zip").stat().st_size + 10_000 < DASHBOARD_CLIENT_MAX_SIZE


def test_a_file_that_is_not_there_is_found_before_anything_is_sent(project: Path) -> None:
    config = load_sweep(write_sweep(project, {"train": "trian.csv"}))
    with pytest.raises(RunError, match=r"did you mean .*train\.csv"), packed(config, "runs", True):
        pass


def test_a_job_is_stopped_like_by_ctrl_c_and_told_no_secret(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    config = load_sweep(write_sweep(project, {"train": "train.csv"}))
    with packed(config, "runs", with_files=True) as made:
        env = runtime_env(made, "install")
        assert env["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
        assert "hunter2" not in json.dumps(env)
        assert all("==" in requirement for requirement in env["pip"]["packages"])
        names = {requirement.partition("==")[0] for requirement in env["pip"]["packages"]}
        assert {"transformers", "optuna", "peft"} <= names
        assert not names & {"ray", "torch", "numpy"}, "the cluster's own"
        assert "pip" not in runtime_env(made, "cluster")


def test_what_a_sweep_logs_to_is_installed_too(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sweep(project, {"train": "train.csv"})
    path.write_text(json.dumps(json.loads(path.read_text()) | {"logging": ["mlflow"]}))
    with packed(load_sweep(path), "runs", with_files=True) as made:
        names = [requirement.partition("==")[0] for requirement in runtime_env(made, "install")["pip"]["packages"]]
    assert "mlflow-skinny" in names and "wandb" not in names
    monkeypatch.setattr(package, "_is_installed", lambda name: name != "mlflow-skinny")
    with packed(load_sweep(path), "runs", with_files=True) as made:
        packages = runtime_env(made, "install")["pip"]["packages"]
    assert "mlflow-skinny" in packages, "in whatever version, though there is none here"


def test_a_command_survives_the_shell() -> None:
    words = shlex.split(entrypoint("resume", "s3://bucket/with space; rm -rf /"))
    assert words[-1] == "s3://bucket/with space; rm -rf /"
    assert words[0] == "exec"


@pytest.mark.parametrize(
    ("storage", "where"),
    [
        ("runs", "~/runs"),
        ("~/runs", "~/runs"),
        ("~ray/runs", "~ray/runs"),
        ("/shared/runs", "/shared/runs"),
        ("s3://bucket/runs", "s3://bucket/runs"),
    ],
)
def test_a_run_is_never_in_the_jobs_own_folder(storage: str, where: str) -> None:
    assert cluster_storage(storage) == where
