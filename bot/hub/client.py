"""The real Hub: huggingface_hub's client with timeouts, our types and our errors.

The client retries listings and downloads itself. What it does not retry and what is safe to ask twice is retried
here; commits never are: after a lost response a second one would open a second pull.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_url, set_client_factory
from huggingface_hub.community import DiscussionComment
from huggingface_hub.errors import (
    HfHubHTTPError,
)
from huggingface_hub.hf_api import RepoFile as TreeFile
from huggingface_hub.utils import build_hf_headers, disable_progress_bars, get_session, hf_raise_for_status, httpx
from huggingface_hub.utils._http import default_client_factory

from bot.hub.door import Committed, FileTooLargeError, HubPull, RepoSummary
from bot.hub.translate import translate
from core.errors import (
    HubAuthError,
    HubError,
    HubNotFoundError,
    HubUnreachableError,
)
from core.gguf_files import RepoFile

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Seconds to connect and to wait for a piece of an answer; the client's own default is for ever.
TIMEOUT = httpx.Timeout(30.0, connect=10.0)
#: Pauses (seconds) between tries of what is safe to ask again.
_PAUSES = (1.0, 3.0)

#: Seconds that one range may take in all; a server that drips bytes does not hold us longer.
_RANGE_LIMIT_S = 600.0
_SHA256 = re.compile(r"[0-9a-f]{64}")

_factory_lock = threading.Lock()
_factory_set = False


def _settle_client(endpoint: str) -> None:
    """Switch off what does not fit us: its progress bars, and Xet where the Hub is not Hugging Face's own.

    Where Xet is on, an upload to a Hub without it fails; the client does not fall back to LFS by itself.
    """
    disable_progress_bars()
    # What concerns people is in our own sentences; the client's asides are not for them.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="huggingface_hub")
    host = urlsplit(endpoint).hostname or ""
    own = host in ("huggingface.co", "hf.co") or host.endswith((".huggingface.co", ".hf.co"))
    if not own and "HF_HUB_DISABLE_XET" not in os.environ:
        constants.HF_HUB_DISABLE_XET = True


def _install_timeouts() -> None:
    """Give huggingface_hub's shared client a timeout, keeping its own hooks."""
    global _factory_set
    with _factory_lock:
        if not _factory_set:

            def factory() -> Any:
                client = default_client_factory()
                client.timeout = TIMEOUT
                return client

            set_client_factory(factory)
            _factory_set = True


