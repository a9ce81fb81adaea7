import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search.optuna import OptunaSearch

from rayft import search_space
from rayft.config import SweepConfig
from rayft.errors import ConfigError
from rayft.search_space import Params
from rayft.sweep.ranking import FailureKind
from rayft.sweep.study import SweepStudy
from rayft.sweep.trial_record import TrialRecord
from tests.sweep.conftest import OpenStudy, metrics, quality, sweep

Read = Callable[[], list[Any]]

SIMPLE = {"learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "batch_size": [16, 32]}


def driver(open_study: OpenStudy, config: SweepConfig, name: str = "study.db") -> SweepStudy:
    """The study as a driver opens it, each time that it starts."""
    study = open_study(config, name)
    study.enqueue_start_with()
    return study


def train(study: SweepStudy, number: int, values: list[float]) -> None:
    for epoch, value in enumerate(values, 1):
        study.record_epoch(number, epoch, metrics(value), seconds=1.5)


# --- values and states


def test_a_record_holds_the_best_epoch_with_all_its_metrics(open_study: OpenStudy) -> None:
    study = open_study(sweep(epochs=3))
    number, params = study.ask()
    for epoch, value in enumerate([0.5, 0.8, 0.7], 1):
        study.record_epoch(number, epoch, metrics(value), seconds=1.5, digest=f"digest of {epoch}")
    expected = TrialRecord(
        number=0,
        state="complete",
        params=params,
        value=0.8,
        best_epoch=2,
        epochs=3,
        values={1: 0.5, 2: 0.8, 3: 0.7},
        metrics=metrics(0.8),
        seconds=4.5,
        checkpoint="trials/0/checkpoint-2",
        digest="digest of 2",
    )

    assert study.finish(number) == expected
    assert open_study(sweep(epochs=3)).records() == [expected]  # all of it is on disk


@pytest.mark.parametrize(
    ("metric", "mode", "values", "best", "told"),
    [
        ("accuracy", None, [0.5, 0.8, 0.7], 2, 0.8),
        ("loss", None, [0.5, 0.8, 0.7], 2, 0.2),  # the loss is 1 - accuracy
        ("accuracy", "min", [0.5, 0.8, 0.4], 3, 0.4),
    ],
)
def test_optuna_is_told_the_best_epochs_value_and_the_direction(
    open_study: OpenStudy,
    optuna_trials: Read,
    metric: str,
    mode: str | None,
    values: list[float],
    best: int,
    told: float,
) -> None:
    study = open_study(sweep(epochs=3, search={"metric": metric, "mode": mode}))
    number, _ = study.ask()
    train(study, number, values)

    assert study.finish(number).best_epoch == best
    (trial,) = optuna_trials()
    assert trial.value == pytest.approx(told)
    assert list(trial.intermediate_values) == [1, 2, 3]


def test_a_stopped_trial_is_pruned_with_its_steps_where_rays_searcher_says_complete(
    open_study: OpenStudy, optuna_trials: Read
) -> None:
    study = open_study(sweep(epochs=9))
    number, _ = study.ask()
    train(study, number, [0.3])
    assert study.finish(number, reason="stopped by search.time_limit").reason == "stopped by search.time_limit"
    (trial,) = optuna_trials()

    naive = rays_searcher()
    naive.suggest("a")
    naive.on_trial_result("a", {"accuracy": 0.3, "training_iteration": 1})
    naive.on_trial_complete("a", {"accuracy": 0.3, "training_iteration": 1})

    assert (trial.state, trial.intermediate_values) == (TrialState.PRUNED, {1: 0.3})
    assert study.record(0).state == "pruned"
    assert naive._ot_study.trials[0].state == TrialState.COMPLETE  # one epoch, ranked with trials of nine


# --- failures


FAILURES: dict[FailureKind, TrialState] = {
    "diverged": TrialState.PRUNED,
    "out_of_memory": TrialState.PRUNED,
    "error": TrialState.FAIL,
    "infrastructure": TrialState.FAIL,
}


@pytest.mark.parametrize("epochs", [0, 1])
@pytest.mark.parametrize("kind", FAILURES)
def test_each_kind_of_failure_is_told_for_what_it_says_of_the_search(
    open_study: OpenStudy, optuna_trials: Read, kind: FailureKind, epochs: int
) -> None:
    study = open_study(sweep())
    number, _ = study.ask()
    train(study, number, [0.9] * epochs)

    record = study.fail(number, kind, "what happened")

    (trial,) = optuna_trials()
    assert (record.state, record.reason, record.epochs) == ("failed", "what happened", epochs)
    assert trial.state == FAILURES[kind]
    assert trial.constraints == ({"failure": 1.0} if FAILURES[kind] == TrialState.PRUNED else {})


def test_tpe_keeps_away_from_where_trials_diverge(open_study: OpenStudy) -> None:
    """The higher the learning rate, the better the first epoch; above 1e-4 the second one diverges."""

    def share_above(name: str, tell: Callable[[SweepStudy, int, float], object]) -> float:
        study = open_study(sweep(space=SIMPLE, search={"seed": 5}), name)
        rates = []
        for trial in range(28):
            number, params = study.ask()
            rate = params["learning_rate"]
            assert isinstance(rate, float)
            value = 0.9 + 0.02 * math.log10(rate)
            if trial >= 16:  # all from the same record: the sampler never sees what the infrastructure broke
                rates.append(rate)
                study.fail(number, "infrastructure", "")
            elif rate > 1e-4:
                train(study, number, [value])
                tell(study, number, value)
            else:
                train(study, number, [value] * 2)
                study.finish(number)
        return sum(rate > 1e-4 for rate in rates) / len(rates)

    with_constraint = share_above("ours.db", lambda study, number, value: study.fail(number, "diverged", "loss is nan"))
    told_as_value = share_above("naive.db", lambda study, number, value: study._study.tell(number, value))

    assert with_constraint <= 0.25
    assert told_as_value >= 0.75


def test_nan_cannot_enter_and_leaves_nothing_running_where_rays_searcher_hangs(
    open_study: OpenStudy, optuna_trials: Read
) -> None:
    study = open_study(sweep())
    number, _ = study.ask()
    for value in (math.nan, math.inf):
        with pytest.raises(AssertionError, match="trial 0 epoch 1"):
            study.record_epoch(number, 1, {"accuracy": 0.5, "loss": value}, seconds=1.0)
    assert study.record(number).values == {}
    study.fail(number, "diverged", "train loss is nan at epoch 1, step 7")

    naive = rays_searcher()
    for name, value in (("nan", math.nan), ("inf", math.inf)):
        naive.suggest(name)
        naive.on_trial_complete(name, {"accuracy": value, "training_iteration": 1})

    assert [trial.state for trial in optuna_trials()] == [TrialState.PRUNED]
    assert [trial.state for trial in naive._ot_study.trials] == [TrialState.RUNNING, TrialState.COMPLETE]


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.6]])
@pytest.mark.parametrize("reopened", [False, True])
def test_no_trial_is_left_running(
    open_study: OpenStudy, optuna_trials: Read, values: list[float], reopened: bool
) -> None:
    study = open_study(sweep())
    ends: list[Callable[[SweepStudy, int], object]] = [
        lambda study, number: study.finish(number),
        *(lambda study, number, kind=kind: study.fail(number, kind, "x") for kind in FAILURES),
    ]
    for end in ends:
        number, _ = study.ask()
        train(study, number, values)
        if reopened:
            study = open_study(sweep())
        end(study, number)

    assert all(trial.state.is_finished() for trial in optuna_trials())
    assert "running" not in [record.state for record in study.records()]


