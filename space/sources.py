"""Where the published dataset is read from: a dataset repo on the Hub, or a folder or file of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from core.canonical import sha256_file
from core.dataset import MEASUREMENTS_PATH
from core.dataset_file import sha256_in
from core.errors import HubAuthError, HubUnreachableError, InputError, QuantcardError

#: Of a file beside the rows; the bot publishes none that is larger.
MAX_BESIDE_BYTES = 64 << 20
HUGGING_FACE = "https://huggingface.co"


class NothingPublishedError(QuantcardError):
    """There is no dataset yet: a friendly state, not a fault."""

    retryable = True


@dataclass(frozen=True, slots=True)
class Published:
    """A published state of the dataset: its revision, and when it was published."""

    revision: str
    at: datetime | None = None


class Source(Protocol):
    """Somewhere measurements are published."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def hub_url(self) -> str:
        """Where links to repos lead."""

    def latest(self) -> Published:
        """The state that is published now; raises a :class:`QuantcardError` where that can't be known."""

    def fetch(self, published: Published) -> Path:
        """The parquet file of that state, on this machine."""

    def beside(self, published: Published, path: str) -> Path:
        """A file that stands beside the rows, named by its sha256, on this machine; its bytes are that sha256's.

        Raises:
            QuantcardError: it is not there, too large, damaged, or can't be reached.
        """

    def url(self, published: Published, path: str) -> str | None:
        """Where people find such a file; None where there is no such place."""


class LocalSource:
    """A parquet file, or a folder laid out like the dataset repo."""

    def __init__(self, path: str | Path, *, hub_url: str = HUGGING_FACE) -> None:
        self._path = Path(path)
        self.hub_url = hub_url.rstrip("/")

    @property
    def name(self) -> str:
        """The file's or folder's own name: the path before it is nobody's business on a public page."""
        return self._path.name or "this folder"

    def _file(self) -> Path:
        if not self._path.is_dir():
            return self._path
        inside = self._path / MEASUREMENTS_PATH
        return inside if inside.exists() else self._path / Path(MEASUREMENTS_PATH).name

    def latest(self) -> Published:
        """Revision from the file's time and size: a new file is seen without reading it."""
        try:
            stat = self._file().stat()
        except FileNotFoundError as missing:
            raise NothingPublishedError("Nothing has been published here yet.") from missing
        return Published(f"{stat.st_mtime_ns:x}-{stat.st_size:x}", datetime.fromtimestamp(stat.st_mtime, tz=UTC))

    def fetch(self, published: Published) -> Path:
        """The file itself."""
        return self._file()

    def beside(self, published: Published, path: str) -> Path:
        """The file in the folder that is laid out like the dataset repo."""
        sha256 = _named(path)
        file = self._file()
        inside = file.parent.parent if file.as_posix().endswith(f"/{MEASUREMENTS_PATH}") else file.parent
        return _checked(inside / path, sha256)

    def url(self, published: Published, path: str) -> str | None:
        """None: a folder has no address."""
        return None


class HubSource:
    """A dataset repo on the Hub at ``endpoint``; read without a token unless one is given."""

    def __init__(self, repo_id: str, endpoint: str | None = None, token: str | None = None) -> None:
        self.name = repo_id
        self.hub_url = (endpoint or HUGGING_FACE).rstrip("/")
        # False, not None: None would send whatever token lies on this machine along.
        self._token: str | bool = token or False
        self._api = HfApi(endpoint=self.hub_url, token=self._token)

    def latest(self) -> Published:
        """The newest commit of the dataset repo."""
        try:
            info = self._api.dataset_info(self.name, timeout=15)
        except GatedRepoError as refused:
            raise HubAuthError(f"The dataset {self.name} is gated.") from refused
        except RepositoryNotFoundError as missing:
            raise NothingPublishedError(
                f"The dataset {self.name} does not exist on the Hub, or is not public."
            ) from missing
        except Exception as failure:
            raise _unreachable(failure) from failure
        if not info.sha:
            raise NothingPublishedError(f"The dataset {self.name} is empty.")
        return Published(info.sha, info.last_modified)

    def fetch(self, published: Published) -> Path:
        """Download the measurements of that commit into the Hub cache, once."""
        try:
            return Path(
                self._api.hf_hub_download(
                    self.name, MEASUREMENTS_PATH, repo_type="dataset", revision=published.revision
                )
            )
        except LocalEntryNotFoundError as failure:  # is an EntryNotFoundError too, but means: no connection
            raise HubUnreachableError("The Hub did not answer.") from failure
        except EntryNotFoundError as missing:
            raise NothingPublishedError(f"The dataset {self.name} holds no measurements yet.") from missing
        except Exception as failure:
            raise _unreachable(failure) from failure

    def beside(self, published: Published, path: str) -> Path:
        """Download one such file into the Hub cache; its size is asked for first."""
        sha256 = _named(path)
        try:
            url = hf_hub_url(self.name, path, repo_type="dataset", revision=published.revision, endpoint=self.hub_url)
            size = get_hf_file_metadata(url, token=self._token, timeout=15, endpoint=self.hub_url).size
            if size is None or size > MAX_BESIDE_BYTES:
                raise InputError(f"{path} is too large to be read here.")
            found = self._api.hf_hub_download(self.name, path, repo_type="dataset", revision=published.revision)
        except EntryNotFoundError as missing:
            raise NothingPublishedError(f"{path} is not in the dataset yet.") from missing
        except QuantcardError:
            raise
        except Exception as failure:
            raise _unreachable(failure) from failure
        return _checked(Path(found), sha256)

    def url(self, published: Published, path: str) -> str | None:
        """The file's address on the Hub at the revision shown."""
        if sha256_in(path) is None:
            return None
        return f"{self.hub_url}/datasets/{self.name}/resolve/{published.revision}/{path}"


def _named(path: str) -> str:
    """The sha256 in a path of the dataset; any other path is none of ours to read."""
    if (sha256 := sha256_in(path)) is None:
        raise InputError("That is no file of the results dataset.")
    return sha256


def _checked(path: Path, sha256: str) -> Path:
    try:
        if path.stat().st_size > MAX_BESIDE_BYTES:
            raise InputError(f"{path.name} is too large to be read here.")
        found = sha256_file(path)
    except OSError as missing:
        raise NothingPublishedError(f"{path.name} is not in the dataset yet.") from missing
    if found != sha256:
        raise InputError(f"{path.name} is damaged: its bytes are not those that it is named by.")
    return path


def _unreachable(failure: Exception) -> HubUnreachableError:
    """Any other failure of the client: its transport's error types change with its version."""
    status = getattr(getattr(failure, "response", None), "status_code", None)
    if isinstance(failure, HfHubHTTPError) and status:
        return HubUnreachableError(f"The Hub answered with an error ({status}).")
    return HubUnreachableError("The Hub did not answer.")