class Hub:
    """The real Hub behind one endpoint and one token."""

    dry_run = False

    def __init__(self, *, endpoint: str, token: str | None) -> None:
        self.endpoint = endpoint.rstrip("/")
        _install_timeouts()
        _settle_client(self.endpoint)
        # False, not None: without a token of ours, a login stored on this machine must not be used instead.
        self._token: str | bool = token or False
        self._api = HfApi(endpoint=self.endpoint, token=self._token, library_name="quantcard")
        self._me: str | None = None

    def _ask(self, doing: str, call: Callable[[], T], *, again: bool = True) -> T:
        """Run one call; with ``again``, passing faults are retried."""
        for pause in (*_PAUSES, None) if again else (None,):
            try:
                return call()
            except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
                ours = translate(error, doing=doing, endpoint=self.endpoint)
                if pause is None or not isinstance(ours, HubUnreachableError):
                    raise ours from error
                logger.info("%s: trying again in %.0f s (%s)", doing, pause, ours)
                time.sleep(pause)
        raise AssertionError("unreachable")

    def whoami(self) -> str:
        """The name that our token belongs to; asked once."""
        if self._me is None:
            if not self._token:
                raise HubAuthError("No token: set HF_TOKEN to the bot's token to write to the Hub.")
            self._me = str(self._ask("the token check", lambda: self._api.whoami())["name"])
        return self._me

    def gguf_repos(self, owner: str) -> Iterator[RepoSummary]:
        """An owner's GGUF model repos, last modified first; pages are fetched as they are consumed."""
        doing = f"the list of {owner}'s repos"
        listing = iter(
            self._ask(
                doing,
                lambda: self._api.list_models(
                    author=owner,
                    filter="gguf",
                    sort="last_modified",
                    expand=["sha", "lastModified", "private", "gated", "disabled"],
                ),
            )
        )
        while True:
            info = self._ask(doing, lambda: next(listing, None), again=False)
            if info is None:
                return
            yield _summary(info)

    def repo(self, repo_id: str) -> RepoSummary:
        """One model repo."""
        return _summary(self._ask(f"the repo {repo_id}", lambda: self._api.model_info(repo_id)))

    def files(self, repo_id: str, *, revision: str) -> list[RepoFile]:
        """All files of a model repo at a revision."""
        tree = self._ask(
            f"the files of {repo_id}",
            lambda: list(self._api.list_repo_tree(repo_id, recursive=True, revision=revision)),
            again=False,  # the client retries listings itself, for half a minute
        )
        return [
            RepoFile(item.path, item.size, _sha256(item.lfs))
            for item in tree
            if isinstance(item, TreeFile) and isinstance(item.path, str) and isinstance(item.size, int)
        ]

    def read(self, repo_id: str, path: str, *, revision: str, limit: int) -> bytes | None:
        """A small file's bytes, or None if it is not there."""
        try:
            data = self.read_range(repo_id, path, revision=revision, offset=0, length=limit + 1)
        except HubNotFoundError:
            return None
        if len(data) > limit:
            raise FileTooLargeError(f"{path} in {repo_id} is larger than {limit} bytes; it is left alone.")
        return data

    def read_range(self, repo_id: str, path: str, *, revision: str, offset: int, length: int) -> bytes:
        """Bytes of a file; fewer only where it ends."""
        url = hf_hub_url(repo_id, path, revision=revision, endpoint=self.endpoint)
        headers = build_hf_headers(token=self._token, library_name="quantcard")
        headers |= {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}

        def fetch() -> bytes:
            got = bytearray()
            started = time.monotonic()
            with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
                if response.status_code == 416:
                    return b""
                if response.status_code >= 400:
                    response.read()
                hf_raise_for_status(response)
                # A server that ignores Range sends the file from its start: skip what was not asked for.
                skip = offset if response.status_code == 200 else 0
                for piece in response.iter_bytes():
                    got += piece
                    if len(got) >= skip + length:
                        break
                    if time.monotonic() - started > _RANGE_LIMIT_S:
                        raise httpx.ReadTimeout(f"{path} came too slowly")
            return bytes(got[skip : skip + length])

        return self._ask(f"{path} of {repo_id}", fetch)

    def download(self, repo_id: str, path: str, *, revision: str, folder: Path, repo_type: str = "model") -> Path:
        """Fetch a file into a folder and return where it lies."""
        return Path(
            self._ask(
                f"the download of {path} from {repo_id}",
                lambda: self._api.hf_hub_download(
                    repo_id, path, revision=revision, local_dir=folder, repo_type=repo_type
                ),
            )
        )

    def my_pulls(self, repo_id: str) -> list[HubPull]:
        """Our pull requests in a model repo (without bodies)."""
        me = self.whoami()
        found = self._ask(
            f"our pulls in {repo_id}",
            lambda: list(self._api.get_repo_discussions(repo_id, author=me, discussion_type="pull_request")),
        )
        # The filter is the server's; what it lets through is checked.
        return [
            HubPull(item.num, item.title, item.status, self._pull_url(repo_id, item.num))
            for item in found
            if item.author == me and item.is_pull_request
        ]

    def pull(self, repo_id: str, num: int) -> HubPull:
        """One pull request whole."""
        details = self._ask(f"pull {num} of {repo_id}", lambda: self._api.get_discussion_details(repo_id, num))
        comments = [event.content for event in details.events if isinstance(event, DiscussionComment)]
        authors = frozenset(event.author for event in details.events if event.type == "commit")
        return HubPull(
            num,
            details.title,
            details.status,
            self._pull_url(repo_id, num),
            body=comments[0] if comments else "",
            author=details.author,
            authors=authors,
        )

    def open_pull(
        self, repo_id: str, *, files: dict[str, bytes], title: str, body: str, parent: str | None
    ) -> Committed:
        """Open a pull request with these files; never retried (see the module's first words)."""
        info = self._ask(
            f"a pull request in {repo_id}",
            lambda: self._api.create_commit(
                repo_id,
                _additions(files),
                commit_message=title,
                commit_description=body,
                create_pr=True,
                parent_commit=parent,
            ),
            again=False,
        )
        return Committed(info.oid, info.pr_num, info.pr_url)

    def update_pull(self, repo_id: str, num: int, *, files: dict[str, bytes], title: str, body: str) -> Committed:
        """Commit to a pull request of ours, and bring its first comment up to date where the Hub lets us."""
        info = self._ask(
            f"an update of pull {num} in {repo_id}",
            lambda: self._api.create_commit(
                repo_id,
                _additions(files),
                commit_message=title,
                revision=f"refs/pr/{num}",
            ),
            again=False,
        )
        self._edit_body(repo_id, num, body)
        return Committed(info.oid, num, self._pull_url(repo_id, num))

    def _edit_body(self, repo_id: str, num: int, body: str) -> None:
        """The figures are in the commit; a first comment that can't be edited is only less fresh."""
        doing = f"the words of pull {num} in {repo_id}"
        try:
            details = self._ask(doing, lambda: self._api.get_discussion_details(repo_id, num))
            first = next((event for event in details.events if isinstance(event, DiscussionComment)), None)
            if first is not None and first.content.strip() != body.strip():
                self._ask(doing, lambda: self._api.edit_discussion_comment(repo_id, num, first.id, body), again=False)
        except HubError as error:
            logger.info("%s", error)

    def dataset_file(self, repo_id: str, path: str) -> bytes | None:
        """A file of a dataset repo, or None if there is none."""
        with tempfile.TemporaryDirectory(prefix="quantcard-dataset-") as folder:
            try:
                return self.download(
                    repo_id, path, revision="main", folder=Path(folder), repo_type="dataset"
                ).read_bytes()
            except HubNotFoundError:
                return None

    def publish_dataset(self, repo_id: str, *, files: dict[str, bytes], message: str) -> Committed:
        """Put files into a dataset repo in one commit, making the repo if need be."""
        self._ask(
            f"the dataset {repo_id}",
            lambda: self._api.create_repo(repo_id, repo_type="dataset", exist_ok=True),
        )
        before = self._ask(f"the dataset {repo_id}", lambda: self._api.dataset_info(repo_id)).sha
        info = self._ask(
            f"a commit to the dataset {repo_id}",
            lambda: self._api.create_commit(
                repo_id,
                _additions(files),
                commit_message=message,
                repo_type="dataset",
            ),
            again=False,
        )
        return Committed(info.oid, changed=info.oid != before)

    def _pull_url(self, repo_id: str, num: int) -> str:
        return f"{self.endpoint}/{repo_id}/discussions/{num}"


def _additions(files: dict[str, bytes]) -> list[CommitOperationAdd]:
    return [CommitOperationAdd(path_in_repo=path, path_or_fileobj=data) for path, data in files.items()]


def _sha256(lfs: Any) -> str | None:
    """The sha256 that a listing claims; it names folders here, so nothing else is taken for one."""
    claimed = lfs.sha256 if lfs else None
    return claimed if isinstance(claimed, str) and _SHA256.fullmatch(claimed) else None


def _summary(info: Any) -> RepoSummary:
    modified = info.last_modified
    return RepoSummary(
        id=info.id,
        sha=info.sha,
        last_modified=modified.isoformat() if modified else None,
        private=bool(info.private),
        gated=bool(info.gated),
        disabled=bool(info.disabled),
    )
