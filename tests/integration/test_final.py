"""The last stage of a sweep, killed in its middle, resumed, and done again when the sweep is extended."""

import json
import os
import signal

import pytest

from tests.integration.conftest import Project, descendants, wait_for_line


@pytest.mark.slow
def test_the_last_stage_goes_on_where_it_was_killed(project: Project) -> None:
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}
    project.write_sweep("final", search_space=space, final={"top": 1, "seeds": 2}, early_stopping={"grace_epochs": 1})
    process = project.start("sweep", "final.yaml")
    output = wait_for_line(process, "the last stage: 4 runs of trial")
    assert not any("no last stage" in line for line in output)
    wait_for_line(process, "trial 4 epoch 1")
    below = descendants(process)
    os.kill(process.pid, signal.SIGKILL)
    for child in below:
        child.wait(timeout=60)

    project.rayft("resume", "runs/final")
    trials = project.trials("final")
    assert [trial["number"] for trial in trials] == list(range(7)), "three of the search, and four of the last stage"
    assert all(trial["epochs"] == 2 for trial in trials[3:]), "nothing is stopped early there"
    best = json.loads((project.run_folder("final") / "best" / "rayft.json").read_text())
    found = best["final"]
    searched = {trial["number"]: trial for trial in trials[:3]}
    assert found["trial"] == max(searched, key=lambda number: (searched[number]["value"], -number))
    assert best["params"] == searched[found["trial"]]["params"]
    again = [trial["value"] for trial in trials[3:] if trial["params"] == best["params"]]
    assert sorted(found["values"]) == sorted(again)
    assert best["validation"]["accuracy"] == max(again)
    assert found["default"]["trial"] is None
    assert found["against_default"] in ("better", "the same within noise", "worse")
    assert best["test"] is not None

    project.rayft("resume", "runs/final")  # there is nothing left to do
    assert len(project.trials("final")) == 7
    project.rayft("resume", "runs/final", "--trials", "5")
    assert len(project.trials("final")) in (9, 11), "two more of the search; the default isn't trained again"
