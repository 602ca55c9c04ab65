"""What people do on the hub of the pull machine: straight on its folder, so that it may also be during a request."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine_world import BOT, LABELS, MARKS, OWNER_OF, REPOS, STRANGER, gguf

from localhub import discussions, pulls, seed
from localhub.auth import Identity
from localhub.disk import Locks
from localhub.errors import HubError
from localhub.gitobj import Commit
from localhub.names import MAIN
from localhub.repos import Repo, Repos

README, CONFIG, DATA = "README.md", ".quantcard.yml", ".quantcard.json"
PLOTS = ("quantcard/size-kld.png", "quantcard/speed-kld.png")
#: A picture that an owner has where the bot would put one of its own.
OWN_PICTURE = b"\x89PNG\r\n\x1a\n an owner's"
CARD = b"---\nbase_model: demo-org/demo\nlicense: mit\n---\n# A model\n\nSome words.\n\n## How to use it\n\nLike so.\n"
#: CRLF, odd YAML, trailing spaces, a fence that holds a marker of ours, no newline at the end.
MESSY = (
    b"---\r\nbase_model: demo-org/demo   # keep me\r\ntags: [ a,b ]\r\n"
    b"version: 1.10\r\n---\r\n\r\n# Messy  \r\n\ttabs\r\n"
    b"```\r\n<!-- quantcard:begin v=1 -->\r\n```\r\nno newline at the end"
)
BEGIN, END = b"<!-- quantcard:begin", b"<!-- quantcard:end -->"


class Ground:
    """The truth of the hub's folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.locks = root, Locks(root)
        self._repos = Repos(root, self.locks)

    def repo(self, repo_id: str) -> Repo:
        return self._repos.get("model", repo_id)

    def tree(self, repo_id: str, revision: str) -> Mapping[str, Any]:
        store = self.repo(repo_id).store
        return store.tree(store.resolve(revision))

    def read(self, repo_id: str, revision: str, path: str = README) -> bytes | None:
        entry = self.tree(repo_id, revision).get(path)
        return None if entry is None else self.repo(repo_id).store.read(entry)

    def history(self, repo_id: str, revision: str) -> list[Commit]:
        store = self.repo(repo_id).store
        return list(store.history(store.resolve(revision)))

    def pulls(self, repo_id: str) -> list[dict[str, Any]]:
        """The bot's pulls, the oldest first."""
        found = [one for one in discussions.every(self.repo(repo_id)) if one["isPullRequest"] and one["author"] == BOT]
        return found[::-1]

    def conflicts(self, pull: dict[str, Any], repo_id: str) -> list[str]:
        """The files that keep an open pull from being merged."""
        return pulls.conflicts(self.repo(repo_id), pull)

    def commit(
        self, repo_id: str, author: str, changes: Mapping[str, bytes | None], *, ref: str = MAIN, title: str = "Edit"
    ) -> None:
        """Commit these files (None: remove) to main or a pull, as a person."""
        repo = self.repo(repo_id)
        with self.locks.hold(repo.lock):
            store = repo.store
            head = store.resolve(ref)
            tree = dict(store.tree(head))
            for path, data in changes.items():
                if data is None:
                    tree.pop(path, None)
                else:
                    tree[path] = store.put_blob(data)
            made = store.put_commit(tree, parents=(head,), author=author, title=title, message="")
            store.set_refs({ref: made.oid})
            if ref != MAIN:
                pull = discussions.load(repo, int(ref.rsplit("/", 1)[1]))
                pull["events"].append(discussions.commit_event(author, made.oid, title))
                discussions.save(repo, pull)

    def say(self, repo_id: str, num: int, author: str, text: str) -> None:
        repo = self.repo(repo_id)
        with self.locks.hold(repo.lock):
            found = discussions.load(repo, num)
            found["events"].append(discussions.comment_event(author, text))
            discussions.save(repo, found)

    def hide(self, repo_id: str, num: int, event_id: str, who: Identity) -> None:
        repo = self.repo(repo_id)
        with self.locks.hold(repo.lock):
            found = discussions.load(repo, num)
            discussions.hide_comment(found, event_id, who, repo.owner)
            discussions.save(repo, found)


# cards


def lines_of(card: bytes) -> list[bytes]:
    return card.splitlines(keepends=True)


