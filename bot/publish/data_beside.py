"""The figures as a file beside a card (:data:`bot.publish.data_block.FILE`): which one is ours, and which is not."""

from __future__ import annotations

from bot.hub.door import FileTooLargeError, HubDoor
from bot.intake.card_meta import CARD_LIMIT
from bot.publish import card as cards
from bot.publish.data_block import FILE, DataBlock, decode, decode_file


def figures_beside(hub: HubDoor, repo_id: str, card: str, *, revision: str) -> DataBlock | None:
    """What a file of ours tells beside a card of ours that has no figures in itself; None where there is no such."""
    try:
        if cards.find(card) is None or decode(card):
            return None
        data = hub.read(repo_id, FILE, revision=revision, limit=CARD_LIMIT)
    except (cards.CardError, FileTooLargeError):
        return None
    return decode_file(data) if data else None


def anothers_file(hub: HubDoor, repo_id: str) -> bool:
    """Whether the repo has a file of that name that is none of ours: it is never written over."""
    try:
        data = hub.read(repo_id, FILE, revision="main", limit=CARD_LIMIT)
    except FileTooLargeError:
        return True
    return data is not None and decode_file(data) is None
