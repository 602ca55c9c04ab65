"""``quantcard hub``: serve a folder as a Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def hub(
    root: Annotated[Path, typer.Option("--root", help="The folder that holds the repos; made if need be.")],
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port; 0: any free one.")] = 8788,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Serve a folder as a Hugging Face Hub (see docs/localhub.md); point HF_ENDPOINT at it."""
    from localhub.server import serve

    serve(root, host=host, port=port)