def section_at(card: bytes) -> tuple[int, int] | None:
    """The lines (first, behind the last) of our section; None where there is none.

    Raises:
        ValueError: markers without their partner, or more than one section.
    """
    fence, begins, ends = False, [], []
    for at, line in enumerate(lines_of(card)):
        if line.startswith(b"```"):
            fence = not fence
        elif not fence and line.startswith(BEGIN):
            begins.append(at)
        elif not fence and line.rstrip() == END:
            ends.append(at)
    if not begins and not ends:
        return None
    if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
        raise ValueError("damaged markers")
    return begins[0], ends[0] + 1


def without_ours(card: bytes) -> bytes:
    """A card without anything of ours, by other means than the bot's.

    Raises:
        ValueError: as :func:`section_at`.
    """
    lines = lines_of(card)
    if found := section_at(card):
        marker = lines[found[0]]
        newline = b"\r\n" if marker.endswith(b"\r\n") else b"\n"
        pads = re.search(rb"pad=([0-2]),([0-2])", marker)
        before, after = b"".join(lines[: found[0]]), b"".join(lines[found[1] :])
        for _ in range(int(pads[1]) if pads else 0):
            before = before.removesuffix(newline)
        for _ in range(int(pads[2]) if pads else 0):
            after = after.removeprefix(newline)
        card = before + after
    return re.sub(rb"(?ms)^# quantcard:begin[^\r\n]*\r?\n.*?^# quantcard:end[ ]*\r?\n", b"", card, count=1)


def _cut(card: bytes) -> tuple[bytes, bytes]:
    """(the card without our section, the section)."""
    lines, found = lines_of(card), section_at(card)
    if found is None:
        return card, b""
    return b"".join(lines[: found[0]] + lines[found[1] :]), b"".join(lines[found[0] : found[1]])


def _beside(card: bytes, text: bytes, *, behind: bool) -> bytes:
    """Put a line right before or behind our section."""
    lines, found = lines_of(card), section_at(card)
    at = len(lines) if found is None else found[1] if behind else found[0]
    return b"".join([*lines[:at], text, *lines[at:]])


def _moved_up(card: bytes) -> bytes:
    rest, section = _cut(card)
    first = rest.find(b"# ")
    return card if not section or first < 0 else rest[:first] + section + b"\n" + rest[first:]


def _twice(card: bytes) -> bytes:
    section = _cut(card)[1]
    return card + b"\n" + section if section else card


#: What owners do to a card; a number tells one edit from the next.
EDITS: dict[str, Callable[[bytes, int], bytes]] = {
    "append": lambda card, n: card + b"\nWords %d.\n" % n,
    "put on top": lambda card, n: re.sub(rb"(?m)^# ", b"Words %d first.\n\n# " % n, card, count=1),
    "line before ours": lambda card, n: _beside(card, b"Words %d before.\n" % n, behind=False),
    "line behind ours": lambda card, n: _beside(card, b"Words %d behind.\n" % n, behind=True),
    "write in ours": lambda card, n: re.sub(rb"(?m)(^<!-- quantcard:begin.*\n)", rb"\1Words %d in it.\n" % n, card),
    "crlf": lambda card, _: re.sub(rb"\r?\n", b"\r\n", card),
    "lf": lambda card, _: card.replace(b"\r\n", b"\n"),
    "delete ours": lambda card, _: _cut(card)[0],
    "move ours": lambda card, _: _moved_up(card),
    "ours twice": lambda card, _: _twice(card),
    "break a marker": lambda card, _: card.replace(END, b"<!-- quantcard:end", 1),
    "mend": lambda _, n: CARD + b"\nMended %d.\n" % n,
    "messy": lambda _, n: MESSY + b" %d" % n,
    "no utf-8": lambda card, _: card + b"\xff\n",
    "empty": lambda *_: b"",
    "another front matter": lambda card, n: card.replace(b"license: mit", b"license: mit # %d" % n, 1),
    "a model-index": lambda card, n: card.replace(b"license: mit", b"model-index: []\nlicense: mit", 1),
}
CONFIGS: dict[str, bytes | None] = {
    "gone": None,
    "no": b"enabled: false\n",
    "wrong": b"enabled: [\n",
    "wrong too": b"colums: [kld]\n",
    "yes": b"enabled: true\n",
    "file": b"data: file\n",
    "no data": b"data: none\n",
    "top": b"position: top\n",
    "after": b"position: {after: How to use it}\n",
    "metadata": b"metadata: true\n",
    "columns": b"columns: [kld, size]\n",
    "no plots": b"plots: false\n",
    "others": b"plots: others\n",
}
#: What is said on a pull, by its owner or a stranger.
SAYINGS = {
    "stop": "/quantcard stop",
    "remeasure": "Thanks!\n\n/quantcard remeasure",
    "dispute": "/quantcard dispute these are wrong",
    "unknown": "/quantcard please",
    "words": "What is this?\n\n> /quantcard stop\n\n```\n/quantcard stop\n```\n",
    "both": "/quantcard remeasure\n/quantcard stop",
}


