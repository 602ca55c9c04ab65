"""An owner's own template of the section, as the operator keeps it: ``templates_dir``/OWNER/section.md.j2."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from core.repo_names import is_owner

NAME = "section.md.j2"
#: Bytes of a template.
LIMIT = 256 << 10


@dataclass(frozen=True, slots=True)
class OwnTemplate:
    """Its text, or why it can't be read."""

    text: str | None = None
    problem: str | None = None


def own_template(folder: Path | None, owner: str) -> OwnTemplate | None:
    """The template for an owner's repos; None where there is none."""
    if folder is None or not is_owner(owner):
        return None
    path = folder / owner / NAME
    try:
        if not path.exists():
            return None
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
        if len(data) > LIMIT:
            return OwnTemplate(problem=f"It has more than {LIMIT >> 10} KiB.")
        return OwnTemplate(data.decode("utf-8-sig"))
    except OSError as error:
        return OwnTemplate(problem=f"It can't be read ({error.strerror}).")
    except UnicodeDecodeError:
        return OwnTemplate(problem="It is not UTF-8.")


def digest_of(folder: Path | None) -> str:
    """Of all owners' templates: another one when any of them changes."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob(f"*/{NAME}")) if folder else ():
        found = own_template(folder, path.parent.name)
        digest.update(repr((path.parent.name, found)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
