"""What an exported model folder says about itself, without the weight of what exports it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from rayft.config import Columns, SweepConfig, TaskName
from rayft.errors import Fault, ModelError
from rayft.sweep.ranking import search_front
from rayft.sweep.trial_record import TrialRecord

RECORD = "rayft.json"


def front_record(config: SweepConfig, records: Sequence[TrialRecord]) -> list[dict[str, Any]] | None:
    """The search's trials that no other one beats in all objectives, as the record has them; None with one objective.

    Args:
        config: The sweep.
        records: Its trials, in any order.
    """
    if len(config.objectives) == 1:
        return None
    return [
        {"trial": record.number, "params": record.params, "objectives": record.objectives(config.metric)}
        for record in search_front(records, config.modes)
    ]


class ModelRecord(BaseModel):
    """What using the model takes of its `rayft.json`."""

    model_config = ConfigDict(frozen=True)

    task: TaskName
    columns: Columns | None = None
    """Which columns of the sweep's data held what; None if the export was made before these were recorded."""


def read_record(folder: Path) -> ModelRecord:
    """Reads the record in a model folder.

    Raises:
        ModelError: It is damaged.
        OSError: It can't be read.
    """
    path = folder / RECORD
    try:
        return ModelRecord.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        faults = [Fault(str(path), found["msg"], ".".join(map(str, found["loc"])) or None) for found in error.errors()]
        raise ModelError(faults) from error
    except (ValueError, RecursionError) as error:
        raise ModelError([Fault(str(path), f"doesn't parse as JSON: {error}")]) from error
