"""Jobs on localhub, through the real client: the command runs for real, and ends with the server."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_DISABLE_XET", "1")

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi, JobInfo, Volume
from huggingface_hub.errors import HfHubHTTPError

from localhub import seed
from localhub.server import HubServer

pytestmark = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    root = tmp_path_factory.mktemp("hub")
    for name in ("alice", "bob"):
        seed.create_user(root, name, token=f"hf_{name}")
    seed.upload_files(root, "up/model", {"q/m.gguf": b"GGUF" * 100, "README.md": b"# words\n"})
    with HubServer(root) as server:
        yield server


@pytest.fixture
def alice(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.url, token="hf_alice")


def run(api: HfApi, script: str, **more: object) -> JobInfo:
    return api.run_job(image="any@sha256:1", command=["sh", "-c", script], namespace="alice", **more)  # type: ignore[arg-type]


def ended(api: HfApi, job: JobInfo) -> JobInfo:
    return api.wait_for_job(job.id, namespace="alice", timeout=30, poll_interval=0.1)


def lines(api: HfApi, job: JobInfo) -> list[str]:
    return list(api.fetch_job_logs(job_id=job.id, namespace="alice"))


def test_a_command_runs_with_its_environment_and_its_words_are_the_log(alice: HfApi) -> None:
    job = run(
        alice, 'echo "$A and $S"; echo $JOB_ID; echo to-stderr >&2; env | grep -c hf_; python -c "print(6 * 7)"',
        env={"A": "one"}, secrets={"S": "hidden"}, labels={"k": "v"},
    )  # fmt: skip
    done = ended(alice, job)
    assert done.status.stage == "COMPLETED" and done.durations is not None and done.durations.running_secs is not None
    assert lines(alice, job) == ["one and hidden", job.id, "to-stderr", "0", "42"]
    # The value of a secret is told to nobody, and stands in no file.
    assert done.secrets == {"S": ""} and done.environment == {"A": "one"}


def test_volumes_are_mounted_and_a_repo_only_to_read(hub: HubServer, alice: HfApi) -> None:
    alice.create_bucket("alice/data", private=True)
    alice.batch_bucket_files("alice/data", add=[(b"in", "in/x"), (b"\n", "out/.keep")])
    script = (
        "cat /model/q/m.gguf | wc -c; cat /in/x; echo; echo made > /out/y;"
        "touch /in/z; touch /model/z; echo later >> /out/y; ls /out"
    )
    job = run(
        alice,
        script,
        volumes=[
            Volume(type="model", source="up/model", mount_path="/model", revision="main"),
            Volume(type="bucket", source="alice/data", mount_path="/in", path="in", read_only=True),
            Volume(type="bucket", source="alice/data", mount_path="/out", path="out"),
        ],
    )
    assert ended(alice, job).status.stage == "COMPLETED"
    said = lines(alice, job)
    assert said[:2] == ["400", "in"] and said[-1] == "y" and sum("Read-only" in line for line in said) == 2
    assert (hub.root / "buckets/alice/data/files/out/y").read_text() == "made\nlater\n"
    assert not (hub.root / "jobs" / "alice" / job.id / "volumes").exists()


def test_the_hubs_own_folder_is_not_seen(hub: HubServer, alice: HfApi) -> None:
    job = run(alice, f"ls -A {hub.root} {hub.root}/users.json; grep -r hf_alice {hub.root}")
    ended(alice, job)
    assert all("No such file" in line for line in lines(alice, job))


@pytest.mark.parametrize(
    ("volume", "why"),
    [
        (Volume(type="model", source="up/none", mount_path="/m"), "Repository not found"),
        (Volume(type="model", source="up/model", mount_path="/m", revision="nope"), "Invalid rev id"),
        (Volume(type="bucket", source="bob/none", mount_path="/m"), "Bucket not found"),
        (Volume(type="bucket", source="alice/data2", mount_path="/m", path="none"), "no folder"),
    ],
)
def test_a_volume_that_can_not_be_had_fails_the_job(alice: HfApi, volume: Volume, why: str) -> None:
    alice.create_bucket("alice/data2", exist_ok=True)
    job = ended(alice, run(alice, "echo never", volumes=[volume]))
    assert job.status.stage == "ERROR" and why in str(job.status.message) and lines(alice, job) == []


def test_how_a_job_ends(hub: HubServer, alice: HfApi) -> None:
    failed = ended(alice, run(alice, "exit 3"))
    assert (failed.status.stage, failed.status.message) == ("ERROR", "Job failed with exit code: 3. Reason: Error")
    late = ended(alice, run(alice, "sleep 60", timeout=1))
    assert (late.status.stage, late.status.message) == ("ERROR", "Job timeout")
    job = run(alice, "sleep 60 & sleep 60")
    alice.cancel_job(job_id=job.id, namespace="alice")
    assert ended(alice, job).status.stage == "CANCELED"
    alice.cancel_job(job_id=job.id, namespace="alice")
    job = run(alice, "echo begun; sleep 60")
    assert next(iter(alice.fetch_job_logs(job_id=job.id, namespace="alice", follow=True))) == "begun"
    hub.jobs.preempt(job.id)
    assert ended(alice, job).status.message == "The node was reclaimed"


def test_a_job_may_hang_before_it_begins(hub: HubServer, alice: HfApi) -> None:
    hub.faults.jobs.hang()
    job = run(alice, "echo never")
    time.sleep(0.3)
    waiting = alice.inspect_job(job_id=job.id, namespace="alice")
    assert waiting.status.stage == "SCHEDULING" and waiting.started_at is None
    alice.cancel_job(job_id=job.id, namespace="alice")
    assert ended(alice, job).status.stage == "CANCELED"


def test_logs_come_as_they_are_said_from_the_start_or_the_end(hub: HubServer, alice: HfApi) -> None:
    job = run(alice, "for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done")
    followed = list(alice.fetch_job_logs(job_id=job.id, namespace="alice", follow=True))
    assert followed == [f"line {i}" for i in range(1, 6)]
    assert list(alice.fetch_job_logs(job_id=job.id, namespace="alice", tail=2)) == ["line 4", "line 5"]
    hub.faults.jobs.cut_logs(after=3)
    assert lines(alice, job) == ["line 1", "line 2"]
    assert len(lines(alice, job)) == 5
    odd = run(
        alice, r"printf 'a\303\050b\r\n'; printf '%s' '===== Job'; printf '\n\n'; head -c 70000 /dev/zero | tr '\0' x"
    )
    ended(alice, odd)
    assert lines(alice, odd) == ["a\ufffd(b", "===== Job", "", "x" * 70000]


def test_jobs_are_found_by_label_and_stage(alice: HfApi) -> None:
    made = [ended(alice, run(alice, f"exit {i}", labels={"key": "found", "i": str(i)})) for i in range(2)]

    def ids(**by: object) -> list[str]:
        return [job.id for job in alice.list_jobs(namespace="alice", **by)]  # type: ignore[arg-type]

    assert ids(labels={"key": "found"}) == [made[1].id, made[0].id]
    assert ids(labels={"key": "found", "i": "0"}) == [made[0].id] and ids(labels={"key": "other"}) == []
    assert ids(labels={"key": "found"}, status=["ERROR"]) == [made[1].id]
    assert {"l4x1", "cpu-basic"} <= {flavor.name for flavor in alice.list_jobs_hardware()}


@pytest.mark.parametrize(
    "more",
    [
        {"flavor": "abacus"},
        {"timeout": 10**9},
        {"env": {"A-B": "x"}},
        {"labels": {"a": "b\nc"}},
        {"volumes": [Volume(type="model", source="up", mount_path="/m")]},
        {"volumes": [Volume(type="model", source="up/model", mount_path="/a/../b")]},
    ],
)
def test_what_makes_no_sense_is_refused(alice: HfApi, more: dict[str, object]) -> None:
    with pytest.raises(HfHubHTTPError):
        run(alice, "true", **more)


def test_a_namespace_is_its_members_own(hub: HubServer, alice: HfApi) -> None:
    job = run(alice, "true")
    bob, nobody = HfApi(endpoint=hub.url, token="hf_bob"), HfApi(endpoint=hub.url, token=False)
    for api in (bob, nobody):
        for call in (
            lambda api=api: run(api, "true"),
            lambda api=api: api.inspect_job(job_id=job.id, namespace="alice"),
            lambda api=api: api.cancel_job(job_id=job.id, namespace="alice"),
            lambda api=api: list(api.list_jobs(namespace="alice")),
            lambda api=api: lines(api, job),
        ):
            with pytest.raises(HfHubHTTPError) as caught:
                call()
            assert caught.value.response.status_code in (401, 403)


SERVE = """
import sys
from localhub.server import serve
serve(sys.argv[1], port=0)
"""


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_everything_that_was_started_ends_with_the_server(tmp_path: Path, how: str) -> None:
    seed.create_user(tmp_path / "hub", "alice", token="hf_alice")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(tmp_path / "hub")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        api = HfApi(endpoint=server.stdout.readline().split()[-1], token="hf_alice")
        mark = f"{time.time_ns()}"[-9:]
        job = run(api, f"setsid sleep {mark} & exec sleep {mark}")
        until = time.monotonic() + 20
        while running(mark) < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        getattr(server, how)()
        server.wait(timeout=20)
        server.stdout.close()
    until = time.monotonic() + 10
    while running(mark):
        assert time.monotonic() < until, "something is left"
        time.sleep(0.05)
    with HubServer(tmp_path / "hub") as again:
        found = HfApi(endpoint=again.url, token="hf_alice").inspect_job(job_id=job.id, namespace="alice")
    assert found.status.stage == "ERROR" and "stopped" in str(found.status.message)


def running(mark: str) -> int:
    """How many processes sleep for so long."""
    found = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found += path.read_bytes() == f"sleep\0{mark}\0".encode()
        except OSError:
            continue
    return found
