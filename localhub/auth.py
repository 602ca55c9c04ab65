"""Users, organisations and tokens, and who may do what."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .disk import Locks, now, read_json_cached, stable_id, write_json
from .errors import BadRequest, Conflict, DisabledRepo, Forbidden, GatedRepo, RepoNotFound, Unauthorized
from .names import check_owner
from .repos import Repo

Role = Literal["read", "write", "fineGrained"]


@dataclass(frozen=True)
class Grants:
    """What a fine-grained token may do: everywhere, and to users, organisations or single repos by name."""

    everywhere: frozenset[str] = frozenset()
    scoped: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def allow(self, permission: str, repo_id: str = "") -> bool:
        """Whether a permission is granted; for a repo where one is named, else for anything."""
        if permission in self.everywhere:
            return True
        if not repo_id:
            return any(permission in granted for granted in self.scoped.values())
        return any(permission in self.scoped.get(name, ()) for name in (repo_id, repo_id.split("/")[0]))


def read_grants(told: Any) -> Grants:
    """The `fineGrained` of a token's row, which has the shape of the Hub's answer."""
    scoped: dict[str, frozenset[str]] = {}
    for one in told.get("scoped", []) if isinstance(told, dict) else []:
        name = one["entity"]["name"]
        scoped[name] = scoped.get(name, frozenset()) | frozenset(one["permissions"])
    return Grants(frozenset(told.get("global", [])) if isinstance(told, dict) else frozenset(), scoped)


@dataclass(frozen=True)
class Identity:
    """Who is asking. Without a token: nobody (`name` is None), who may read what is public."""

    name: str | None = None
    role: Role = "read"
    token_name: str = ""
    orgs: tuple[str, ...] = ()
    grants: Grants | None = None

    def is_member(self, owner: str) -> bool:
        """Whether things of this user or organisation are theirs."""
        return self.name is not None and (owner == self.name or owner in self.orgs)

    def require_user(self) -> str:
        """The user's name; 401 for nobody."""
        if self.name is None:
            raise Unauthorized("Invalid username or password.")
        return self.name

    def require_write(self, permission: str = "", repo_id: str = "") -> str:
        """The user's name; 401 for nobody, 403 for a token that may only read, or a fine-grained one without a right.

        Without a `permission` a fine-grained token needs any right to write.
        """
        name = self.require_user()
        if self.role == "read":
            raise Forbidden('Forbidden: you must use a write token to do this; yours has the role "read".')
        if self.grants is not None and not self._granted(permission, repo_id):
            wanted = permission or "a right to write"
            raise Forbidden(f"Forbidden: your fine-grained token lacks {wanted}{f' on {repo_id}' if repo_id else ''}.")
        return name

    def _granted(self, permission: str, repo_id: str) -> bool:
        assert self.grants is not None
        if permission:
            return self.grants.allow(permission, repo_id)
        every = self.grants.everywhere.union(*self.grants.scoped.values())
        return any(one.endswith(".write") for one in every)


ANONYMOUS = Identity()


@dataclass(frozen=True)
class Owner:
    """A repo's owner; `members` are those of an organisation, and nobody where it is a user."""

    name: str
    members: frozenset[str] = frozenset()


def user_id(name: str) -> str:
    """The id that stands for a user in payloads."""
    return stable_id("user", name)


def check_readable(repo: Repo, who: Identity) -> None:
    """A private repo looks missing to everybody else."""
    if repo.meta().get("private") and not who.is_member(repo.owner):
        raise RepoNotFound()


def check_enabled(repo: Repo) -> None:
    """Nobody reads the files of a disabled repo or writes to it."""
    if repo.meta().get("disabled"):
        raise DisabledRepo()


def check_files(repo: Repo, who: Identity) -> None:
    """A gated repo's files are for its owner and for those who were granted access; a disabled one's for nobody."""
    check_enabled(repo)
    meta = repo.meta()
    granted = who.is_member(repo.owner) or (who.name is not None and who.name in meta.get("access", []))
    if meta.get("gated") and not granted:
        raise GatedRepo(
            f"Access to {repo.repo_type} {repo.repo_id} is restricted and you are not in the authorized list."
            " Visit the repo's page to ask for access."
        )


def check_admin(repo: Repo, who: Identity) -> str:
    """Only the owner (or a member of the owning organisation), with a write token."""
    name = who.require_write("repo.write", repo.repo_id)
    if not who.is_member(repo.owner):
        raise Forbidden(f"Forbidden: you don't have the rights to change the {repo.repo_type} {repo.repo_id}")
    return name


