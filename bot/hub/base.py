"""What all calls to the Hub share: the client, whose token it is, the budget, retries, our errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

from bot.hub.budget import API, Budget
from bot.hub.session import budget_of, settle
from bot.hub.translate import translate
from core.errors import HubAuthError, HubUnreachableError

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Pauses (seconds) between tries of what is safe to ask again.
_PAUSES = (1.0, 3.0)


class HubBase:
    """One endpoint and one token."""

    dry_run = False

    def __init__(self, *, endpoint: str, token: str | None) -> None:
        self.endpoint = endpoint.rstrip("/")
        settle(self.endpoint)
        # False, not None: without a token of ours, a login stored on this machine must not be used instead.
        self._token: str | bool = token or False
        self._api = HfApi(endpoint=self.endpoint, token=self._token, library_name="quantcard")
        self.budget: Budget = budget_of(self.endpoint, token)
        self._me: str | None = None

    def _ask(self, doing: str, call: Callable[[], T], *, again: bool = True, resource: str = API) -> T:
        """Run one call within the budget; with ``again``, passing faults are retried."""
        for pause in (*_PAUSES, None) if again else (None,):
            self.budget.check(resource, doing=doing)
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
