"""Texts without secrets: what is known to be one in every form it may be written in, and what looks like one. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

#: What stands in a secret's place.
HIDDEN = "***"
#: Shorter texts are no secrets: they would be found everywhere.
SHORTEST = 4
#: Rounds after which a text that still shows a secret is hidden whole (two secrets that are parts of each other).
_ROUNDS = 4

#: What looks like a secret, and what is kept of it. Every repetition is bounded by what ends it, or by a number.
_LOOKS: tuple[tuple[re.Pattern[str], str], ...] = (
    # Tokens of the Hub; "hf_jobs" and "hf_endpoint" are words.
    (re.compile(r"hf_(?:[A-Za-z0-9]{16,}|(?=[a-z]{0,15}[A-Z0-9])[A-Za-z0-9]{4,})"), f"hf_{HIDDEN}"),
    (
        re.compile(
            r"(?i)(\b(?:proxy-)?authorization|\bx-webhook-secret|\bx-amz-security-token)"
            r"(['\"]?\s{0,8}[:=,]\s{0,8}(?:b?['\"])?)(?:(?:bearer|basic|token)\s)?[^\s'\",)}\]]+"
        ),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"(?i)(\b(?:set-)?cookie['\"]?\s{0,8}:\s{0,8}(?:b?['\"])?)[^'\"\r\n]+"), rf"\1{HIDDEN}"),
    (re.compile(r"\b((?i:bearer|basic))\s+(?=[a-z]*[A-Z0-9._~+/=-])[A-Za-z0-9._~+/=-]{8,}"), rf"\1 {HIDDEN}"),
    # Who speaks to an address: user:password@host, and a token alone before the @.
    (re.compile(r"(?i)([a-z][a-z0-9+.-]{0,20}://)[^\s/?#'\"<>]{1,2000}@"), rf"\1{HIDDEN}@"),
    # Addresses that are signed, or hold a token.
    (
        re.compile(
            r"(?i)([?&](?:access_|auth_|refresh_)?(?:token|signature|sig|secret|password|api_?key|policy|key-pair-id"
            r"|x-amz-signature|x-amz-security-token|x-amz-credential)=)[^&\s'\"<>]+"
        ),
        rf"\1{HIDDEN}",
    ),
)


class Mask:
    """Hides secrets in texts.

    Args:
        secrets: texts that must never be seen. Those shorter than :data:`SHORTEST` are left out.
    """

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets for form in _forms(secret)}
        # The longest first, so that no part of one is left standing.
        self._forms = sorted(forms, key=lambda form: (-len(form), form))

    def __call__(self, text: str) -> str:
        """``text`` without secrets."""
        for pattern, kept in _LOOKS:
            text = pattern.sub(kept, text)
        for _ in range(_ROUNDS):
            found = [form for form in self._forms if form in text]
            if not found:
                return text
            for form in found:
                text = text.replace(form, HIDDEN)
        return text if not any(form in text for form in self._forms) else HIDDEN


def _forms(secret: str) -> Iterable[str]:
    """How a secret may stand in a text: as it is, in a repr, in JSON, in an address, as bytes."""
    for text in {secret, secret.strip()}:
        if len(text) < SHORTEST or not text.strip("*"):
            continue
        yield text
        yield repr(text)[1:-1]
        yield repr(text.encode("utf-8", "surrogateescape"))[2:-1]
        yield json.dumps(text)[1:-1]
        yield json.dumps(text, ensure_ascii=False)[1:-1]
        safe = text.encode("utf-8", "surrogateescape")
        for quoted in (quote(safe, safe=""), quote(safe), quote_plus(safe)):
            yield quoted
            yield re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), quoted)
