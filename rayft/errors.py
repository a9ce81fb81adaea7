"""The errors that rayft raises on purpose, each with the exit status that the command line gives it."""

from dataclasses import dataclass

SWEEP_FILE = "the sweep file"
"""`Fault.where` of a fault that only shows once data, model or cluster are known; the command line names the file."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with what the user gave.

    Attributes:
        where: The file, with a line or row if one is known, as `sweep.yaml:12` or `train.csv:7`.
        rule: What must hold, with the value that breaks it and the choices there are.
        key: The YAML key or the column, if the fault has one.
    """

    where: str
    rule: str
    key: str | None = None

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.rule) if part)


class RayftError(Exception):
    """Base of every error that rayft raises on purpose."""

    exit_status = 1


class UserError(RayftError):
    """The input is wrong: all its faults at once, to be shown on one screen without a traceback."""

    exit_status = 2

    def __init__(self, faults: list[Fault]) -> None:
        assert faults, "a user error without a fault"
        self.faults = faults
        super().__init__("\n".join(str(fault) for fault in faults))


class ConfigError(UserError):
    """The sweep file is wrong."""


class DataError(UserError):
    """The data files are wrong."""


class ModelError(UserError):
    """The model can't be loaded, or its layers can't be mapped."""


class ClusterError(UserError):
    """The cluster can't be reached, or can never satisfy what is asked of it."""


class RunError(UserError):
    """The run folder is missing, in use, or not one that this command can work with."""


class SweepFailedError(RayftError):
    """The sweep ended without a model."""


class VerificationError(RayftError):
    """The exported model doesn't score what the search recorded."""


class CheckpointError(RayftError):
    """A checkpoint is incomplete or damaged."""


class InterruptedSweep(RayftError):
    """The sweep was interrupted and can be resumed."""

    exit_status = 130


class InterruptedPrediction(RayftError):
    """Predicting was interrupted, and nothing is written."""

    exit_status = 130


class InterruptedReproduction(RayftError):
    """Training a trial again was interrupted; the run is as it was."""

    exit_status = 130
