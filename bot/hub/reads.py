"""What we read from the Hub: listings, repos, files and ranges of them, pulls, collections."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_url
from huggingface_hub.community import (
    DiscussionComment,
    DiscussionCommit,
    DiscussionStatusChange,
    DiscussionTitleChange,
)
from huggingface_hub.hf_api import RepoFile as TreeFile
from huggingface_hub.utils import (
    build_hf_headers,
    get_session,
    hf_raise_for_status,
    httpx,
    parse_datetime,
    validate_repo_id,
)

from bot.hub.budget import FILES
from bot.hub.door import Comment, FileTooLargeError, HubPull, RepoDetail, RepoSummary, StatusChange
from bot.hub.streams import HubStreams
from core.errors import HubNotFoundError
from core.gguf_files import RepoFile
from core.sandbox.scratch import scratch_folder

#: Seconds that one range may take in all; a server that drips bytes does not hold us longer.
_RANGE_LIMIT_S = 600.0
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
#: Characters of a comment that are looked at: as many as the Hub takes, since a marker of ours stands at the end.
_COMMENT_LIMIT = 65_536


class HubReads(HubStreams):
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
            yield _listed(info)

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
        return _summary(self._model(repo_id))

    def detail(self, repo_id: str) -> RepoDetail:
        """A model repo with its files and what its card's front matter says, as of one commit, in one request."""
        info = self._model(repo_id, blobs=True)
        card = info.get("cardData")
        named = card.get("base_model") if isinstance(card, dict) else None
        return RepoDetail(
            summary=_summary(info),
            files=[_file(item) for item in info.get("siblings") or [] if isinstance(item.get("rfilename"), str)],
            base_models=tuple(
                name for name in (named if isinstance(named, list) else [named]) if isinstance(name, str)
            )[:16],
        )

    def _model(self, repo_id: str, *, blobs: bool = False) -> dict[str, Any]:
        """What the Hub says of a model repo.

        Not the client's ``model_info``: it makes keyword arguments of whatever stands in a card's front matter.
        """

        def fetch() -> dict[str, Any]:
            validate_repo_id(repo_id)
            response = get_session().get(
                f"{self.endpoint}/api/models/{repo_id}",
                headers=build_hf_headers(token=self._token, library_name="quantcard"),
                params={"blobs": True} if blobs else None,
            )
            hf_raise_for_status(response)
            found = response.json()
            if not isinstance(found, dict) or not isinstance(found.get("id"), str):
                raise TypeError("no repo")
            return found

        return self._ask(f"the repo {repo_id}", fetch)

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
                if response.headers.get("content-type", "").startswith("text/html") and not path.endswith(
                    (".html", ".htm")
                ):
                    # A login page of something in between, not the file.
                    raise TypeError("a page instead of the file")
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
        with scratch_folder() as folder:
            try:
                return self.download(repo_id, path, revision="main", folder=folder, repo_type="dataset").read_bytes()
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
        events = list(enumerate(details.events))
        comments = [_comment(place, event) for place, event in events if isinstance(event, DiscussionComment)]
        commits = [event for event in details.events if isinstance(event, DiscussionCommit)]
        renamed = [event.old_title for event in details.events if isinstance(event, DiscussionTitleChange)]
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
            changes=tuple(
                StatusChange(place, event.author, event.new_status)
                for place, event in events
                if isinstance(event, DiscussionStatusChange)
            ),
            conflicts=bool(details.conflicting_files),
            is_pull=details.is_pull_request,
            body_hidden=bool(comments) and comments[0].hidden,
            titles=frozenset([details.title, *renamed, *(commit.summary for commit in commits)]),
        )

    def _pull_url(self, repo_id: str, num: int) -> str:
        return f"{self.endpoint}/{repo_id}/discussions/{num}"


def _comment(place: int, event: DiscussionComment) -> Comment:
    said_by = event._event.get("author") or {}
    return Comment(
        id=str(event.id),
        author=event.author,
        owner=bool(said_by.get("isOwner") or said_by.get("isOrgMember")),
        text="" if event.hidden else str(event.content)[:_COMMENT_LIMIT],
        place=place,
        at=event.created_at.timestamp(),
        edited_at=_edited_at(event) if event.edited else None,
        hidden=bool(event.hidden),
    )


def _edited_at(event: DiscussionComment) -> float:
    at = event._event["data"]["latest"].get("updatedAt")
    return (parse_datetime(at) if isinstance(at, str) else event.created_at).timestamp()


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
    return _checked(lfs.sha256 if lfs else None)


def _checked(claimed: Any) -> str | None:
    """The sha256 that a listing claims; it names folders here, so nothing else is taken for one."""
    return claimed if isinstance(claimed, str) and _SHA256.fullmatch(claimed) else None


def _file(item: dict[str, Any]) -> RepoFile:
    lfs = item.get("lfs")
    claimed = lfs.get("sha256") if isinstance(lfs, dict) else None
    size = item.get("size")
    return RepoFile(item["rfilename"], size if isinstance(size, int) and size >= 0 else 0, _checked(claimed))


def _summary(info: dict[str, Any]) -> RepoSummary:
    modified, sha, created = info.get("lastModified"), info.get("sha"), info.get("createdAt")
    return RepoSummary(
        id=info["id"],
        sha=sha if isinstance(sha, str) and _COMMIT.fullmatch(sha) else None,
        last_modified=parse_datetime(modified).isoformat() if isinstance(modified, str) else None,
        private=bool(info.get("private")),
        gated=bool(info.get("gated")),
        disabled=bool(info.get("disabled")),
        created_at=parse_datetime(created).timestamp() if isinstance(created, str) else None,
    )


def _listed(info: Any) -> RepoSummary:
    modified = info.last_modified
    return RepoSummary(
        id=info.id,
        sha=info.sha,
        last_modified=modified.isoformat() if modified else None,
        private=bool(info.private),
        gated=bool(info.gated),
        disabled=bool(info.disabled),
    )
