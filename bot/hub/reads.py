"""What we read from the Hub: listings, repos, files and ranges of them, pulls, collections."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_url
from huggingface_hub.community import DiscussionComment, DiscussionCommit, DiscussionStatusChange
from huggingface_hub.hf_api import RepoFile as TreeFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, httpx, parse_datetime

from bot.hub.base import HubBase
from bot.hub.budget import FILES
from bot.hub.door import Comment, FileTooLargeError, HubPull, RepoDetail, RepoSummary
from core.errors import HubNotFoundError
from core.gguf_files import RepoFile

#: Seconds that one range may take in all; a server that drips bytes does not hold us longer.
_RANGE_LIMIT_S = 600.0
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Characters of a comment that are looked at.
_COMMENT_LIMIT = 20_000


class HubReads(HubBase):
    """The reading half of the Hub."""

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

    def collection(self, slug: str) -> list[RepoSummary]:
        """The model repos of a collection (``owner/title-id``); their commits are not told (``sha`` is None)."""

        def fetch() -> Any:
            # The client's own get_collection drops when an item was last changed.
            response = get_session().get(
                f"{self.endpoint}/api/collections/{slug}",
                headers=build_hf_headers(token=self._token, library_name="quantcard"),
            )
            hf_raise_for_status(response)
            return [_item(item) for item in response.json()["items"] if item.get("type") == "model"]

        return list(self._ask(f"the collection {slug}", fetch))

    def repo(self, repo_id: str) -> RepoSummary:
        """One model repo; its ``id`` is another one where it was renamed."""
        return _summary(self._ask(f"the repo {repo_id}", lambda: self._api.model_info(repo_id)))

    def detail(self, repo_id: str) -> RepoDetail:
        """A model repo with its files and what its card's front matter says, as of one commit, in one request."""
        info = self._ask(f"the repo {repo_id}", lambda: self._api.model_info(repo_id, files_metadata=True))
        card = info.card_data
        named = card.get("base_model") if card is not None else None
        return RepoDetail(
            summary=_summary(info),
            files=[
                RepoFile(item.rfilename, int(item.size or 0), _sha256(item.lfs))
                for item in info.siblings or []
                if isinstance(item.rfilename, str)
            ],
            base_models=tuple(
                name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str)
            )[:16],
        )

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
            return bytes(got) if not skip and len(got) <= length else bytes(memoryview(got)[skip : skip + length])

        return self._ask(f"{path} of {repo_id}", fetch, resource=FILES)

    def download(self, repo_id: str, path: str, *, revision: str, folder: Path, repo_type: str = "model") -> Path:
        """Fetch a file into a folder and return where it lies."""
        return Path(
            self._ask(
                f"the download of {path} from {repo_id}",
                lambda: self._api.hf_hub_download(
                    repo_id, path, revision=revision, local_dir=folder, repo_type=repo_type
                ),
                resource=FILES,
            )
        )

    def dataset_file(self, repo_id: str, path: str) -> bytes | None:
        """A file of a dataset repo, or None if there is none."""
        with tempfile.TemporaryDirectory(prefix="quantcard-dataset-") as folder:
            try:
                return self.download(
                    repo_id, path, revision="main", folder=Path(folder), repo_type="dataset"
                ).read_bytes()
            except HubNotFoundError:
                return None

    def my_pulls(self, repo_id: str) -> list[HubPull]:
        """Our pull requests in a model repo (without bodies)."""
        me = self.whoami()
        found = self._ask(
            f"our pulls in {repo_id}",
            lambda: list(self._api.get_repo_discussions(repo_id, author=me, discussion_type="pull_request")),
        )
        # The filter is the server's; what it lets through is checked.
        return [
            HubPull(item.num, item.title, item.status, self._pull_url(repo_id, item.num), author=me)
            for item in found
            if item.author == me and item.is_pull_request
        ]

    def pull(self, repo_id: str, num: int) -> HubPull:
        """One pull request whole: its first comment, commits, and what people said on it."""
        details = self._ask(f"pull {num} of {repo_id}", lambda: self._api.get_discussion_details(repo_id, num))
        comments = [_comment(event) for event in details.events if isinstance(event, DiscussionComment)]
        commits = [event for event in details.events if isinstance(event, DiscussionCommit)]
        statuses = [event for event in details.events if isinstance(event, DiscussionStatusChange)]
        return HubPull(
            num,
            details.title,
            details.status,
            self._pull_url(repo_id, num),
            body=comments[0].text if comments else "",
            author=details.author,
            authors=frozenset(commit.author for commit in commits),
            head=commits[-1].oid if commits else None,
            comments=tuple(comments[1:]),
            ended_by=next((event.author for event in reversed(statuses) if event.new_status == details.status), None),
            conflicts=bool(details.conflicting_files),
        )

    def _pull_url(self, repo_id: str, num: int) -> str:
        return f"{self.endpoint}/{repo_id}/discussions/{num}"


def _comment(event: DiscussionComment) -> Comment:
    said_by = event._event.get("author") or {}
    return Comment(
        id=str(event.id),
        author=event.author,
        owner=bool(said_by.get("isOwner") or said_by.get("isOrgMember")),
        text="" if event.hidden else str(event.content)[:_COMMENT_LIMIT],
    )


def _item(item: dict[str, Any]) -> RepoSummary:
    modified = item.get("lastModified")
    return RepoSummary(
        id=str(item["id"]),
        sha=None,
        last_modified=parse_datetime(modified).isoformat() if isinstance(modified, str) else None,
        private=bool(item.get("private")),
        gated=bool(item.get("gated")),
    )


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
