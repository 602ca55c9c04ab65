"""Every refusal the hub can give, each with its HTTP status and the Hub's own error code."""

from __future__ import annotations

from typing import Any


class HubError(Exception):
    """A refusal. `code` becomes `X-Error-Code`, which is what the client chooses its exception by."""

    status = 400
    code: str | None = None

    def __init__(self, message: str, *, headers: dict[str, str] | None = None, **extra: Any) -> None:
        super().__init__(message)
        self.message = message
        self.headers = headers or {}
        self.extra = extra


class BadRequest(HubError):
    """The request is malformed or asks for something that makes no sense."""


class InvalidName(BadRequest):
    """A repo id, file path or ref name that the hub does not take."""


class Unauthorized(HubError):
    """No token where one is needed, or a token nobody was given."""

    status = 401


class Forbidden(HubError):
    """The caller is known and may not do this."""

    status = 403


class GatedRepo(HubError):
    """The repo is visible, its files are not: access has to be granted first."""

    status = 403
    code = "GatedRepo"


class DisabledRepo(HubError):
    """The repo was disabled; the client recognises the message, not the code."""

    status = 403
    code = "DisabledRepo"

    def __init__(self) -> None:
        super().__init__("Access to this resource is disabled.")


class NotFound(HubError):
    """There is nothing at this address."""

    status = 404


class RepoNotFound(NotFound):
    """No such repo, or one the caller may not see: the two must look the same."""

    code = "RepoNotFound"

    def __init__(self, message: str = "Repository not found") -> None:
        super().__init__(message)


class RevisionNotFound(NotFound):
    """No such branch, tag, pull request or commit."""

    code = "RevisionNotFound"

    def __init__(self, revision: str) -> None:
        super().__init__(f"Invalid rev id: {revision[:100]}")


class EntryNotFound(NotFound):
    """No such file or folder in this revision."""

    code = "EntryNotFound"

    def __init__(self, message: str = "Entry not found") -> None:
        super().__init__(message)


class Conflict(HubError):
    """The thing exists already, or changed under the caller."""

    status = 409


class StaleParent(HubError):
    """`parentCommit` is no longer the head of the branch."""

    status = 412

    def __init__(self) -> None:
        super().__init__("A commit has happened since. Please refresh and try again.")


class TooLarge(HubError):
    """A body or a file over its limit."""

    status = 413


class RangeNotSatisfiable(HubError):
    """The asked range lies outside of the file."""

    status = 416

    def __init__(self, size: int) -> None:
        super().__init__("Requested range not satisfiable", headers={"Content-Range": f"bytes */{size}"})


class Unprocessable(HubError):
    """Well-formed, but it refers to something that is not there (an LFS object that was never uploaded)."""

    status = 422


class RepoMoved(Exception):
    """The repo has a new name; the caller is redirected there. Not a refusal, so not a `HubError`."""

    def __init__(self, old_id: str, new_id: str) -> None:
        super().__init__(new_id)
        self.old_id = old_id
        self.new_id = new_id
