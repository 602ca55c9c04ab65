"""Header audits over HTTP with the real client: ranges, damaged files, chat templates beside the base model's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from benchmarks import headers as bench
from benchmarks.children import Product
from benchmarks.setting import Setting
from bot.commands.common import open_hub
from bot.hub.client import Hub
from bot.intake.headers import Audit, NotAModelError, audit_variant, inspect_variant
from bot.intake.templates import BASE_FRESH_S, audit_templates, template_flags
from bot.settings import load_settings
from bot.store import Store
from core.chat_template import sha256_of
from core.contract import Machine
from core.errors import HubUnreachableError
from core.gguf_files import VariantFiles, group_variants
from localhub import seed
from localhub.server import HubServer

REPO, BASE = "uploader/m-GGUF", "maker/m"
CARD = f"---\nbase_model: {BASE}\n---\n# m\n".encode()
#: Rendered, it would end a process that let it.
TEMPLATE = "{% for m in messages %}\n{{ m.content }}\n{% endfor %}\n{{ cycler.__init__.__globals__.os._exit(9) }}"
DAY = BASE_FRESH_S


def gguf(path: Path, *, template: str | None = TEMPLATE, kind: str = "model", shards: int = 0) -> Path:
    writer = GGUFWriter(path, "llama", split_max_tensors=2 if shards else 0)
    writer.add_type(kind)
    writer.add_file_type(7)
    writer.add_token_list(["a", "b", "c"])
    writer.add_tokenizer_model("gpt2")
    if template is not None:
        writer.add_chat_template(template)
    for i in range(2 * (shards or 1)):
        data = np.full((4, 34), i, np.uint8)
        writer.add_tensor(f"blk.{i}.attn_q.weight", data, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def hub_server(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        yield server


@pytest.fixture
def hub(hub_server: HubServer) -> Hub:
    return open_hub(load_settings(hf_endpoint=hub_server.url))


def variants(hub: Hub) -> dict[str, VariantFiles]:
    return {variant.name: variant for variant in group_variants(hub.detail(REPO).files)}


def test_a_large_vocabulary_over_http(hub_server: HubServer, hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "big-Q4_K_M.gguf"
    bench.write(path, bench.SHAPES[0])
    seed.upload_files(hub_server.root, REPO, {path.name: path})
    found = variants(hub)[path.name]
    hub_server.requests.clear()
    audit = audit_variant(hub, REPO, "main", found)
    assert audit.inspection is not None and audit.note is None
    assert audit.ranges == hub_server.requests.count(r"resolve/main/big", method="GET") <= 3
    assert audit.bytes_read <= 16_000_000 < path.stat().st_size
    assert audit.inspection.n_vocab == 151_936 and audit.inspection.vocab_sha256
    assert (audit.inspection.tokenizer_model, audit.inspection.tokenizer_pre) == ("gpt2", "qwen2")
    assert audit.template and sha256_of(audit.template) == audit.inspection.chat_template_sha256
    assert set(audit.inspection.groups) == {"attention", "experts_up", "experts_gate", "experts_down", "norms"}


def test_shards_damage_and_things_that_are_no_model(hub_server: HubServer, hub: Hub, tmp_path: Path) -> None:
    split = tmp_path / "split"
    split.mkdir()
    gguf(split / "s-Q8_0.gguf", shards=3)
    parts = sorted(split.glob("*.gguf"))
    assert len(parts) == 3
    whole = gguf(tmp_path / "whole.gguf")
    cut = whole.read_bytes()[:-300]
    files = {
        **{f"all/{part.name}": part for part in parts},
        **{f"some/{part.name}": part for part in parts[:2]},
        "cut-Q8_0.gguf": cut,
        "none-Q8_0.gguf": b"not a model " * 100,
        "im-Q8_0.gguf": gguf(tmp_path / "i.gguf", kind="imatrix"),
    }
    seed.upload_files(hub_server.root, REPO, files)
    known = variants(hub)

    def audit(name: str) -> Audit:
        return audit_variant(hub, REPO, "main", known[name])

    found = audit("all/s-Q8_0.gguf")
    assert found.inspection and found.inspection.flags == [] and found.ranges == 3
    assert (found.inspection.shards, found.inspection.shards_found) == (3, 3)
    some = audit("some/s-Q8_0.gguf")
    assert some.note == "2 of 3 shards are there." and some.inspection is not None
    assert [flag.code for flag in some.inspection.flags] == ["shards-missing"]
    broken = audit("cut-Q8_0.gguf")
    assert broken.inspection is None and broken.note and "truncated" in broken.note and broken.ranges == 1
    assert "does not begin with 'GGUF'" in (audit("none-Q8_0.gguf").note or "")
    assert inspect_variant(hub, REPO, "main", known["cut-Q8_0.gguf"]) == (None, broken.note)
    with pytest.raises(NotAModelError):
        audit("im-Q8_0.gguf")


class Look:
    """A repo in a store, audited from a hub; what was asked of the hub is counted."""

    def __init__(self, server: HubServer, hub: Hub, store: Store) -> None:
        self.server, self.hub, self.store = server, hub, store

    def __call__(self, files: dict[str, Path | bytes], *, now: float) -> None:
        seed.upload_files(self.server.root, REPO, files)
        found, texts = [], []
        for variant in variants(self.hub).values():
            audit = audit_variant(self.hub, REPO, "main", variant)
            found.append((variant, audit.inspection, audit.note))
            texts += [audit.template] if audit.template else []
        self.store.repos.save_repo(
            REPO, sha="c", last_modified=None, source="follow", note=None, base_model=BASE, config={}, now=now
        )
        self.store.repos.save_variants(REPO, found, revision="main", now=now)
        self.store.templates.keep(texts)

    def templates(self, *, now: float) -> list[str]:
        """What the templates' audit asked of the base model's repo."""
        self.server.requests.clear()
        audit_templates(self.store, self.hub, REPO, BASE, now=now)
        return [one.path.removeprefix("/").split("/")[-1] for one in self.server.requests.all() if BASE in one.path]

    def flags(self) -> dict[str, list[str]]:
        repo = self.store.repos.repo(REPO)
        assert repo is not None
        names = {variant.id: variant.name for variant in self.store.repos.variants(REPO)}
        found = template_flags(self.store, repo)
        return {names[number]: [flag.detail for flag in flags] for number, flags in found.items()}


@pytest.fixture
def look(hub_server: HubServer, hub: Hub, tmp_path: Path) -> Iterator[Look]:
    with Store(tmp_path / "q.db") as store:
        yield Look(hub_server, hub, store)


def test_templates_beside_the_base_models(look: Look, tmp_path: Path) -> None:
    root = look.server.root
    seed.upload_files(root, BASE, {"chat_template.jinja": TEMPLATE.encode(), "tokenizer_config.json": b"{}"})
    look({"m-Q8_0.gguf": gguf(tmp_path / "a.gguf"), "m-Q6_K.gguf": gguf(tmp_path / "b.gguf")}, now=0)
    assert look.templates(now=0) == ["m", "chat_template.jinja"], "its commit and one file"
    assert look.flags() == {}
    assert look.templates(now=DAY - 1) == [] and look.templates(now=DAY) == ["m"], "the same commit a day later"

    # A file with another template: the base model's other file may have it, and is asked once.
    other = TEMPLATE.replace("content", "text")
    look({"m-Q4_0.gguf": gguf(tmp_path / "c.gguf", template=other)}, now=DAY)
    assert look.templates(now=DAY + 1) == ["tokenizer_config.json"] and look.templates(now=DAY + 2) == []
    assert look.flags() == {
        "m-Q4_0.gguf": [
            "Its chat template is not that of maker/m (+1 −1 lines).",
            "Its chat template is not the one that 2 other files here have (+1 −1 lines).",
        ]
    }

    # The base model takes the change over.
    seed.upload_files(root, BASE, {"chat_template.jinja": other.encode()})
    assert look.templates(now=2 * DAY + 1) == ["m", "chat_template.jinja", "tokenizer_config.json"]
    assert sorted(look.flags()) == ["m-Q4_0.gguf", "m-Q6_K.gguf", "m-Q8_0.gguf"]
    assert all("maker/m" in details[0] for name, details in look.flags().items() if name != "m-Q4_0.gguf")


def test_named_templates_and_none_at_all(look: Look, tmp_path: Path) -> None:
    named = [{"name": "tools", "template": TEMPLATE}, {"name": "default", "template": "{{ x }}"}]
    settings = json.dumps({"chat_template": named}).encode()
    seed.upload_files(look.server.root, BASE, {"tokenizer_config.json": settings})
    none = gguf(tmp_path / "b.gguf", template=None)
    look({"m-Q8_0.gguf": gguf(tmp_path / "a.gguf"), "m-Q6_K.gguf": none}, now=0)
    assert look.templates(now=0) == ["m", "tokenizer_config.json"]
    assert look.flags() == {"m-Q6_K.gguf": ["It has no chat template, though 1 other file here has one."]}


@pytest.mark.parametrize("state", ["gated", "missing", "without"])
def test_a_base_model_that_tells_nothing_makes_no_flag(look: Look, tmp_path: Path, state: str) -> None:
    if state != "missing":
        files = {"chat_template.jinja": b"{{ other }}"} if state == "gated" else {"README.md": b"# m"}
        seed.upload_files(look.server.root, BASE, files)
        seed.set_repo(look.server.root, BASE, gated="manual" if state == "gated" else False)
    look({"m-Q8_0.gguf": gguf(tmp_path / "a.gguf")}, now=0)
    assert len(look.templates(now=0)) <= 2 and look.templates(now=1) == []
    assert look.flags() == {}
    base = look.store.templates.base(BASE)
    assert base is not None and (base.note is None) == (state == "without")


def test_a_hub_that_is_away_is_asked_again(look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seed.upload_files(look.server.root, BASE, {"chat_template.jinja": b"{{ other }}"})
    look({"m-Q8_0.gguf": gguf(tmp_path / "a.gguf")}, now=0)
    monkeypatch.setattr("time.sleep", lambda _: None)
    look.server.faults.fail(r"chat_template\.jinja", status=503, times=20)
    with pytest.raises(HubUnreachableError):
        look.templates(now=0)
    assert look.store.templates.base(BASE) is None
    look.server.faults.clear()
    assert look.templates(now=1) == ["m", "chat_template.jinja"]
    assert "maker/m" in look.flags()["m-Q8_0.gguf"][0]


def quantcard(server: HubServer, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": server.url}
    environment.pop("HF_TOKEN", None)
    return subprocess.run(
        [sys.executable, "-m", "bot.cli", *arguments],
        capture_output=True, text=True, timeout=100, check=False, env=environment,
    )  # fmt: skip


def test_inspect_shows_templates_and_their_diffs(hub_server: HubServer, tmp_path: Path) -> None:
    evil = TEMPLATE.replace("content", "text") + "\n\x1b[31m[red]"
    files = {"m-Q8_0.gguf": gguf(tmp_path / "a.gguf"), "m-Q6_K.gguf": gguf(tmp_path / "b.gguf", template=evil)}
    seed.upload_files(hub_server.root, REPO, {**files, "README.md": CARD})
    seed.upload_files(hub_server.root, BASE, {"chat_template.jinja": TEMPLATE.encode()})
    shown = quantcard(hub_server, "inspect", REPO)
    assert shown.returncode == 0, shown.stderr
    assert "that of maker/m" in shown.stdout and "not that of maker/m: +2 −1 lines" in shown.stdout
    assert "(template-differs-from-base)" in shown.stdout

    found = {one["name"]: one for one in json.loads(quantcard(hub_server, "inspect", REPO, "--json").stdout)}
    assert found["m-Q8_0.gguf"]["template"] == {
        "base_model": BASE, "same": True, "only_whitespace": False, "added": 0, "removed": 0
    }  # fmt: skip
    assert found["m-Q6_K.gguf"]["template"]["added"] == 2
    assert found["m-Q6_K.gguf"]["read"] == {"ranges": 1, "bytes": files["m-Q6_K.gguf"].stat().st_size}
    assert [flag["code"] for flag in found["m-Q6_K.gguf"]["flags"]] == [
        "label-mismatch", "template-differs-from-base", "template-differs-among-files"
    ]  # fmt: skip

    diff = quantcard(hub_server, "inspect", REPO, "--template-diff")
    assert diff.returncode == 0, diff.stderr
    lines = diff.stdout.splitlines()
    assert lines[:2] == ["--- maker/m", "+++ m-Q6_K.gguf"] and "-{{ m.content }}" in lines and "+{{ m.text }}" in lines
    assert "+\\x1b[31m[red]" in lines and "\x1b" not in diff.stdout
    as_json = json.loads(quantcard(hub_server, "inspect", f"{REPO}/m-Q6_K.gguf", "--template-diff", "--json").stdout)
    assert as_json["template"]["diff"] == lines[2 : 2 + len(as_json["template"]["diff"])]

    same = quantcard(hub_server, "inspect", f"{REPO}/m-Q8_0.gguf", "--template-diff")
    assert same.returncode == 0 and same.stdout == "" and "No chat template differs" in same.stderr


def test_the_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SHAPES", (bench.Shape("tiny", 500, 400, 7),))
    setting = Setting(Product(None, tmp_path), None, tmp_path, Machine(), chunks=2, rounds=1, variant="Q4_K_M")
    rows = bench.measure_headers(setting)
    assert [row.met for row in rows if row.target] == [True] * 4
