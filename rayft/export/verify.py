"""The proof of an exported model: a clean process loads it and has to reach the score on record."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rayft.data.encoded import EncodedData
from rayft.errors import VerificationError

TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}
"""How far each validation metric may lie from the record: room for another device's rounding, not for other weights.

bfloat16 has 8 bits of precision, and rounds a row otherwise when it is padded with others. Rows that this may have
decided otherwise have room of their own: of few rows, or of a rare label, one alone moves a metric by more.
"""

_SCRIPT = Path(__file__).parent / "scorers" / "score.py"


@dataclass(frozen=True)
class Scores:
    """What a clean process measured.

    Attributes:
        device: `cpu` or `cuda`.
        metrics: All metrics by split.
        interval: The 95 % bootstrap interval of the metric that was asked for, on the last split.
        classes: Each class's rows, precision, recall and F1, by split and class; empty where there are none.
        pairs: Some true numbers beside those that the model gives, by split; empty where it gives none.
        latency_ms: What the model takes for one row, if that was asked for.
    """

    device: str
    metrics: dict[str, dict[str, float]]
    interval: list[float]
    classes: dict[str, dict[str, dict[str, Any]]]
    pairs: dict[str, list[list[float]]]
    latency_ms: float | None


class Verifier:
    """Has a clean process score a model folder.

    A context manager, at whose end the process is gone.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def start(self) -> None:
        """Starts the process, unless it runs: what it imports takes seconds, which may pass before there is a model."""
        if self._process is not None:
            return
        # The folder has to be enough by itself, so the hub is out of reach.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        # -P keeps rayft's own folder off the path; -I would also hide packages that are installed for the user alone.
        command = [sys.executable, "-P", str(_SCRIPT)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=pipe)

    def verify(
        self,
        folder: Path,
        data: EncodedData,
        raw: Path,
        recorded: Mapping[str, float],
        precision: str,
        score_test: bool,
        metric: str = "loss",
        latency: bool = False,
    ) -> Scores:
        """Scores a model folder and holds validation against the record.

        Args:
            folder: The model folder.
            data: The run's encoded data, for its task and what that knows of it.
            raw: The folder of its raw rows, which go through the folder's own tokenizer or image processor.
            recorded: The validation metrics that the search recorded for these weights.
            precision: `fp32` or `bf16`, which they were measured in.
            score_test: Whether to score the test split as well, in the same process.
            metric: What to give the interval of, on test if that is scored and else on validation.
            latency: Whether to time the model as well.

        Raises:
            VerificationError: The model can't be loaded or scored, or a metric is further than `TOLERANCE` from the
                record.
        """
        splits = ("validation", "test") if score_test else ("validation",)
        arguments = [*splits, f"--rounding={TOLERANCE[precision]}", *(["--bf16"] if precision == "bf16" else [])]
        arguments += [f"--facts={json.dumps(data.facts)}", f"--metric={metric}", *(["--latency"] if latency else [])]
        result = self._ask(folder, data, raw, arguments)
        compare(result["metrics"]["validation"], recorded, TOLERANCE[precision], result["slack"]["validation"])
        names = ("device", "metrics", "interval", "classes", "pairs")
        return Scores(**{name: result[name] for name in names}, latency_ms=result.get("latency_ms"))

    def latency_ms(self, folder: Path, data: EncodedData, raw: Path) -> float:
        """What a model folder takes for one row, in milliseconds; see `scorers.latency`.

        Raises:
            VerificationError: The model can't be loaded.
        """
        return float(self._ask(folder, data, raw, ["--latency"])["latency_ms"])

    def _ask(self, folder: Path, data: EncodedData, raw: Path, options: list[str]) -> dict[str, Any]:
        self.start()
        process, self._process = self._process, None
        assert process is not None
        arguments = [data.task, str(folder.resolve()), str(raw.resolve()), *options]
        try:
            output, errors = process.communicate(json.dumps(arguments) + "\n")
        finally:
            process.kill()  # an interrupt in the middle must not leave it behind
        if process.returncode != 0:
            last = (errors.strip() or f"exit status {process.returncode}").splitlines()[-1]
            raise VerificationError(f"the exported model can't be loaded and scored by plain transformers: {last}")
        found: dict[str, Any] = json.loads(output.splitlines()[-1])
        return found


def compare(
    scored: Mapping[str, float], recorded: Mapping[str, float], tolerance: float, slack: Mapping[str, float]
) -> None:
    """Holds the metrics of a clean process against those that the search recorded.

    Args:
        scored: What the clean process measured.
        recorded: What the search recorded.
        tolerance: How far they may lie apart.
        slack: How much further each may, for rows that rounding decides.

    Raises:
        VerificationError: One is further from the record than that, or isn't a number.
    """
    wrong = [
        name
        for name, value in recorded.items()
        if not abs(scored[name] - value) <= tolerance + slack[name]  # so NaN is wrong
    ]
    if wrong:
        found = "; ".join(f"{name} is {scored[name]:.6f}, but {recorded[name]:.6f} is on record" for name in wrong)
        raise VerificationError(f"the exported model doesn't score on validation what the search recorded: {found}")
