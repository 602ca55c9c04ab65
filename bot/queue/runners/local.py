"""Runs jobs on this machine: one process per job, in the strongest sandbox that there is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bot.queue.runners.base import JobStopped, Stop, Task
from bot.queue.runners.here import capacity_here
from bot.settings import Settings
from core.contract import BaselineSpec, BaselineToolSpec, ProgressEvent, QualitySpec, Result, SpeedSpec, result_adapter
from core.errors import SandboxError, StorageError, TooLargeError
from core.need import Capacity
from core.placing import TooLarge, place
from core.sandbox.child import Flag, last_words, run_child, scrubbed_environment
from core.sandbox.levels import NONE, Limits, Sandbox, best_sandbox
from core.sandbox.spec_paths import Spec, outputs_of, reads_of, with_outputs, writes_of

__all__ = ["JobStopped", "LocalRunner", "last_words", "run_job", "scrubbed_environment"]

_GIB = 1 << 30
AnySpec = BaselineSpec | QualitySpec | SpeedSpec


class LocalRunner:
    """This machine, as a :class:`bot.queue.runners.base.Runner`. What a spec writes has to lie in folders of its own.

    Raises:
        SandboxError: nothing here would hold a stranger's file, and the settings do not say that this does not matter.
    """

    name = "local"
    local_files = True

    def __init__(self, settings: Settings) -> None:
        self.slots = settings.local_slots
        self.sandbox: Sandbox = best_sandbox(unsafe=settings.unsafe_no_sandbox, wanted=settings.sandbox)
        self._data = settings.data

    def capacity(self) -> Capacity:
        """What this machine has for one task: its memory is shared out among the slots."""
        found = capacity_here(self._data)
        memory = found.memory // self.slots if found.memory is not None else None
        return Capacity(memory=memory, vram=found.vram, disk=found.disk)

    def run(self, task: Task, *, report: Callable[[ProgressEvent], None], stop: Stop) -> Result:
        """Run a task to its end; see :class:`bot.queue.runners.base.Runner`."""
        spec = self._placed(task)
        writes = writes_of(spec)
        for folder in writes:
            folder.mkdir(parents=True, exist_ok=True)
        return run_child(
            spec,
            sandbox=self.sandbox,
            reads=reads_of(spec),
            writes=writes,
            limits=self._limits(task),
            on_progress=report,
            stop=stop,
        )

    def _placed(self, task: Task) -> AnySpec:
        """The spec with as many layers on the GPUs as fit, where the settings leave that open.

        Raises:
            TooLargeError: it does not fit at all.
        """
        capacity, machine = self.capacity(), task.spec.machine
        if task.need is None or not capacity.vram or machine.n_gpu_layers != -1:
            return task.spec
        placed = place(task.need, capacity)
        if isinstance(placed, TooLarge):
            raise TooLargeError(f"{Path(task.model.files[0].path).name}: {placed.reason}")
        return task.spec.model_copy(
            update={"machine": machine.model_copy(update={"n_gpu_layers": placed.n_gpu_layers})}
        )

    def _limits(self, task: Task) -> Limits:
        """Half as much again as was estimated, and never all that there is: a low estimate is not the file's fault."""
        have, need = self.capacity().memory, task.need
        memory = None if have is None else max(have - _GIB // 2, have // 2)
        if need is not None and memory is not None:
            memory = min(memory, need.peak * 3 // 2 + 2 * _GIB)
        output: dict[str, Any] = {} if need is None else {"output_bytes": need.disk * 3 // 2 + _GIB}
        return Limits(seconds=task.stages.measuring, memory_bytes=memory, **output)


def run_job(
    spec: BaseModel,
    *,
    timeout: float,
    on_progress: Callable[[ProgressEvent], None] | None = None,
    stop: Flag | None = None,
    sandbox: Sandbox | None = None,
    say: Callable[[str], None] | None = None,
) -> Result:
    """Run one job on a file of the person who asks: in the best sandbox there is, or in none.

    Args:
        spec: a model of :data:`core.contract.JobSpec`; its paths may be relative.
        timeout: seconds after which it is stopped.
        on_progress: called for every progress event, in this thread.
        stop: set it (from another thread or a signal handler) to end the job early.
        sandbox: where the caller chose one.
        say: told, in one sentence, when the file is run without a sandbox.

    Raises:
        QuantcardError: the job's own error; MeasurementDiedError for a signal or the time limit.
        JobStopped: ``stop`` was set.
    """
    assert isinstance(spec, Spec)
    held = sandbox or best_sandbox(unsafe=True)
    limits = Limits(seconds=timeout)
    if held.holds_strangers and not _in_place(spec):
        try:
            with _set_apart(spec) as (apart, names):
                result = run_child(
                    apart,
                    sandbox=held,
                    reads=reads_of(spec),
                    writes=writes_of(apart),
                    limits=limits,
                    on_progress=on_progress,
                    stop=stop,
                )
                _bring_home(names)
                return _renamed(result, names)
        except SandboxError as error:
            # The person's own file, which has to be measured all the same.
            held = Sandbox("none", str(error))
    if say is not None and held != NONE:
        say(f"Measured without a sandbox: {held.why or 'the file is changed in place'}.")
    return run_child(spec, sandbox=NONE, reads=[], writes=[], limits=limits, on_progress=on_progress, stop=stop)


def _in_place(spec: Spec) -> bool:
    """Whether a file is to be changed where it is, which no folder of the job's own can do."""
    return (
        isinstance(spec, BaselineToolSpec)
        and spec.out is not None
        and Path(spec.out).absolute() == Path(spec.path).absolute()
    )


@contextmanager
def _set_apart(spec: Spec) -> Iterator[tuple[Spec, dict[str, str]]]:
    """The spec with each output in a hidden folder of its own beside its place, and which is which.

    An interrupted job's folder stays, so that the next run of the same finds what was done; an empty one goes.

    Raises:
        StorageError: there is no room for it there, or no right.
    """
    names = {}
    for path in outputs_of(spec):
        folder = path.with_name(f".{path.name}.work")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{path.parent} can't be written to ({error.strerror or error}).") from None
        names[str(path)] = str(folder / path.name)
    try:
        yield with_outputs(spec, names), names
    finally:
        for name in names.values():
            with suppress(OSError):
                Path(name).parent.rmdir()


def _bring_home(names: dict[str, str]) -> None:
    """Move what was made to where it was asked for: the companions first, so that a baseline never stands alone.

    Raises:
        StorageError: it can't be moved there.
    """
    for asked, made in names.items():
        place, folder = Path(asked).parent, Path(made).parent
        found = [path for path in folder.iterdir() if path.is_file() and not path.is_symlink()]
        for path in sorted(found, key=lambda path: path.name == Path(asked).name):
            try:
                path.replace(place / path.name)
            except OSError as error:
                raise StorageError(f"{place / path.name} can't be written ({error.strerror or error}).") from None
        shutil.rmtree(folder, ignore_errors=True)


def _renamed(result: Result, names: dict[str, str]) -> Result:
    """The result with the paths that were asked for."""
    moved = {str(Path(made).parent) + os.sep: str(Path(asked).parent) for asked, made in names.items()}

    def back(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: back(one) for name, one in value.items()}
        if isinstance(value, list):
            return [back(one) for one in value]
        for folder, there in moved.items():
            if isinstance(value, str) and value.startswith(folder):
                return str(Path(there) / value.removeprefix(folder))
        return value

    found: Result = result_adapter.validate_python(back(result.model_dump()))
    return found
