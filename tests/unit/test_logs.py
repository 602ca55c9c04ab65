"""Logs: one event a line, text or JSON, and no secret in any of them, however it gets there."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bot import logs
from bot.logs import FIELDS, JsonLog, Masked, TextLog
from bot.masking import HIDDEN, Mask
from bot.settings import Settings, load_settings

TOKEN = "hf_" + "aB3dE5gH" * 4
SECRETS = st.text(st.characters(exclude_categories=["Cs"]), min_size=6, max_size=40)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def record(message: str, *args: object, error: BaseException | None = None, **extra: Any) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    made = logging.LogRecord("bot.x", logging.WARNING, "x.py", 1, message, args, info)
    made.__dict__.update(extra)
    return made


def raised(text: str) -> BaseException:
    try:
        raise RuntimeError(text)
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("text", "gone", "kept"),
    [
        (f"401 for {TOKEN}!", TOKEN, "hf_***!"),
        (f"x{TOKEN}", TOKEN, "xhf_***"),
        ("Authorization: Bearer abc.def-123", "abc.def-123", "Authorization: ***"),
        ("{'authorization': 'Basic dXNlcjpwYXNz'}", "dXNlcjpwYXNz", "{'authorization': '***'}"),
        ("[(b'authorization', b'Bearer s3cr3t==')]", "s3cr3t", "(b'authorization', b'***')"),
        ("sent Bearer abc.def-123 to it", "abc.def-123", "sent Bearer *** to it"),
        ('{"Authorization":"weird/value"}', "weird/value", '{"Authorization":"***"}'),
        ("X-Webhook-Secret: what is it", "what", "X-Webhook-Secret: *** is it"),
        ("Set-Cookie: a=1; session=abc; path=/", "abc", "Set-Cookie: ***"),
        ("https://user:pa55@host/x", "pa55", "https://***@host/x"),
        ("git+ssh://tokenonly@host", "tokenonly", "git+ssh://***@host"),
        ("redis://:p@ss@host:1/0", "p@ss", "redis://***@host:1/0"),
        ("GET /f?X-Amz-Signature=abcdef&x=1", "abcdef", "GET /f?X-Amz-Signature=***&x=1"),
        ("wss://h/queue?token=abc123 closed", "abc123", "?token=*** closed"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, gone: str, kept: str) -> None:
    masked = Mask()(text)
    assert gone not in masked and kept in masked
    assert Mask()(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "hf_jobs and hf_endpoint are settings; bot.hub.session",
        "Pull https://huggingface.co/o/r/discussions/3 of someone@example.org",
        "basic settings, a bearer of tidings; bearer: cookie, token",
        "12:30:01 a@b 3/4",
        "runner hf_jobs: no machine; QUANTCARD_HF_TOKEN",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert Mask()(text) == text


@settings(deadline=None)
@given(secret=SECRETS, before=TEXTS, after=TEXTS, how=st.integers(0, 6))
def test_a_known_secret_never_comes_out(secret: str, before: str, after: str, how: int) -> None:
    assume(secret.strip("*").strip())
    forms = [
        secret, repr(secret), repr(secret.encode()), json.dumps(secret), quote(secret), quote(secret, safe=""),
        json.dumps(secret, ensure_ascii=False),
    ]  # fmt: skip
    masked = Mask([secret])(f"{before}{forms[how]}{after}")
    assert secret not in masked
    bare = forms[how].strip("b'\"")
    if len(bare) >= len(secret) >= 6 and bare.strip("*"):
        assert bare == secret.strip("b'\"") or bare not in masked


@settings(deadline=None)
@given(secrets=st.lists(st.text("ab*", min_size=4, max_size=9), max_size=4), text=st.text("ab*", max_size=60))
def test_secrets_that_are_parts_of_each_other(secrets: list[str], text: str) -> None:
    masked = Mask(secrets)(text)
    assert not any(secret in masked for secret in secrets if secret.strip("*"))


@settings(deadline=None)
@given(secret=SECRETS, message=TEXTS, field=TEXTS, trace=TEXTS)
@pytest.mark.parametrize("kind", [TextLog, JsonLog])
def test_no_line_shows_a_setting_that_is_secret(
    kind: type[Masked], secret: str, message: str, field: str, trace: str
) -> None:
    assume(secret.strip("*").strip())
    formatter = kind([secret])
    quiet = formatter.format(record("", error=raised(""), repo=""))
    assume(secret not in quiet and secret not in json.dumps([HIDDEN, "message", "repo"]))
    said = record(
        "%s told %r of %s", message, secret, secret + message,
        error=raised(f"{trace}{secret}"), repo=f"{field}{secret}",
    )  # fmt: skip
    line = formatter.format(said)
    values = [str(one) for one in json.loads(line).values()] if kind is JsonLog else [line]
    # A traceback shows this file's own lines too.
    assert not any(secret in value for value in values if secret not in quiet)


def test_a_text_line_is_one_line_and_tells_the_fields() -> None:
    line = TextLog().format(record("two\nlines \x1b[31m\u202e", job=3, repo="o/r\n", seconds=1.5))
    assert line[24:] == " WARNING bot.x: two\\nlines \\x1b[31m\\u202e job=3 repo=o/r\\n seconds=1.5"
    assert line[:4].isdigit() and line[23] == "Z"
    trace = TextLog().format(record("failed", error=raised("why")))
    first, *rest = trace.split("\n")
    assert first.endswith("bot.x: failed") and len(rest) > 2 and all(one.startswith("    ") for one in rest)


def test_a_json_line_holds_the_parts() -> None:
    line = JsonLog().format(record("a\n%s\u2028", "b", job=3, repo="o/r", seconds=float("nan"), error=raised("why")))
    assert len(line.splitlines()) == 1
    found = json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert found["message"] == "a\nb\u2028" and found["level"] == "warning" and found["logger"] == "bot.x"
    assert (found["job"], found["repo"], found["seconds"]) == (3, "o/r", "nan")
    assert "RuntimeError: why" in found["traceback"] and set(found) - {*FIELDS} == {
        "time", "level", "logger", "message", "traceback",
    }  # fmt: skip


def test_a_record_that_can_not_be_told_is_told_as_far_as_it_goes() -> None:
    class Evil:
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert "do not fit" in TextLog().format(record("%d", "x"))
    assert "do not fit" in JsonLog().format(record("%s", Evil()))


def test_long_texts_are_cut_after_they_are_masked() -> None:
    secret = "s" + "ecret" * 3
    for place in range(logs.LONGEST - 40, logs.LONGEST + 5):
        line = TextLog([secret]).format(record("x" * place + secret + "y" * 99))
        assert len(line) < logs.LONGEST + 200 and "ecretecret" not in line


@pytest.fixture
def alone() -> Iterator[io.StringIO]:
    """Our handler as the only one, as in a process of ours."""
    root = logging.getLogger()
    before, level, hooks = root.handlers[:], root.level, (sys.excepthook, sys.unraisablehook)
    root.handlers = []
    yield io.StringIO()
    root.handlers, sys.excepthook, sys.unraisablehook = before, *hooks
    root.setLevel(level)
    logging.captureWarnings(False)
    logs._handler.setFormatter(TextLog())


def test_levels_of_ours_and_of_others(alone: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", alone)

    def told(form: Any, level: Any, *, verbose: bool = False) -> set[str]:
        logging.getLogger().handlers = []
        logs.begin(verbose=verbose)
        if level:
            logs.serve(form=form, level=level)
        alone.seek(0)
        alone.truncate()
        for name in ("bot.x", "httpx2"):
            for how in ("debug", "info", "warning", "error"):
                getattr(logging.getLogger(name), how)("%s-%s", name, how)
        return {line.split(": ")[1] for line in alone.getvalue().splitlines()}

    assert told(None, None) == {"bot.x-error", "httpx2-error"}
    assert told(None, None, verbose=True) >= {"bot.x-info", "httpx2-info"}
    assert told("text", "info") == {"bot.x-info", "bot.x-warning", "bot.x-error", "httpx2-warning", "httpx2-error"}
    assert told("text", "error", verbose=True) >= {"bot.x-info", "httpx2-info"}
    assert "httpx2-debug" in told("text", "debug")


def test_a_host_keeps_its_own_handlers() -> None:
    root = logging.getLogger()
    before = root.handlers[:]
    assert before, "pytest's own"
    logs.begin(verbose=True)
    assert root.handlers == before


def test_the_settings_tell_what_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = load_settings(webhook_secret="a long random text")
    assert set(found.secrets) == {TOKEN, "a long random text"}
    assert logs.masked("so: a long random text") == "so: ***"
    named = [name for name in Settings.model_fields if "token" in name or "secret" in name or "password" in name]
    assert named and all(not Settings.model_fields[name].repr for name in named), "hidden, so known as secret"


PROGRAM = """
import logging, sys, threading, warnings
from bot import logs
from bot.settings import load_settings
logs.begin(verbose=False)
settings = load_settings(webhook_secret="a long random text", hf_token="{token}")
logs.serve(form="{form}", level="info")
logging.getLogger("somebody.else").warning("got %s", settings.webhook_secret)
logging.getLogger("bot").error("%d", settings.hf_token)
warnings.warn("of " + settings.hf_token)
thread = threading.Thread(target=lambda: 1 / len(settings.webhook_secret[99:]) + int(settings.webhook_secret))
thread.start(); thread.join()
class Late:
    def __del__(self): raise ValueError(settings.webhook_secret)
Late()
raise RuntimeError(settings.hf_token + " " + settings.webhook_secret)
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_way_out_of_a_process_shows_a_secret(form: str) -> None:
    """Other libraries' records, bad arguments, warnings, threads, __del__, and what nobody caught."""
    code = PROGRAM.replace("{token}", TOKEN).replace("{form}", form)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    said = ended.stdout + ended.stderr
    # Tracebacks show the program's lines; this one has none to show.
    assert ended.returncode == 1 and TOKEN not in said and "a long random text" not in said, said
    for word in ("somebody.else", "do not fit", "UserWarning", "ended the thread", "ValueError", "RuntimeError"):
        assert word in said, (word, said)
    if form == "json":
        assert all(json.loads(line)["level"] for line in ended.stderr.splitlines())
