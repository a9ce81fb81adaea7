"""No secret in any file, the token on everywhere, and no dashboard that others reach."""

import re
import shlex
from collections.abc import Iterator

import pytest

from tests.cluster.conftest import CLUSTER, KUBERAY, RAY_UP, load, ray_cluster_spec, read

SECRETS = {
    "AWS access key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "token of a known service": r"\b(?:gh[pousr]_|github_pat_|hf_|sk-|xox[baprs]-|ya29\.)[A-Za-z0-9_.-]{10,}",
    "Ray token, or another long key": r"\b[0-9a-fA-F]{32,}\b",
    "base64": r"[A-Za-z0-9+]{20,}[A-Za-z0-9+/]{20,}={0,2}",
    "value of a password": r"(?i)(?:password|passwd|secret|token|api_?key|access_?key)\w*[\"']?\s*[:=]\s*[\"']?"
    r"(?![A-Z_]*\.\.\.)(?=[^\s\"'$]*\d)[A-Za-z0-9+/_.-]{12,}",
    "password in an address": r"://[^/\s:@]+:[^/\s:@]+@",
}


def secrets(text: str) -> list[str]:
    return [kind for kind, pattern in SECRETS.items() if re.search(pattern, text)]


@pytest.mark.parametrize("name", sorted(path.name for path in CLUSTER.iterdir()))
def test_no_file_holds_a_secret(name: str) -> None:
    assert secrets(read(name)) == []


@pytest.mark.parametrize(
    "planted",
    [
        "aws_access_key_id: AKIA" + "IOSFODNN7EXAMPLE",
        "aws_secret_access_key: wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY",
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        "RAY_AUTH_TOKEN=" + "0123456789abcdef" * 4,
        "auth_token: " + "c2VjcmV0" * 6,
        "HF_TOKEN: hf_" + "abcdefghijklmnop",
        "db_password: 'correct7horse-battery'",
        "postgresql://rayft:hunter2@db/study",
    ],
)
def test_a_secret_would_be_found(planted: str) -> None:
    assert secrets(f"env:\n  {planted}\n")


def ray_starts(name: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a `ray up` file that starts Ray: the shell's command and the words of `ray start`."""
    config = load(name)
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        if "ray start" in command:
            words = shlex.split(command)
            yield command, words[words.index("start") + 1 :]


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_turns_on_the_token_and_binds_the_dashboard_to_the_head_itself(name: str) -> None:
    (head, head_options), (worker, worker_options) = ray_starts(name)
    assert "--head" in head_options
    assert "--head" not in worker_options
    assert [option for option in head_options if option.startswith("--dashboard-host")] == [
        "--dashboard-host=127.0.0.1"
    ]
    for command in (head, worker):
        exported, _, rest = command.partition(";")
        assert re.match(r"export .*\bRAY_AUTH_MODE=token\b", exported)
        assert "RAY_AUTH_MODE" not in rest
    # For what `ray exec` and `ray attach` start
    assert any("RAY_AUTH_MODE=token" in command and ".bashrc" in command for command in load(name)["setup_commands"])


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_takes_the_token_from_a_secret_and_has_no_address_outside(name: str) -> None:
    spec = ray_cluster_spec(name)
    assert spec["authOptions"] == {"mode": "token", "secretName": "rayft-auth-token"}
    head = spec["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert head["enableIngress"] is False
    assert "headService" not in head
    for group in (head, *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert not pod.get("hostNetwork")
        (container,) = pod["containers"]
        assert not [port for port in container.get("ports", []) if "hostPort" in port]
        assert all("RAY_AUTH" not in variable["name"] for variable in container.get("env", []))


def test_the_dashboard_of_a_cluster_that_stays_up_is_for_port_forwards_alone() -> None:
    head = ray_cluster_spec("kuberay_cluster.yaml")["headGroupSpec"]
    assert head["rayStartParams"]["dashboard-host"] == "127.0.0.1"


@pytest.mark.parametrize("name", ["local_nodes.sh", "slurm.sh"])
def test_scripts_turn_on_the_token_before_they_start_ray_and_bind_the_dashboard(name: str) -> None:
    script = read(name)
    assert "export RAY_AUTH_MODE=token\n" in script
    assert script.count("--dashboard-host=") == script.count("--dashboard-host=127.0.0.1 ") == 1
    assert script.count(" --head ") == 1
    assert "chmod 600" in script


def test_nothing_binds_a_dashboard_elsewhere() -> None:
    for path in CLUSTER.iterdir():
        assert "0.0.0.0" not in path.read_text(encoding="utf-8"), path.name