@dataclass(frozen=True)
class Deed:
    """Something that a person does in a repo (by its place in ``REPOS``); ``what`` says it more exactly."""

    name: str
    repo: int = 0
    what: Any = None


class People:
    """Does deeds; those that the hub does not let be done are not done."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self._n = ground, 0

    def upload(self, repo_id: str, files: Mapping[str, int], card: bytes | None = None) -> None:
        """Commit files (label: number) to a repo."""
        sources: dict[str, bytes | Path] = {f"m-{label}.gguf": gguf(mark) for label, mark in files.items()}
        if card is not None:
            sources[README] = card
        seed.upload_files(self.ground.root, repo_id, sources)

    def do(self, deed: Deed) -> bool:
        """Do it; False if it can't be done now."""
        repo_id = REPOS[deed.repo]
        who = OWNER_OF[repo_id]
        me = Identity(who.acts, "write", orgs=(who.name,))
        self._n += 1
        ours = self.ground.pulls(repo_id)
        newest = ours[-1] if ours else None
        try:
            match deed.name:
                case "upload":
                    self.upload(repo_id, {deed.what[0]: deed.what[1]})
                case "remove":
                    self.ground.commit(repo_id, me.name or "", {f"m-{deed.what}.gguf": None})
                case "edit":
                    card = self.ground.read(repo_id, MAIN) or b""
                    self.ground.commit(repo_id, me.name or "", {README: EDITS[deed.what](card, self._n)})
                case "configure":
                    self.ground.commit(repo_id, me.name or "", {CONFIG: CONFIGS[deed.what]})
                case "picture":
                    self.ground.commit(repo_id, me.name or "", {PLOTS[0]: OWN_PICTURE if deed.what else None})
                case "discussions":
                    seed.set_repo(self.ground.root, repo_id, discussions=deed.what)
                case "reopen older" if len(ours) > 1:
                    pulls.set_status(self.ground.locks, self.ground.repo(repo_id), me, ours[-2]["num"], "open", None)
                case _ if newest is None or deed.name == "reopen older":
                    return False
                case _:
                    return self._on_pull(deed, repo_id, newest, me)
        except (HubError, ValueError):
            return False
        return True

    def _on_pull(self, deed: Deed, repo_id: str, pull: dict[str, Any], me: Identity) -> bool:
        ground, num = self.ground, pull["num"]
        repo, ref = ground.repo(repo_id), f"refs/pr/{num}"
        match deed.name:
            case "merge":
                pulls.merge(ground.locks, repo, me, num, None)
            case "close":
                pulls.set_status(ground.locks, repo, me, num, "closed", None)
            case "reopen":
                pulls.set_status(ground.locks, repo, me, num, "open", None)
            case "push" if pull["status"] in ("open", "draft"):
                card = ground.read(repo_id, ref) or b""
                ground.commit(repo_id, me.name or "", {README: card + b"\nPushed %d.\n" % self._n}, ref=ref)
            case "push":
                return False
            case "say":
                ground.say(repo_id, num, me.name or "", SAYINGS[deed.what])
            case "rant":
                for text in [*[f"/quantcard {n}" for n in range(6)], SAYINGS[deed.what]]:
                    ground.say(repo_id, num, me.name or "", text)
            case "shout":
                ground.say(repo_id, num, STRANGER, SAYINGS[deed.what])
            case "hide":
                comments = [e for e in pull["events"] if e["type"] == "comment" and e["author"] == BOT]
                if deed.what == "last" and len(comments) < 2:
                    return False
                ground.hide(repo_id, num, comments[0 if deed.what == "first" else -1]["id"], me)
            case "rename":
                with ground.locks.hold(repo.lock):
                    found = discussions.load(repo, num)
                    discussions.save(repo, {**found, "title": "Figures"})
            case other:
                raise AssertionError(other)
        return True


def usual(people: People, labels: tuple[str, ...] = LABELS[:2]) -> Iterator[str]:
    """Give every repo a reference, some quants and a card; their ids."""
    for repo_id in REPOS:
        marks = dict(zip(labels, MARKS[1:], strict=False))
        people.upload(repo_id, {"F16": 0, **marks}, CARD)
        yield repo_id
