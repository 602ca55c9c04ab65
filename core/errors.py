"""Errors a user may see: each a named type with one sentence to act on, an exit code, and a retry class."""

from __future__ import annotations


class QuantcardError(Exception):
    """Something went wrong that a person can act on; ``str()`` is the sentence they read."""

    exit_code = 1
    #: whether the same work may succeed later without anyone changing anything (a lost machine, a busy Hub)
    retryable = False


class SettingsError(QuantcardError):
    """A setting is missing or contradicts another."""

    exit_code = 2


class InputError(QuantcardError):
    """A file given to us is not what it should be; the same file will never work."""

    exit_code = 3


class GGUFError(InputError):
    """The GGUF file is missing, truncated, or not GGUF."""


class CorpusError(InputError):
    """The corpus is missing, empty, or too short for the protocol."""


class BaselineError(InputError):
    """The baseline is missing, corrupt, or was not recorded for this measurement."""


class BaselineGoneError(BaselineError):
    """A recorded baseline's file is no longer there; it is recorded again."""

    retryable = True


class VocabularyMismatchError(BaselineError):
    """The variant's vocabulary is not the baseline's, so their token distributions can't be compared."""


class TokenFileError(InputError):
    """The per-token sidecar is missing, corrupt, not ours, or of a newer version."""


class NotComparableError(InputError):
    """Two token files were not measured on the same tokens in the same way, so they can't be paired."""


class ForeignFormatError(InputError):
    """A text to be imported is not what the tool prints that it should come from, or is only a part of it."""


class StatesUnavailableError(InputError):
    """A reference's logits can't be rebuilt from states, which the protocol's scoring needs."""


class NonFiniteLogitsError(InputError):
    """The model's logits hold NaN or infinities: INVALID, not averaged away."""


class HubError(QuantcardError):
    """The Hub said no, or said nothing."""

    exit_code = 4


class HubUnreachableError(HubError):
    """No answer from the Hub, or one of its passing faults (5xx)."""

    retryable = True


class HubAuthError(HubError):
    """The token is missing, unknown, or lacks a right (401, 403)."""


class HubGatedError(HubAuthError):
    """The repo's files are only for those whom its owner let in."""


class HubNotFoundError(HubError):
    """The repo, revision or file is not there, or not for this token (404)."""


class HubRateLimitError(HubError):
    """The Hub's request budget is spent (429)."""

    retryable = True


class HubConflictError(HubError):
    """Somebody committed in between (409, 412)."""

    retryable = True


class JobError(QuantcardError):
    """A job ended without figures."""

    exit_code = 5


class MeasurementDiedError(JobError):
    """The measuring process died of a signal, of memory or of its time limit."""

    retryable = True


class JobProtocolError(JobError):
    """The measuring process ended without a result we can read."""

    retryable = True


class MachineLostError(JobError):
    """The machine that measured went away under the job (reclaimed, rebooted, out of reach)."""

    retryable = True


class DeadlineError(JobError):
    """A job stayed in one stage for longer than that stage may take."""

    retryable = True


class RunnerUnavailableError(JobError):
    """Nothing can be started there now: no answer, no quota, no machine of that kind free, the month's money spent."""

    retryable = True


class TooLargeError(JobError):
    """No runner has a machine that this job fits."""


class SandboxError(JobError):
    """A stranger's file is not run here, since nothing would hold it."""

    retryable = True


class StorageError(QuantcardError):
    """The disk is full or the database can't be used."""

    exit_code = 6
    retryable = True


def by_name(name: str) -> type[QuantcardError]:
    """The error type called ``name``, or :class:`JobError` where there is none (an older or newer quantcard)."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, QuantcardError) else JobError


def jobs_own(name: str) -> type[QuantcardError]:
    """As :func:`by_name`, of what a measuring process says; :class:`JobError` for what is not its to tell.

    It reads a stranger's file, and may say anything: that the Hub is away or a machine was lost, say, so that it is
    tried again for a day.
    """
    found = by_name(name)
    return JobError if issubclass(found, _NOT_ITS_OWN) else found


_NOT_ITS_OWN = (HubError, BaselineGoneError, MachineLostError, DeadlineError, RunnerUnavailableError, SandboxError)
