"""A card's text as the Hub has it, so that it can be put back byte for byte."""

from __future__ import annotations

from bot.hub.door import HubDoor
from bot.intake.card_meta import CARD_LIMIT
from bot.publish import card as cards
from bot.publish.section import CARD


def text_of(data: bytes | None) -> str:
    """A card's text; undecodable bytes come back the same on encoding."""
    return (data or b"").decode("utf-8", "surrogateescape")


def card_text(hub: HubDoor, repo_id: str, *, revision: str) -> str:
    """The card's text; empty when there is no card.

    Raises:
        CardError: it is not UTF-8; the client decodes cards, and the Hub shows such a one damaged anyway.
        FileTooLargeError: nobody reads a card of that size.
    """
    text = text_of(hub.read(repo_id, CARD, revision=revision, limit=CARD_LIMIT))
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise cards.CardError("The card is not UTF-8; once it is, it gets its section.")
    return text
