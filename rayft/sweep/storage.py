"""The study's database, with a copy of its trials in memory: reads are free, and an event is one transaction."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import Connection, Delete, Insert, bindparam
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from rayft.errors import SWEEP_FILE, ConfigError, Fault

Direction = Literal["maximize", "minimize"]


class _Rows(NamedTuple):
    """The statements that write one of the tables in which a trial has rows."""

    delete: Delete
    insert: Insert

    @classmethod
    def of(cls, model: Any, owner: str, key: str) -> "_Rows":
        """Of a table that holds one row for each owner and key."""
        table = model.__table__
        return cls(
            table.delete().where(table.c[owner] == bindparam("owner"), table.c[key] == bindparam("name")),
            table.insert(),
        )

    def write(self, connection: Connection, owner: int, rows: dict[Any, dict[str, Any]]) -> None:
        """Writes rows by their keys, in place of those that have the same key."""
        if rows:
            connection.execute(self.delete, [{"owner": owner, "name": name} for name in rows])
            connection.execute(self.insert, list(rows.values()))


_VALUE = models.TrialValueModel
_STEP = models.TrialIntermediateValueModel
_TRIALS = models.TrialModel.__table__
_INSERT_TRIAL = _TRIALS.insert()
_UPDATE_TRIAL = _TRIALS.update().where(_TRIALS.c.trial_id == bindparam("owner"))
_PARAMS = _Rows.of(models.TrialParamModel, "trial_id", "param_name")
_VALUES = _Rows.of(_VALUE, "trial_id", "objective")
_STEPS = _Rows.of(_STEP, "trial_id", "step")
_USER_ATTRS = _Rows.of(models.TrialUserAttributeModel, "trial_id", "key")
_SYSTEM_ATTRS = _Rows.of(models.TrialSystemAttributeModel, "trial_id", "key")
_STUDY_ATTRS = _Rows.of(models.StudySystemAttributeModel, "study_id", "key")


@dataclass
class _Changes:
    """What of a trial isn't in the database yet; dicts for their order, in which parameters are read back."""

    state: bool = False
    params: dict[str, None] = field(default_factory=dict)
    steps: dict[int, None] = field(default_factory=dict)
    user_attrs: dict[str, None] = field(default_factory=dict)
    system_attrs: dict[str, None] = field(default_factory=dict)


class SweepStorage(InMemoryStorage):
    """Answers from memory and writes to the database, for the one process that may write a study.

    Optuna's own storage reads the database several times for each proposal, and makes a transaction of each parameter,
    value and attribute. Here what belongs to one event is one transaction: a driver that is killed leaves the whole
    event on record, or nothing of it. The tables stay Optuna's, which makes, checks and reads them.

    SQLite keeps its rollback journal and waits for the disk: its write-ahead log needs memory that all processes share,
    which a run folder on NFS doesn't give to a reader on another machine.

    Args:
        url: The database, such as `sqlite:////runs/NAME/study.db`.
        name: The study's name.
        directions: "maximize" or "minimize", for each objective.
        create: Whether to make the study if there is none.

    Raises:
        ConfigError: There is no such kind of database.
        KeyError: There is no such study, and it isn't to be made.
    """

    def __init__(self, url: str, name: str, directions: Sequence[Direction], *, create: bool = True) -> None:
        super().__init__()
        database = _open_database(url)
        try:
            study = optuna.load_study(study_name=name, storage=database)  # which writes nothing, as readers may have to
        except KeyError:
            if not create:
                raise
            study = optuna.create_study(study_name=name, storage=database, directions=directions, load_if_exists=True)
        self._engine = database.engine
        self._study_row = study._study_id
        self._study = super().create_new_study(study.directions, name)
        for key, value in database.get_study_system_attrs(self._study_row).items():
            super().set_study_system_attr(self._study, key, value)
        # By number, as memory has them, each trial's row in the database.
        self._trial_rows: list[int] = []
        for trial in database.get_all_trials(self._study_row, deepcopy=False):
            assert trial.number == len(self._trial_rows), f"trial {trial.number} has no predecessor"
            super().create_new_trial(self._study, trial)
            self._trial_rows.append(trial._trial_id)
        self._changes: dict[int, _Changes] = {}
        self._study_changes: dict[str, None] = {}
        self._depth = 0
        self._is_ahead = False

    def trials(self) -> list[FrozenTrial]:
        """All trials by number, not to be changed."""
        return self.get_all_trials(self._study, deepcopy=False)

    def trial(self, number: int) -> FrozenTrial:
        """One trial, not to be changed."""
        return self.get_trial(self.get_trial_id_from_study_id_trial_number(self._study, number))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What is set within is written as a whole when it is left, or not at all if an error ends it.

        Raises:
            StorageInternalError: An earlier transaction failed, so that memory holds what the database doesn't: to
                write on would leave a record with holes.
        """
        if self._is_ahead:
            raise StorageInternalError("an earlier write to the study failed")
        self._depth += 1
        try:
            yield
            if self._depth == 1 and (self._changes or self._study_changes):
                self._write()
        except BaseException:
            self._is_ahead = bool(self._changes or self._study_changes)
            raise
        finally:
            self._depth -= 1

    # --- Optuna's hooks for writing

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Optuna's hook, used by samplers that count."""
        with self.transaction():
            super().set_study_system_attr(study_id, key, value)
            self._study_changes[key] = None

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Optuna's hook for a trial that starts or is put in line."""
        with self.transaction():
            trial_id = super().create_new_trial(study_id, template_trial)
            trial = self.get_trial(trial_id)
            self._changes[trial_id] = _Changes(
                state=True,
                params=dict.fromkeys(trial.params),
                steps=dict.fromkeys(trial.intermediate_values),
                user_attrs=dict.fromkeys(trial.user_attrs),
                system_attrs=dict.fromkeys(trial.system_attrs),
            )
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Optuna's hook for a hyperparameter that was drawn."""
        with self.transaction():
            super().set_trial_param(trial_id, param_name, param_value_internal, distribution)
            self._changed(trial_id).params[param_name] = None

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Optuna's hook for a trial's start and end."""
        with self.transaction():
            is_set = super().set_trial_state_values(trial_id, state, values)
            if is_set:
                self._changed(trial_id).state = True
        return is_set

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Optuna's hook for an epoch's value."""
        with self.transaction():
            super().set_trial_intermediate_value(trial_id, step, intermediate_value)
            self._changed(trial_id).steps[step] = None

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Optuna's hook for what rayft adds to a trial."""
        with self.transaction():
            super().set_trial_user_attr(trial_id, key, value)
            self._changed(trial_id).user_attrs[key] = None

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Optuna's hook for what Optuna adds to a trial."""
        with self.transaction():
            super().set_trial_system_attr(trial_id, key, value)
            self._changed(trial_id).system_attrs[key] = None

    # --- the database

    def _changed(self, trial_id: int) -> _Changes:
        return self._changes.setdefault(trial_id, _Changes())

    def _write(self) -> None:
        rows = list(self._trial_rows)
        with self._engine.begin() as connection:
            for trial_id, changes in self._changes.items():
                trial = self.get_trial(trial_id)
                if trial.number == len(rows):
                    key = connection.execute(_INSERT_TRIAL, self._trial_row(trial)).inserted_primary_key
                    assert key is not None
                    rows.append(key[0])
                elif changes.state:
                    connection.execute(_UPDATE_TRIAL, {"owner": rows[trial.number], **self._trial_row(trial)})
                _write_rows(connection, rows[trial.number], trial, changes)
            attrs = self.get_study_system_attrs(self._study)
            _STUDY_ATTRS.write(
                connection, self._study_row, _json_rows("study_id", self._study_row, attrs, self._study_changes)
            )
        self._trial_rows = rows
        self._changes.clear()
        self._study_changes.clear()

    def _trial_row(self, trial: FrozenTrial) -> dict[str, Any]:
        return {
            "number": trial.number,
            "study_id": self._study_row,
            "state": trial.state,
            "datetime_start": _in_utc(trial.datetime_start),
            "datetime_complete": _in_utc(trial.datetime_complete),
        }


