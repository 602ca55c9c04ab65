"""What all tests share: no network, no token of this machine, the team's data where it is at hand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

# In CI the same examples every time: a rare find belongs to whoever runs the tests at their desk, not to a landing.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

# Before huggingface_hub is imported: it reads these once.
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
for name in [*(n for n in os.environ if n.startswith("QUANTCARD_")), "HF_TOKEN", "HF_ENDPOINT"]:
    os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test works in a folder of its own: no quantcard.toml, quantcard.db or checkpoint is picked up or left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The team's folder of real models; tests that need it say so where it is absent."""
    if not (SHARED / "data" / "models").is_dir():
        pytest.skip(
            "the team's shared/ folder (real models and llama-perplexity's figures) is not beside this checkout"
        )
    return SHARED


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The reference that ships with the project."""
    return ROOT / "localhub" / "demo_model" / "quantcard-demo-F16.gguf"


@pytest.fixture(scope="session")
def demo_corpus() -> Path:
    """The held-out text that ships with the project."""
    return ROOT / "localhub" / "demo_model" / "heldout.txt"
