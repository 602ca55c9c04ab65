"""Our errors for the client's, each with a sentence that says what to do."""

from __future__ import annotations

import errno
import json

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from core.errors import (
    HubAuthError,
    HubConflictError,
    HubError,
    HubGatedError,
    HubNotFoundError,
    HubRateLimitError,
    HubUnreachableError,
    StorageError,
)

#: What goes wrong with a disk or a folder of ours; other system errors are the network's.
_DISK = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
        errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EMFILE, errno.ENFILE, errno.ENOENT,
    }
)  # fmt: skip


def translate(error: Exception, *, doing: str, endpoint: str) -> Exception:
    """Our error for one of the client's, with a sentence that says what to do."""
    if isinstance(error, HubError):
        return error
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        # hf_hub_download hides what the Hub answered behind a guess about the connection.
        return translate(error.__cause__, doing=doing, endpoint=endpoint)
    if isinstance(error, HFValidationError):
        return HubNotFoundError(f"The Hub can have nothing for {doing}: that is no name of a repo.")
    if isinstance(error, GatedRepoError):
        return HubGatedError(
            f"The Hub refused {doing}: the repo is gated. Ask its owner for access with this token's user."
        )
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | EntryNotFoundError) and not isinstance(
        error, LocalEntryNotFoundError
    ):
        return HubNotFoundError(f"The Hub has nothing for {doing}: it is missing, or private to this token.")
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code if error.response is not None else 0
        said = (error.server_message or "").strip().splitlines()
        because = f" ({said[0][:200]})" if said else ""
        if status == 401:
            return HubAuthError(f"The Hub does not know this token for {doing}{because}. Set HF_TOKEN to a valid one.")
        if status == 403:
            return HubAuthError(
                f"The Hub forbids {doing}{because}. Give HF_TOKEN write rights, or ask the repo's owner."
            )
        if status == 404:
            return HubNotFoundError(
                f"The Hub has nothing for {doing}{because}: it is missing, or private to this token."
            )
        if status == 429:
            return HubRateLimitError(f"The Hub's rate limit stopped {doing}{because}. Try again in a few minutes.")
        if status in (409, 412):
            return HubConflictError(f"Somebody else changed the repo during {doing}{because}. Run it again.")
        if status >= 500 or status == 408:
            return HubUnreachableError(f"The Hub failed at {doing} (status {status}). Try again later.")
        return HubError(f"The Hub refused {doing} (status {status}){because}.")
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnreachableError(f"HF_HUB_OFFLINE is set, so {doing} can't be done. Unset it.")
    if isinstance(error, OSError) and not isinstance(error, LocalEntryNotFoundError) and error.errno in _DISK:
        return StorageError(
            f"Could not write to disk during {doing}: {error.strerror}. Free some space and run it again."
        )
    if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
        # The client checks some things itself, such as a card's metadata.
        first = next((line for line in str(error).splitlines() if line.strip()), "")[:200]
        return HubError(f"The Hub's client refused {doing} ({first}).")
    if isinstance(error, ValueError | TypeError | KeyError | AttributeError):
        return HubUnreachableError(
            f"The answer of {endpoint} to {doing} is not the Hub's ({type(error).__name__}). Check HF_ENDPOINT, and "
            "whether a proxy or a login page stands in between."
        )
    return HubUnreachableError(
        f"The Hub at {endpoint} did not answer {doing} ({type(error).__name__}). Check HF_ENDPOINT and the network."
    )