def _write_rows(connection: Connection, row: int, trial: FrozenTrial, changes: _Changes) -> None:
    """What the other tables hold of a trial."""
    params = {
        name: {
            "trial_id": row,
            "param_name": name,
            "param_value": trial.distributions[name].to_internal_repr(trial.params[name]),
            "distribution_json": distribution_to_json(trial.distributions[name]),
        }
        for name in changes.params
    }
    _PARAMS.write(connection, row, params)
    steps = {}
    for step in changes.steps:
        reported, kind = _STEP.intermediate_value_to_stored_repr(trial.intermediate_values[step])
        steps[step] = {"trial_id": row, "step": step, "intermediate_value": reported, "intermediate_value_type": kind}
    _STEPS.write(connection, row, steps)
    values = {}
    for objective, told in enumerate((trial.values or []) if changes.state else []):
        value, value_type = _VALUE.value_to_stored_repr(told)
        values[objective] = {"trial_id": row, "objective": objective, "value": value, "value_type": value_type}
    _VALUES.write(connection, row, values)
    _USER_ATTRS.write(connection, row, _json_rows("trial_id", row, trial.user_attrs, changes.user_attrs))
    _SYSTEM_ATTRS.write(connection, row, _json_rows("trial_id", row, trial.system_attrs, changes.system_attrs))


def _json_rows(owner: str, row: int, attrs: dict[str, Any], keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    return {key: {owner: row, "key": key, "value_json": json.dumps(attrs[key])} for key in keys}


def _in_utc(local: datetime | None) -> datetime | None:
    return None if local is None else local.astimezone(UTC).replace(tzinfo=None)


def _open_database(url: str) -> RDBStorage:
    # A reader (`rayft trials`) must never make the writer fail: SQLite waits for a lock instead of giving up.
    connect = {"timeout": 60} if url.startswith("sqlite") else {}
    try:
        return RDBStorage(url, engine_kwargs={"connect_args": connect})
    except (ImportError, ArgumentError, NoSuchModuleError) as error:  # a driver that isn't installed, or no URL at all
        driver = "; for postgresql://, pip install 'rayft[postgresql]'" if isinstance(error, ImportError) else ""
        reason = str(error).splitlines()[0] + driver
        raise ConfigError([Fault(SWEEP_FILE, f"can't be opened: {reason}", "search.study")]) from None
    except OperationalError as error:
        if url.startswith("sqlite"):  # a file in the run folder
            raise
        reason = str(error).splitlines()[0]
        raise ConfigError([Fault(SWEEP_FILE, f"can't be opened: {reason}", "search.study")]) from None
