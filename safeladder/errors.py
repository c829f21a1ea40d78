"""The tree of errors, each with the exit code that a shell and ``status.json`` see.

::

    SafeladderError
    ├── ConfigError              2   a key, a value, a verifier path
    │   └── DataError            2   a row of a data file
    ├── RunExistsError           2   the run directory is taken
    ├── EnvironmentUnfitError    3   model, dtype, port, disk
    ├── VerifierUnavailableError 4   a verifier that does not answer, or is invalid past its budget
    ├── DivergedError            5   training stopped by a guard
    │   └── TrippedError         5   a held-out probe fell past the bound of a tripwire
    ├── NotResumableError        6   no checkpoint that verifies
    │   └── ChecksumError        6   bytes that differ from their manifest
    ├── AuditError               7   what a run has stored contradicts itself
    │   └── ReplayError          7   what was trained does not follow from what was stored
    ├── FencedError             75   a newer driver owns this run
    ├── PreemptedError          75   told to stop from outside; safe to resume
    └── RunFailedError           *   a run that cannot go on; carries the code of its reason

A failure inside a rollout or a verifier is not an exception but data: see
``records.GenerationFailure`` and ``records.Verdict``.
"""

from __future__ import annotations


class SafeladderError(Exception):
    """Base of all errors that end a command with one sentence and an exit code."""

    exit_code = 1


class ConfigError(SafeladderError):
    """A configuration that cannot be used. The message names the dotted key and the way out."""

    exit_code = 2


class DataError(ConfigError):
    """A data row that cannot be used. The message names file, line and column."""


class RunExistsError(SafeladderError):
    """The run directory already holds a run."""

    exit_code = 2


class EnvironmentUnfitError(SafeladderError):
    """This machine lacks what the run needs: model files, dtype, port, disk space."""

    exit_code = 3


class VerifierUnavailableError(SafeladderError):
    """A verifier cannot be reached, or stayed invalid past its budget."""

    exit_code = 4


class DivergedError(SafeladderError):
    """Training left its bounds (non-finite loss or gradient norm)."""

    exit_code = 5


class TrippedError(DivergedError):
    """A tripwire ends this execution of the run; ``action`` is the tripwire's."""

    def __init__(self, text: str, action: str) -> None:
        super().__init__(text)
        self.action = action


class NotResumableError(SafeladderError):
    """No checkpoint of this run can be continued from."""

    exit_code = 6


class ChecksumError(NotResumableError):
    """Stored bytes differ from the checksum in their manifest."""


class AuditError(SafeladderError):
    """The books of a run do not agree with each other."""

    exit_code = 7


class ReplayError(AuditError):
    """What a run trained does not follow, or cannot be shown to follow, from what it stored:
    rewards from verdicts, updates from batches."""


class FencedError(SafeladderError):
    """A write was refused because a newer driver owns the run (its fence is higher)."""

    exit_code = 75


class PreemptedError(SafeladderError):
    """The process was told to stop (SIGTERM); the run can be resumed."""

    exit_code = 75


class RunFailedError(SafeladderError):
    """A run cannot go on; the exit code says for which kind of reason."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code
