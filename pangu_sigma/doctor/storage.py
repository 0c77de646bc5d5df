"""Room and speed for checkpoints, and whether the prepared data can be read."""

import os
import time
from pathlib import Path
from typing import List, Optional

from locmoe_ops.errors import InputError
from pangu_sigma.config.derived import ffn_hidden_size, num_blocks, num_sparse_layers, num_word_tables
from pangu_sigma.config.schema import Config
from pangu_sigma.data.manifest import DataManifest, check_files, read_manifest
from pangu_sigma.data.placement import check_placement
from pangu_sigma.doctor.findings import Finding, failure, not_applicable, ok, warning
from pangu_sigma.runtime.files import temporary_path

BLOCK = 8 << 20  # bytes
MOST_BLOCKS, MOST_SECONDS = 16, 2.0  # of writing, or of reading
SLOW = 50e6  # bytes a second
BYTES_A_PARAMETER = 12  # weight and both moments of Adam in fp32


def check_storage(config: Optional[Config]) -> List[Finding]:
    """Findings on disk and data; `config` None: nothing says where checkpoints and data are."""
    if config is None:
        return [not_applicable(subject, "no CONFIG", "no CONFIG is given") for subject in ("disk", "data")]
    try:
        manifest: Optional[DataManifest] = read_manifest(Path(config.data.path))
    except InputError:
        manifest = None  # `_check_data` says why
    return [*check_disk(config, manifest.vocab_size if manifest else None), _check_data(config)]


def checkpoint_bytes(config: Config, vocab_size: int) -> int:
    """About what one checkpoint takes: the matrices of the network, their moments with them."""
    model = config.model
    d, ffn = model.hidden_size, ffn_hidden_size(config)
    layers = num_blocks(config) + 1  # and the query layer
    sparse = num_sparse_layers(config)
    networks = layers - sparse + sparse * (config.moe.num_experts + config.moe.shared_experts)
    words = vocab_size * num_word_tables(config, config.moe.num_groups) + 2 * model.sequence_length
    return BYTES_A_PARAMETER * (layers * 4 * d * d + networks * 2 * d * ffn + words * d)


def most_checkpoints(config: Config) -> int:
    """Checkpoints of a run of `config` that are on disk at a time: the newest, those kept for good, and the one being
    written.
    """
    options = config.checkpoint
    return options.keep_last + (config.train.steps // options.keep_every if options.keep_every else 0) + 1


def check_disk(config: Config, vocab_size: Optional[int]) -> List[Finding]:
    """Space for the checkpoints that are kept and the one being written, and the speed of writing there."""
    wanted = Path(config.train.output_dir).absolute()
    place = next(folder for folder in (wanted, *wanted.parents) if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return [
            failure("disk", f"train.output_dir: cannot write in {place}", "make it writable, or set train.output_dir")
        ]
    status = os.statvfs(place)
    free, count = status.f_bavail * status.f_frsize, most_checkpoints(config)
    vocab_size = config.model.vocab_size or vocab_size or 0
    need = count * checkpoint_bytes(config, vocab_size)
    text = f"{_size(free)} free in {place}; {count} checkpoints take about {_size(need)}"
    if free < need:
        return [failure("disk", text, "make room, or set train.output_dir or fewer checkpoints to keep")]
    return [
        ok("disk", text) if free > 2 * need else warning("disk", text, "make room: little more would be left"),
        _check_speed(place),
    ]


def _check_speed(place: Path) -> Finding:
    """Writes some blocks and waits until they are on disk; the file is gone afterwards."""
    block, path = os.urandom(BLOCK), temporary_path(place)
    start, written = time.monotonic(), 0
    try:
        with open(path, "xb") as file:
            while written < MOST_BLOCKS * BLOCK and time.monotonic() - start < MOST_SECONDS:
                written += file.write(block)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        return failure(
            "disk speed",
            f"writing in {place} failed: {error.strerror}",
            "repair the file system, or set train.output_dir",
        )
    finally:
        path.unlink(missing_ok=True)
    rate = written / (time.monotonic() - start)
    text = f"a checkpoint is written at about {_size(rate)} a second"
    if rate < SLOW:
        return warning("disk speed", text, f"put it on a faster disk than that of {place}")
    return ok("disk speed", text)


def _check_data(config: Config) -> Finding:
    """The manifest, the sizes of all files, and a piece of the largest one; checksums are for `train` to compare. Also
    whether the data has the clusters that are to be placed.
    """
    folder = Path(config.data.path)
    try:
        manifest = read_manifest(folder)
        check_files(manifest, folder, checksums=False)
        check_placement(config.data.placement, 1, len(manifest.domains), manifest.clusters is not None)
        largest = max(manifest.files, key=lambda name: manifest.files[name].size)
        with open(folder / largest, "rb") as file:
            file.read(BLOCK)
    except InputError as error:
        return failure("data", str(error), "pangu-sigma prepare CONFIG, or copy the folder here, or mount it")
    except OSError as error:
        return failure("data", f"{error.filename}: {error.strerror}", "make the files readable for this user")
    rows = {split: sum(counts) for split, counts in manifest.rows.items()}
    return ok("data", f"{folder}: {rows['train']} rows to train on, {rows['validation']} to validate; sizes are right")


def _size(amount: float) -> str:
    units = ["B", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount /= 1000
        del units[0]
    unit = units[0]
    return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
