import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import CLUSTER, KUBERAY, OTHERS, RAY_UP, SCRIPTS, read


def test_these_tests_know_every_file() -> None:
    assert {path.name for path in CLUSTER.iterdir()} == {*RAY_UP, *KUBERAY, *SCRIPTS, *OTHERS}


def test_the_readme_explains_every_file() -> None:
    linked = set(re.findall(r"\]\(([^)/]+)\)", read("README.md")))
    assert linked == {*RAY_UP, *KUBERAY, *SCRIPTS, *OTHERS} - {"README.md"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_is_a_bash_program(name: str) -> None:
    assert read(name).startswith("#!/usr/bin/env bash\n")
    assert os.access(CLUSTER / name, os.X_OK)
    subprocess.run(["bash", "-n", CLUSTER / name], check=True)


def shellcheck(script: str) -> subprocess.CompletedProcess[str]:
    """The checker of this environment, which `make install` brings, or the machine's."""
    program = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        pytest.skip("NOT CHECKED: there is no shellcheck; run `make install`, or install the system's package")
    return subprocess.run([program, "-"], input=script, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", SCRIPTS)
def test_shellcheck_finds_nothing(name: str) -> None:
    done = shellcheck(read(name))
    assert (done.returncode, done.stdout) == (0, "")


def test_shellcheck_would_find_something() -> None:
    assert "SC2086" in shellcheck("#!/usr/bin/env bash\nrm -r $1\n").stdout