@pytest.mark.parametrize("kind", FAILURES)
def test_a_driver_that_dies_while_it_records_a_failure_leaves_a_trial_that_can_go_on(
    open_study: OpenStudy, optuna_trials: Read, kind: FailureKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(sweep())
    number, params = study.ask()
    monkeypatch.setattr(study._study, "tell", _killed)
    with pytest.raises(_Killed):
        study.fail(number, kind, "what happened")

    study = open_study(sweep())
    assert study.record(number).state == "running"  # and so the searcher takes it up again
    assert study.reopen(number) == params
    train(study, number, [0.5, 0.6])
    record = study.finish(number)

    assert (record.state, record.reason) == ("complete", None)
    assert [trial.state for trial in optuna_trials()] == [TrialState.COMPLETE]


# --- epochs


def test_an_epoch_that_comes_twice_counts_once(open_study: OpenStudy, optuna_trials: Read) -> None:
    study = open_study(sweep())
    number, _ = study.ask()
    study.record_epoch(number, 1, metrics(0.5), seconds=1.0)
    study.record_epoch(number, 1, metrics(0.9), seconds=8.0)
    study = open_study(sweep())
    study.record_epoch(number, 1, metrics(0.9), seconds=8.0)

    record = study.record(number)
    assert (record.values, record.seconds, record.epochs) == ({1: 0.5}, 1.0, 1)
    assert optuna_trials()[0].intermediate_values == {1: 0.5}


def test_a_driver_that_dies_while_it_records_an_epoch_leaves_nothing_of_it(
    open_study: OpenStudy, optuna_trials: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(sweep())
    number, _ = study.ask()
    monkeypatch.setattr(optuna.Trial, "set_user_attr", _killed)
    with pytest.raises(_Killed):
        study.record_epoch(number, 1, metrics(0.5), seconds=1.0)
    monkeypatch.undo()

    study = open_study(sweep())
    assert study.record(number).values == optuna_trials()[0].intermediate_values == {}
    study.reopen(number)
    study.record_epoch(number, 1, metrics(0.5), seconds=1.0)

    assert study.record(number).values == optuna_trials()[0].intermediate_values == {1: 0.5}


def test_only_the_best_epochs_checkpoint_is_the_trials(open_study: OpenStudy) -> None:
    study = open_study(sweep())
    number, _ = study.ask()
    study.record_epoch(number, 1, metrics(0.5), seconds=1.0, digest="one")
    study.record_epoch(number, 2, metrics(0.6), seconds=1.0)  # it didn't lead the sweep

    record = study.finish(number)
    assert (record.best_epoch, record.checkpoint, record.digest) == (2, None, None)


def test_an_epoch_that_was_trained_again_has_its_new_checkpoint(open_study: OpenStudy) -> None:
    study = open_study(sweep())
    number, _ = study.ask()
    study.record_epoch(number, 1, metrics(0.5), seconds=1.0, digest="old")
    study.record_epoch(number, 1, metrics(0.5), seconds=1.0)
    assert study.record(number).digest == "old"
    study.record_epoch(number, 1, metrics(0.5), seconds=1.0, digest="new")

    record = study.record(number)
    assert (record.digest, record.checkpoint, record.epochs) == ("new", "trials/0/checkpoint-1", 1)


# --- proposals


def run_on(study: SweepStudy, number: int, params: Params) -> None:
    """Trains what is left of a trial and ends it, in one of four ways."""
    if number % 7 == 6:
        study.fail(number, "infrastructure", "a machine was lost")
    elif number % 5 == 3:
        train(study, number, [quality(params)])
        study.fail(number, "out_of_memory", "too large")
    elif number % 5 == 4:
        train(study, number, [quality(params)])
        study.finish(number)
    else:
        train(study, number, [quality(params), quality(params) + 0.01])
        study.finish(number)


def proposals(
    open_study: OpenStudy, config: SweepConfig, count: int, name: str, width: int = 1, killed: bool = False
) -> list[Params]:
    """What is proposed to `count` trials, `width` at a time.

    A killed driver dies in each round: in turn between ask and first epoch, in mid-trial, and between trials.
    """
    study = driver(open_study, config, name)
    proposed: list[Params] = []
    for kill in range(count // width):
        asked = [study.ask() for _ in range(width)]
        proposed += [params for _, params in asked]
        if killed and kill % 3 == 1:
            for number, params in asked:
                train(study, number, [quality(params)])
        if killed and kill % 3 < 2:
            study = driver(open_study, config, name)
            assert [r.number for r in study.records() if r.state == "running"] == [number for number, _ in asked]
            assert [study.reopen(number) for number, _ in asked] == [params for _, params in asked]
        for number, params in asked:
            run_on(study, number, params)
        if killed and kill % 3 == 2:
            study = driver(open_study, config, name)
    return proposed


@pytest.mark.parametrize(("sampler", "count"), [("tpe", 18), ("random", 6), ("qmc", 8), ("gp", 14)])
def test_a_resumed_study_proposes_what_an_uninterrupted_one_does(
    open_study: OpenStudy, sampler: str, count: int
) -> None:
    config = sweep(search={"sampler": sampler, "seed": 3, "trials": count})

    whole = proposals(open_study, config, count, "whole.db", width=2)
    resumed = proposals(open_study, config, count, "resumed.db", width=2, killed=True)

    assert resumed == whole  # number for number, not nearly
    assert len({str(params) for params in whole}) == count


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_another_seed_proposes_something_else(open_study: OpenStudy, sampler: str) -> None:
    first = [
        open_study(sweep(search={"sampler": sampler, "seed": seed}), f"{seed}.db").ask()[1]["learning_rate"]
        for seed in range(4)
    ]
    assert len(set(first)) == 4


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "gp"])
def test_every_hyperparameter_varies_from_trial_to_trial(open_study: OpenStudy, sampler: str) -> None:
    """Each trial has a sampler of its own: one seed for all of them would repeat the draws that no sequence numbers."""
    study = open_study(sweep(search={"sampler": sampler}))
    seen: dict[str, set[Any]] = {}
    for _ in range(30):
        number, params = study.ask()
        for name, value in params.items():
            seen.setdefault(name, set()).add(value)
        study.finish(number)

    assert set(seen) == set(sweep().search_space)
    assert {name for name, values in seen.items() if len(values) < 2} == set()


class _Killed(BaseException):
    """The driver dies here."""


def _killed(*args: Any, **kwargs: Any) -> Any:
    raise _Killed


@pytest.mark.parametrize("drawn", [0, 2])
@pytest.mark.parametrize("finished", [0, 12])
@pytest.mark.parametrize("sampler", ["tpe", "qmc"])
def test_a_driver_that_dies_while_it_draws_a_trial_leaves_nothing_of_it(
    open_study: OpenStudy, monkeypatch: pytest.MonkeyPatch, drawn: int, finished: int, sampler: str
) -> None:
    config = sweep(search={"seed": 1, "sampler": sampler, "start_with": STARTS[:1]})
    whole = proposals(open_study, config, finished + 1, "whole.db")
    study = driver(open_study, config)
    for _ in range(finished):
        run_on(study, *study.ask())
    draw, calls = search_space._suggest_one, iter(range(99))
    monkeypatch.setattr(search_space, "_suggest_one", lambda *given: draw(*given) if next(calls) < drawn else _killed())
    with pytest.raises(_Killed):
        study.ask()
    monkeypatch.undo()

    study = driver(open_study, config)
    assert len(study.records()) == finished
    assert study.ask() == (finished, whole[-1])


@pytest.mark.parametrize("drawn", [0, 2])
def test_a_trial_that_was_drawn_in_part_is_drawn_to_its_end(
    open_study: OpenStudy, monkeypatch: pytest.MonkeyPatch, drawn: int, tmp_path: Path
) -> None:
    """As `optuna.Study.ask` leaves it, which writes one parameter at a time."""
    open_study(sweep())
    other = optuna.load_study(study_name="rayft", storage=f"sqlite:///{tmp_path / 'study.db'}").ask()
    draw, calls = search_space._suggest_one, iter(range(99))
    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr(search_space, "_suggest_one", lambda *given: draw(*given) if next(calls) < drawn else _killed())
        search_space.suggest(sweep(), other)

    study = open_study(sweep())
    before = study.record(0).params
    params = study.reopen(0)
    assert len(before) == drawn
    assert before.items() <= params.items()
    assert {"strategy", "learning_rate", "batch_size", "dropout"} <= params.keys()
    assert study.reopen(0) == params == study.record(0).params == open_study(sweep()).record(0).params
    run_on(study, 0, params)
    assert study.ask()[0] == 1


# --- starting points and extending


STARTS = [{"strategy": "partial", "freeze_depth": 2, "learning_rate": 3e-5}, {"strategy": "full", "batch_size": 32}]


def test_starting_points_come_first_and_only_once(open_study: OpenStudy) -> None:
    config = sweep(search={"start_with": STARTS})
    first = driver(open_study, config).ask()[1]
    study = driver(open_study, config)
    second, third = study.ask(), driver(open_study, config).ask()

    assert first.items() >= STARTS[0].items()
    assert second[1].items() >= STARTS[1].items()
    assert (second[0], third[0]) == (1, 2)
    assert {"learning_rate", "dropout"} <= second[1].keys()  # what a starting point leaves out is drawn
    assert [record.number for record in open_study(config).records()] == [0, 1, 2]


@pytest.mark.parametrize("enqueued", [0, 1])
def test_a_driver_that_dies_while_it_enqueues_starting_points_loses_none(
    open_study: OpenStudy, monkeypatch: pytest.MonkeyPatch, enqueued: int
) -> None:
    config = sweep(search={"start_with": STARTS})
    real, calls = optuna.Study.enqueue_trial, iter(range(9))

    def dying(*args: Any, **kwargs: Any) -> Any:
        return real(*args, **kwargs) if next(calls) < enqueued else _killed()

    monkeypatch.setattr(optuna.Study, "enqueue_trial", dying)
    with pytest.raises(_Killed):
        driver(open_study, config)
    monkeypatch.undo()

    study = driver(open_study, config)
    assert [study.ask()[1]["strategy"] for _ in STARTS] == ["partial", "full"]
    assert driver(open_study, config).ask()[0] == len(STARTS)


def test_trials_that_wait_in_the_queue_are_no_records_and_readers_queue_none(
    open_study: OpenStudy, optuna_trials: Read
) -> None:
    config = sweep(search={"start_with": STARTS})
    open_study(config)
    assert optuna_trials() == []
    assert driver(open_study, config).records() == []
    assert [trial.state for trial in optuna_trials()] == [TrialState.WAITING] * 2


def test_an_extended_sweep_goes_on_as_a_longer_one_would_have(open_study: OpenStudy) -> None:
    def config(trials: int) -> SweepConfig:
        return sweep(search={"seed": 2, "trials": trials, "start_with": STARTS[:1]})

    whole = proposals(open_study, config(14), 14, "whole.db")
    first = proposals(open_study, config(11), 11, "extended.db")
    rest = proposals(open_study, config(14), 3, "extended.db")

    assert first + rest == whole


# --- what Ray's own searcher can't do


def conditional_space(trial: optuna.Trial) -> None:
    if trial.suggest_categorical("strategy", ["full", "partial"]) == "partial":
        trial.suggest_int("freeze_depth", 1, 6)


def rays_searcher(**options: Any) -> OptunaSearch:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(space=conditional_space, metric="accuracy", mode="max", **options)


def test_conditional_spaces_resume_where_rays_searcher_refuses_what_was_evaluated(open_study: OpenStudy) -> None:
    study = open_study(sweep())
    for _ in range(2):
        run_on(study, *study.ask())
    assert [record.value for record in open_study(sweep()).records()] == [r.value for r in study.records()]

    with pytest.raises(TypeError, match="not yet supported when using `evaluated_rewards`"):
        rays_searcher(points_to_evaluate=[{"strategy": "full"}], evaluated_rewards=[0.8])


def test_what_a_killed_driver_left_open_is_closed_where_rays_pickle_leaves_it_for_ever(
    open_study: OpenStudy, optuna_trials: Read, tmp_path: Any
) -> None:
    study = open_study(sweep())
    for _ in range(2):
        study.ask()
    study = open_study(sweep())
    for record in study.records():
        run_on(study, record.number, study.reopen(record.number))
    assert {trial.state for trial in optuna_trials()} == {TrialState.COMPLETE}

    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'naive.db'}")
    naive = rays_searcher(storage=storage, study_name="naive")
    naive.save(str(tmp_path / "snapshot.pkl"))
    for name in ("a", "b"):  # both asked after the last snapshot
        naive.suggest(name)
    restored = rays_searcher(storage=storage, study_name="naive")
    restored.restore(str(tmp_path / "snapshot.pkl"))
    for name in ("c", "d"):
        restored.suggest(name)
        restored.on_trial_complete(name, {"accuracy": 0.5, "training_iteration": 2})
    states = [trial.state for trial in restored._ot_study.trials]
    assert states == [TrialState.RUNNING] * 2 + [TrialState.COMPLETE] * 2


