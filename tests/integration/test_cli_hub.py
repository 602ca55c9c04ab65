"""The commands that talk to a Hub, as a user runs them, with nothing but the environment set."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot.queue.runners.local import run_job
from core.contract import QuantizeSpec
from localhub import seed
from localhub.server import HubServer

REPO = "uploader/tiny-GGUF"
CARD = b"---\r\nlicense: mit\r\nbase_model: someone/tiny\r\n---\r\n# Tiny\r\n\r\nNo newline at the end"


class Setting:
    """A Hub with one repo, and a bot's environment."""

    def __init__(self, hub: HubServer, folder: Path, corpus: Path) -> None:
        self.hub, self.folder = hub, folder
        self.environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "hf_bot",
            "QUANTCARD_DB": str(folder / "q.db"),
            "QUANTCARD_CORPUS": str(corpus),
            "QUANTCARD_CHUNKS": "2",
            "QUANTCARD_REPETITIONS": "1",
            "QUANTCARD_DATASET": "bot/results",
        }
        # Nobody should have to know of Xet: the client's own default is on.
        self.environment.pop("HF_HUB_DISABLE_XET", None)

    def quantcard(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "bot.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
            env={**self.environment, **environment},
            cwd=self.folder,
        )


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, demo_model: Path, demo_corpus: Path) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("cli-hub")
    quant = folder / "tiny-Q4_K_M.gguf"
    run_job(QuantizeSpec(model=str(demo_model), out=str(quant), file_type="Q4_K_M"), timeout=100)
    root = folder / "hub"
    seed.create_user(root, "uploader", token="hf_uploader")
    seed.create_user(root, "bot", token="hf_bot")
    seed.upload_files(root, REPO, {"tiny-F16.gguf": demo_model, quant.name: quant, "README.md": CARD})
    with HubServer(root) as hub:
        yield Setting(hub, folder, demo_corpus)


def test_from_follow_to_pull_and_row(setting: Setting) -> None:
    done = setting.quantcard("follow", "uploader", "--consented")
    assert done.returncode == 0, done.stderr
    listed = json.loads(setting.quantcard("follows", "--json").stdout)
    assert listed == [{"name": "uploader", "kind": "owner", "consented": True}]

    dry = setting.quantcard("run", "--once", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "Would open a pull in uploader/tiny-GGUF" in dry.stderr
    assert "Would commit to the dataset bot/results" in dry.stderr

    wet = setting.quantcard("run", "--once")
    assert wet.returncode == 0, wet.stderr
    assert f"Pull opened: {setting.hub.url}/{REPO}/discussions/1" in wet.stderr
    assert "Q4_K_M" in wet.stdout and "reference" in wet.stdout

    status = json.loads(setting.quantcard("status", "--json").stdout)
    assert status["jobs"] == {"done": 5}
    assert [(p["num"], p["status"]) for p in status["pulls"]] == [(1, "open")]
    rows = {row["label"]: row for row in json.loads(setting.quantcard("status", REPO, "--json").stdout)["rows"]}
    assert rows["F16"]["is_reference"] and 0 < rows["Q4_K_M"]["kld_mean"] < 0.1
    assert all(row["state"] == "measured" for row in rows.values())

    again = setting.quantcard("run", "--once")
    assert again.returncode == 0 and "0 new or changed" in again.stderr and "Pull" not in again.stderr
    assert "0 new jobs queued" in again.stderr and "Published" not in again.stderr


def test_the_pull_changes_nothing_but_the_section(setting: Setting) -> None:
    shown = setting.quantcard("card", REPO, "--dry-run", "--full")
    assert shown.returncode == 0, shown.stderr
    from huggingface_hub import HfApi

    api = HfApi(endpoint=setting.hub.url, token="hf_bot")
    path = api.hf_hub_download(REPO, "README.md", revision="refs/pr/1", local_dir=setting.folder / "pr")
    card = Path(path).read_bytes()
    assert card.startswith(CARD)
    section = card[len(CARD) :].decode()
    lines = section.split("\r\n")
    assert sum(line.startswith("<!-- quantcard:begin") for line in lines) == 1
    assert lines.count("<!-- quantcard:end -->") == 1
    assert "\n" not in section.replace("\r\n", "")
    diff = setting.quantcard("card", REPO, "--dry-run").stdout
    removed = [line for line in diff.splitlines() if line.startswith("-") and not line.startswith("---")]
    assert removed in ([], ["-No newline at the end"])


def test_inspect_reads_headers_from_the_hub(setting: Setting) -> None:
    found = json.loads(setting.quantcard("inspect", REPO, "--json").stdout)
    assert [one["file_type"] for one in found] == ["F16", "Q4_K_M"]
    one = json.loads(setting.quantcard("inspect", f"{REPO}/tiny-Q4_K_M.gguf", "--json").stdout)
    assert one == found[1]
    local = json.loads(setting.quantcard("inspect", str(setting.folder / "tiny-Q4_K_M.gguf"), "--json").stdout)
    assert {**local, "name": ""} == {**one, "name": ""}
    missing = setting.quantcard("inspect", f"{REPO}/nothing.gguf")
    assert missing.returncode == 3 and "There is no GGUF model" in missing.stderr


def test_jobs_can_be_listed_and_shown(setting: Setting) -> None:
    listed = json.loads(setting.quantcard("jobs", "list", "--json").stdout)
    assert {job["state"] for job in listed} == {"done"}
    shown = setting.quantcard("jobs", "show", str(listed[0]["id"])).stdout
    assert "running" in shown and "done" in shown
    retry = setting.quantcard("jobs", "retry", str(listed[0]["id"]))
    assert retry.returncode == 2 and "nothing to retry" in retry.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "says"),
    [
        (("run", "--once"), {"HF_TOKEN": "hf_nobody"}, 4, "does not know this token"),
        (("run", "--once"), {"HF_ENDPOINT": "http://127.0.0.1:9"}, 4, "did not answer"),
        (("run", "--once"), {"QUANTCARD_CORPUS": "no-such.txt"}, 3, "does not exist"),
        (("status",), {"QUANTCARD_CHUNKS": "many"}, 2, "chunks"),
        (("unfollow", "nobody"), {}, 2, "not followed"),
        (("follow", "a/b/c"), {}, 2, "not an owner, a repo or a collection"),
        (("card", "uploader/other"), {}, 2, "Nothing is measured"),
        (("status",), {"QUANTCARD_DB": "/dev/null/q.db"}, 6, "database"),
    ],
)
def test_errors_are_a_sentence_and_a_code(
    setting: Setting, arguments: tuple[str, ...], environment: dict[str, str], code: int, says: str
) -> None:
    done = setting.quantcard(*arguments, **environment)
    assert done.returncode == code, done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr


