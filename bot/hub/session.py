"""huggingface_hub's shared HTTP client, settled for us: timeouts, no progress bars, budgets read from every answer."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import disable_progress_bars, httpx
from huggingface_hub.utils._http import default_client_factory

from bot.hub.budget import Budget

#: Seconds to connect and to wait for a piece of an answer; the client's own default is for ever.
TIMEOUT = httpx.Timeout(30.0, connect=10.0)

_lock = threading.Lock()
_installed = False
_budgets: dict[tuple[str, str], Budget] = {}


def settle(endpoint: str) -> None:
    """Prepare the client for this Hub; what it does once for a process it does once."""
    _settle_client(endpoint)
    _install_factory()


def budget_of(endpoint: str, token: str | None) -> Budget:
    """The budget of a token at a Hub: one for all parts of this process."""
    key = (urlsplit(endpoint).netloc, f"Bearer {token}" if token else "")
    with _lock:
        return _budgets.setdefault(key, Budget())


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


def _install_factory() -> None:
    """Have huggingface_hub make its shared client our way, keeping its own hooks."""
    global _installed
    with _lock:
        if not _installed:

            def factory() -> Any:
                client = default_client_factory()
                client.timeout = TIMEOUT
                hooks = client.event_hooks
                client.event_hooks = {
                    "request": [*hooks.get("request", []), _limit_time],
                    "response": [*hooks.get("response", []), _note],
                }
                return client

            set_client_factory(factory)
            _installed = True


def _limit_time(request: Any) -> None:
    """Give a request ours where the client asked for no timeout at all, as most of its calls do."""
    if not any((request.extensions.get("timeout") or {}).values()):
        request.extensions = {**request.extensions, "timeout": TIMEOUT.as_dict()}


def _note(response: Any) -> None:
    """Tell the budget of whoever asked."""
    request = response.request
    key = (request.url.netloc.decode("ascii", "replace"), request.headers.get("authorization", ""))
    with _lock:
        budget = _budgets.get(key)
    if budget is not None:
        budget.note(request.method, request.url.path, response.headers)