def test_a_study_that_can_t_be_opened_is_the_users_error() -> None:
    for url in ("no-url", "nosuch://host/name"):
        with pytest.raises(ConfigError, match=r"search\.study: can't be opened"):
            SweepStudy(sweep(), url)


# --- several objectives

BOTH = ["accuracy", "train_seconds"]


def test_optuna_gets_every_objective_and_has_the_front(open_study: OpenStudy, tmp_path: Path) -> None:
    config = sweep(epochs=2, search={"metric": BOTH})
    study = open_study(config)
    for accuracy, seconds in ((0.9, 5.0), (0.8, 2.0), (0.7, 3.0)):
        number, _ = study.ask()
        study.record_epoch(number, 1, metrics(accuracy - 0.1), 1.0, point=(accuracy - 0.1, seconds - 1))
        study.record_epoch(number, 2, metrics(accuracy), 1.0, point=(accuracy, seconds))
        record = study.finish(number)
        assert (record.state, record.value, record.point) == ("complete", accuracy, (accuracy, seconds))
        assert record.objectives("accuracy") == {"accuracy": accuracy, "train_seconds": seconds}
        assert record.measured == {**metrics(accuracy), "train_seconds": seconds}

    assert open_study(config).records() == study.records()  # all of it is on disk
    seen = optuna.load_study(study_name="rayft", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert [direction.name for direction in seen.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.values for trial in seen.best_trials] == [[0.9, 5.0], [0.8, 2.0]]


def test_a_trial_that_was_stopped_keeps_its_objectives(open_study: OpenStudy) -> None:
    study = open_study(sweep(epochs=2, search={"metric": BOTH}))
    number, _ = study.ask()
    study.record_epoch(number, 1, metrics(0.6), 1.0, point=(0.6, 1.5))
    record = study.finish(number)
    assert (record.state, record.point, record.further) == ("pruned", (0.6, 1.5), {1: {"train_seconds": 1.5}})


@pytest.mark.parametrize("sampler", ["tpe", "random", "gp", "qmc"])
def test_every_sampler_proposes_for_several_objectives(open_study: OpenStudy, sampler: str) -> None:
    study = open_study(sweep(epochs=2, search={"metric": BOTH, "sampler": sampler, "trials": 30}))
    for index in range(24):
        number, params = study.ask()
        if index % 5 == 4:
            study.fail(number, "diverged", "the loss is nan")
            continue
        for epoch in range(1, 2 if index % 3 else 3):  # early stopping lets one in three go on
            point = (quality(params), float(epoch * (index % 4)))
            study.record_epoch(number, epoch, metrics(point[0]), 1.0, point=point)
        study.finish(number)
    proposed = {record.number: record.params for record in study.records()}
    assert len(proposed) == 24 and len({str(params) for params in proposed.values()}) > 20
    assert {record.state for record in study.records()} == {"complete", "pruned", "failed"}