def test_settings_rise_from_file_to_environment_to_flags(setting: Setting, tmp_path: Path) -> None:
    config = tmp_path / "quantcard.toml"
    config.write_text(f'db = "{tmp_path / "file.db"}"\n')
    clean = {"QUANTCARD_CONFIG": str(config), "QUANTCARD_DB": ""}
    assert setting.quantcard("follow", "one", **clean).returncode == 0
    assert (tmp_path / "file.db").exists()
    by_env = {**clean, "QUANTCARD_DB": str(tmp_path / "env.db")}
    assert setting.quantcard("follow", "two", **by_env).returncode == 0
    assert (tmp_path / "env.db").exists()
    assert setting.quantcard("follow", "three", "--db", str(tmp_path / "flag.db"), **by_env).returncode == 0
    assert (tmp_path / "flag.db").exists()
    config.write_text('dataset = "bot/other"\n')
    show = "from bot.settings import load_settings as s; print(repr(s().dataset), s().db, s().hf_token)"
    for given, found in (
        ({"QUANTCARD_DATASET": "", "HF_TOKEN": ""}, "'' quantcard.db None"),
        ({}, "'bot/other' x.db hf"),
    ):
        environment = {"QUANTCARD_CONFIG": str(config), **({"QUANTCARD_DB": ""} if given else {"QUANTCARD_DB": "x.db"})}
        environment |= given or {"HF_TOKEN": "hf"}
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "QUANTCARD_"))}
        done = subprocess.run(
            [sys.executable, "-c", show], capture_output=True, text=True, check=True, env={**plain, **environment}
        )
        assert done.stdout.strip() == found
    config.write_text("dbb = 1\n")
    wrong = setting.quantcard("follows", **clean)
    assert wrong.returncode == 2 and "dbb" in wrong.stderr
    config.write_text("db = [\n")
    wrong = setting.quantcard("follows", **clean)
    assert wrong.returncode == 2 and "can't be read" in wrong.stderr
