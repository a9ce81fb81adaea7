import os
import shutil
import subprocess
import sys
from pathlib import Path

import rayft


def run_job(sent: Path, modules: Path, cache: Path) -> str:
    """What a job says that was sent with a rayft of its own."""
    environment = {**os.environ, "PYTHONPATH": str(modules), "RAYFT_CACHE": str(cache)}
    command = [sys.executable, "-m", "rayft.jobs.run", "--version"]
    done = subprocess.run(command, cwd=sent, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_mended_rayft_is_the_one_that_runs(tmp_path: Path) -> None:
    sent, modules, cache = (tmp_path / name for name in ("_ray_pkg_0123", "modules", "cache"))
    sent.mkdir()
    (sent / "sweep.yaml").write_text("model: m\n")
    shutil.copytree(Path(rayft.__file__).parent, modules / "rayft", ignore=shutil.ignore_patterns("__pycache__"))
    assert run_job(sent, modules, cache) == f"rayft {rayft.__version__}"
    assert run_job(sent, modules, cache) == f"rayft {rayft.__version__}"
    (copy,) = (cache / "jobs").iterdir()
    assert copy.name.startswith("_ray_pkg_0123-") and (copy / "sweep.yaml").exists()

    with (modules / "rayft" / "__init__.py").open("a") as file:
        file.write('__version__ = "mended"\n')
    assert run_job(sent, modules, cache) == "rayft mended"
    assert len(list((cache / "jobs").iterdir())) == 2, "the other job's copy stays"
