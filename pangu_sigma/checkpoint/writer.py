"""Writing checkpoints while training continues.

1. Wait until the one before is written.
2. The first rank makes an empty folder; all ranks meet.
3. Copy what this rank has to write: from here on training may change it.
4. Write the copy and sync it, in a thread (`asynchronous`) or at once.
5. On the first rank, when all ranks' parts are there: manifest, rename, removal of old checkpoints.

Training waits for 1 to 3 alone. What goes wrong in 4 and 5 is raised by the next `check`, and at the latest at the end.
"""

import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Callable, Mapping, Optional, Sequence, Type

import numpy as np

from pangu_sigma.checkpoint import folders
from pangu_sigma.checkpoint.format import CheckpointHeader, CheckpointManifest, store_files, write_manifest
from pangu_sigma.checkpoint.parts import LocalTensor, collect_parts, write_part
from pangu_sigma.errors import CheckpointNotWritten

GRACE_S = 5.0  # for a checkpoint that is being written when the program ends with an error


@dataclass(frozen=True)
class WritingJob:
    """What writing needs to know of the job.

    Attributes:
        rank: this one.
        writers: ranks that write something.
        timeout_s: how long the first rank waits for the others' parts after its own.
        barrier: returns when all ranks have called it.
        failure: the error that ended the job on another rank, None while all is well.
    """

    rank: int
    writers: Sequence[int]
    timeout_s: float
    barrier: Callable[[], None]
    failure: Callable[[], Optional[BaseException]] = lambda: None


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest `keep_last`, and every one whose step is a multiple of `keep_every` (0:
    none).
    """

    keep_last: int = 2
    keep_every: int = 0


class CheckpointWriter:
    """Writes `root/step_N` from all ranks; a context manager that waits for the last one.

    Args:
        root: the folder of the run's checkpoints.
        job: this rank and the others.
        retention: which checkpoints stay.
        asynchronous: whether training continues while a checkpoint is written.
        files: what every checkpoint carries besides its tensors, content by name; the first rank writes it.

    Attributes:
        stalled_s: seconds that training has waited for checkpoints.
        written_s: seconds that this rank has spent writing.
    """

    def __init__(
        self,
        root: Path,
        job: WritingJob,
        retention: Retention,
        asynchronous: bool = True,
        files: Optional[Mapping[str, bytes]] = None,
    ) -> None:
        self._root = root
        self._job = job
        self._retention = retention
        self._asynchronous = asynchronous
        self._files = files or {}
        self._thread: Optional[threading.Thread] = None
        self._error: Optional[BaseException] = None
        self._abandoned = False
        self.stalled_s = 0.0
        self.written_s = 0.0

    def save(self, header: CheckpointHeader, tensors: Sequence[LocalTensor]) -> None:
        """Begins to write a checkpoint under `header` of this rank's `tensors`, whose arrays may change afterwards.
        Every rank must call it.

        Raises CheckpointNotWritten: this one could not be begun, or the one before not finished.
        """
        started = time.perf_counter()
        self.wait()
        part = self._begin(header.step)
        copies = [replace(tensor, array=np.array(tensor.array, order="C", copy=True)) for tensor in tensors]
        if self._asynchronous:
            self._thread = threading.Thread(
                target=self._write, args=(part, header, copies), name="checkpoint-writer", daemon=True
            )
            self._thread.start()
        else:
            self._write(part, header, copies)
            self.check()
            self._job.barrier()
        self.stalled_s += time.perf_counter() - started

    def check(self) -> None:
        """Raises CheckpointNotWritten where writing has failed; costs nothing otherwise."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Returns when what was begun is on disk, as far as it is this rank's to write. Raises CheckpointNotWritten."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if kind is None:
            self.wait()
            return
        # A checkpoint may still become whole; an error of its own would hide the one that ends the job.
        if self._thread is not None:
            self._thread.join(GRACE_S)
        self._abandoned = True

    def _begin(self, step: int) -> Path:
        part = self._root / f"step_{step}{folders.PART}"
        if self._job.rank == 0:
            try:
                folders.begin(self._root, step)
            except OSError as error:
                raise self._not_written(part, error) from None
        self._job.barrier()
        return part

    def _write(self, part: Path, header: CheckpointHeader, tensors: Sequence[LocalTensor]) -> None:
        started = time.perf_counter()
        try:
            if tensors:
                write_part(part, self._job.rank, tensors)
            if self._job.rank == 0:
                self._finish(part, header)
        except OSError as error:
            self._error = self._not_written(part, error)
        except BaseException as error:  # noqa: BLE001 (of whatever kind, it belongs to the main thread)
            self._error = error
        self.written_s += time.perf_counter() - started

    def _finish(self, part: Path, header: CheckpointHeader) -> None:
        def check_job() -> None:
            failure = self._job.failure()
            if failure is not None or self._abandoned:
                raise CheckpointNotWritten(
                    f"checkpoint {part}: the job ended before all ranks had written their parts"
                ) from failure

        tensors, shards = collect_parts(part, self._job.writers, self._job.timeout_s, check_job)
        write_manifest(CheckpointManifest(header, tensors, shards, store_files(part, self._files)), part)
        folders.publish(part, part.with_suffix(""))
        folders.prune(self._root, self._retention.keep_last, self._retention.keep_every)

    def _not_written(self, part: Path, error: OSError) -> CheckpointNotWritten:
        where = f"rank {self._job.rank}: " if len(self._job.writers) > 1 else ""
        return CheckpointNotWritten(
            f"{where}checkpoint {part}: cannot be written ({error.strerror or error}); expected a folder on a disk "
            "with room for it"
        )
