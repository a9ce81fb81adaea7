"""A study in a PostgreSQL server."""

from collections.abc import Iterator

import pytest

from tests.integration.conftest import Project, wait_for_line
from tests.postgresql import PASSWORD, PostgreSQL, postgresql

pytestmark = pytest.mark.slow


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PostgreSQL]:
    with postgresql() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


def test_a_study_in_a_server_survives_a_kill_and_holds_what_a_file_holds(project: Project, server: PostgreSQL) -> None:
    search = {"trials": 3, "seed": 5}
    project.write_sweep("in-a-file", search=search)
    project.rayft("sweep", "in-a-file.yaml")

    project.write_sweep("served", search={**search, "study": server.url})
    process = project.start("sweep", "served.yaml")
    wait_for_line(process, "trial 1 epoch 1")
    process.kill()
    process.wait()
    output = project.rayft("resume", "runs/served")
    assert PASSWORD not in output
    assert not (project.run_folder("served") / "study.db").exists()
    for path in project.run_folder("served").rglob("*"):
        assert not path.is_file() or PASSWORD.encode() not in path.read_bytes(), path

    def told(run: str) -> list[dict[str, object]]:
        return [{key: value for key, value in trial.items() if key != "seconds"} for trial in project.trials(run)]

    assert told("served") == told("in-a-file")


def test_a_wrong_password_and_no_server_are_the_users_error(
    project: Project, server: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "wrong-one")
    for url in (server.url, "postgresql://rayft@127.0.0.1:1/postgres"):
        project.write_sweep("refused", search={"study": url})
        output = project.rayft("sweep", "refused.yaml", status=2)
        assert "search.study" in output
        assert "Traceback" not in output and "wrong-one" not in output
        assert not project.run_folder("refused").exists()
