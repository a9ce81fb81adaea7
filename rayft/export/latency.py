"""What each of a sweep's models will take for one row once it is exported, timed before any trial runs.

How long a model takes follows from its layers and their sizes. No strategy changes those: what LoRA adds is merged when
a trial is exported. So one figure for each model holds for all of its trials, and it is taken while the machine has
nothing else to do, which it hasn't again until the sweep is over. The winner's export is timed once more.
"""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from rayft.config import SweepConfig
from rayft.data.encoded import RAW, EncodedData
from rayft.export.model_folder import write_untrained
from rayft.export.verify import Verifier
from rayft.sweep.run_folder import LATENCIES, RunFolder, write_atomically


def measure_latencies(config: SweepConfig, run: RunFolder, note: Callable[[str], None]) -> None:
    """Times the models that aren't timed yet, and writes down what each takes.

    Args:
        config: The sweep.
        run: Its run folder, with the encoded data.
        note: Told what was found.

    Raises:
        VerificationError: Plain transformers can't run a model.
    """
    known = run.latencies()
    for model in config.models:
        if model in known:
            continue
        encoded = run.path / config.encoded_folder(model)
        with TemporaryDirectory(prefix=".latency-", dir=run.path) as folder, Verifier() as verifier:
            verifier.start()
            data = EncodedData.open(encoded)
            write_untrained(config, model, data, Path(folder))
            known[model] = verifier.latency_ms(Path(folder), data, encoded / RAW)
        note(f"{Path(model).name} takes {known[model]:.2f} ms for one row")
        write_atomically(run.path / LATENCIES, json.dumps(known, indent=2) + "\n")
        run.publish(LATENCIES)
