"""Entry of a Hugging Face Space: the leaderboard over the dataset in ``QUANTCARD_DATASET``.

It needs this folder, ``core`` beside it, and no token.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# A Space runs this file as a script: its own folder is on the path then, the one above it is not.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.errors import QuantcardError, SettingsError
from space.data import HubSource, LocalSource, Results, Source
from space.serve import serve


def source_from(environment: Mapping[str, str]) -> Source:
    """``QUANTCARD_DATASET``: a dataset repo at ``HF_ENDPOINT``, or a folder or parquet file that exists here."""
    dataset = environment.get("QUANTCARD_DATASET", "").strip()
    if not dataset:
        raise SettingsError("Set QUANTCARD_DATASET to the results dataset, as owner/name.")
    if Path(dataset).exists():
        return LocalSource(dataset)
    return HubSource(dataset, environment.get("HF_ENDPOINT") or None)


def main() -> int:
    """Serve until stopped; the exit code."""
    on_space = "SPACE_ID" in os.environ
    try:
        serve(
            Results(source_from(os.environ)),
            host=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if on_space else "127.0.0.1"),
            port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        )
    except QuantcardError as refused:
        print(refused, file=sys.stderr)
        return refused.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