def check_discussions(repo: Repo) -> None:
    """Discussions and pull requests can be switched off for a repo."""
    check_enabled(repo)
    if repo.meta().get("discussionsDisabled"):
        raise Forbidden("Discussions are disabled for this repo")


class Users:
    """`users.json`. A folder without one has no users: everybody is anonymous and can read what is public."""

    def __init__(self, root: Path, locks: Locks) -> None:
        self._path = root / "users.json"
        self._locks = locks

    def _load(self) -> dict[str, Any]:
        data = read_json_cached(self._path) or {}
        return {"users": data.get("users", {}), "tokens": data.get("tokens", {})}

    def create(
        self,
        name: str,
        *,
        token: str | None = None,
        role: Role = "write",
        is_org: bool = False,
        members: tuple[str, ...] = (),
        fine_grained: Mapping[str, Any] | None = None,
    ) -> str:
        """Make a user or organisation and return the user's token (`""` for an organisation).

        An existing user gets one more token; an existing organisation gets the members added. `fine_grained` is what
        a token of that role may do, as the Hub's whoami tells it: {"global": [...], "scoped": [...]}.
        """
        check_owner(name)
        if role not in ("read", "write", "fineGrained"):
            raise BadRequest(f"Invalid role: {role!r}")
        if (role == "fineGrained") != (fine_grained is not None):
            raise BadRequest("Give fine_grained for a token of the role fineGrained, and for no other")
        with self._locks.hold("users"):
            data = self._load()
            users, tokens = dict(data["users"]), dict(data["tokens"])
            kind = "org" if is_org else "user"
            known = users.get(name, {"type": kind, "createdAt": now()})
            if known["type"] != kind:
                raise Conflict(f"{name} exists already and is not of type {kind}")
            if is_org:
                known = {**known, "members": sorted({*known.get("members", []), *members})}
                token = ""
            else:
                token = token or f"hf_{secrets.token_hex(17)}"
                holder = tokens.get(token, {}).get("user", name)
                if holder != name:
                    raise Conflict("This token belongs to somebody else already")
                tokens[token] = {"user": name, "role": role, "name": f"{role} token", "createdAt": now()}
                if fine_grained is not None:
                    tokens[token]["fineGrained"] = dict(fine_grained)
            users[name] = known
            # 0600: the tokens are in it, in clear, so that a person can write the file
            write_json(self._path, {"users": users, "tokens": tokens}, mode=0o600)
        return token

    def identify(self, authorization: str | None) -> Identity:
        """The identity behind an Authorization header; 401 for a token nobody was given."""
        if not authorization:
            return ANONYMOUS
        scheme, _, token = authorization.partition(" ")
        data = self._load()
        row = data["tokens"].get(token.strip()) if scheme.lower() == "bearer" else None
        if row is None or row["user"] not in data["users"]:
            raise Unauthorized("Invalid credentials in Authorization header")
        name = row["user"]
        role: Role = row["role"] if row.get("role") in ("write", "fineGrained") else "read"
        grants = read_grants(row.get("fineGrained", {})) if role == "fineGrained" else None
        return Identity(name, role, row.get("name", ""), tuple(self.orgs_of(name)), grants)

    def token_facts(self, authorization: str) -> dict[str, Any]:
        """What whoami tells of the token behind an Authorization header that was identified."""
        row = self._load()["tokens"][authorization.partition(" ")[2].strip()]
        role = row.get("role") if row.get("role") in ("write", "fineGrained") else "read"
        told = {"displayName": row.get("name", ""), "role": role, "createdAt": row.get("createdAt", "")}
        told |= {name: row[name] for name in ("expiration",) if name in row}
        if role == "fineGrained":
            fine = row.get("fineGrained", {})
            told["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": [], **fine}
        return told

    def identity_of(self, name: str) -> Identity:
        """What a user may read, for work done in their name (webhooks)."""
        return Identity(name, "read", "", tuple(self.orgs_of(name)))

    def orgs_of(self, name: str) -> list[str]:
        """The organisations a user is a member of."""
        return sorted(org for org, row in self._load()["users"].items() if name in row.get("members", []))

    def owner(self, name: str) -> Owner:
        """The owner of this name; one whom nobody made a user has no members either."""
        return Owner(name, frozenset(self.members(name)))

    def members(self, name: str) -> list[str]:
        """The members of an organisation, sorted."""
        return sorted(self._load()["users"].get(name, {}).get("members", []))

    def kind(self, name: str) -> str | None:
        """`user`, `org`, or None for nobody."""
        row = self._load()["users"].get(name)
        return row["type"] if row else None
