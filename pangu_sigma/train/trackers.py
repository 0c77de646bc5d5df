"""Where metrics go besides metrics.jsonl: each tracker has `write` (a step's record), `write_cosines` and `close`."""

import importlib.util
from pathlib import Path
from typing import Any, List, Mapping, Protocol

from locmoe_ops.errors import InputError
from pangu_sigma.config.load import to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.train.events import EventLog

PROJECT = "pangu-sigma"


class Tracker(Protocol):
    """Gets what metrics.jsonl and cosines.json get, and nothing else."""

    def write(self, record: Mapping[str, Any]) -> None: ...

    def write_cosines(self, cosines: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class LibraryTracker:
    """Passes each step's numbers to Weights & Biases or SwanLab, by `init`, `log` and `finish` of the user's library.

    Whether it sends them anywhere is up to the library's own settings (`WANDB_MODE`, `SWANLAB_MODE`). Every start of a
    job is a run of its own there, named as its folder.
    """

    def __init__(self, config: Config) -> None:
        self._library = importlib.import_module(config.train.tracker)
        folder, own = config.train.output_dir, config.train.tracker == "swanlab"
        place = (
            {"experiment_name": Path(folder).name, "logdir": str(Path(folder) / "swanlab")}
            if own
            else {"name": Path(folder).name, "dir": folder}
        )
        self._library.init(project=PROJECT, config=to_dict(config), **place)

    def write(self, record: Mapping[str, Any]) -> None:
        numbers = {
            name: value
            for name, value in record.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        self._library.log(numbers, step=record["progress/step"])

    def write_cosines(self, cosines: Mapping[str, Any]) -> None:
        """Only numbers go there."""

    def close(self) -> None:
        self._library.finish()


def check_trackers(config: Config) -> None:
    """Raises InputError where a library that the configuration asks for is not installed."""
    tracker = config.train.tracker
    wanted = [
        ("train.tensorboard is true", "tensorboardX", "pip install tensorboardX", "false")
    ] * config.train.tensorboard
    wanted += [(f"train.tracker is {tracker}", tracker, f"pip install {tracker}", "none")] * (tracker != "none")
    for key, module, command, other in wanted:
        if importlib.util.find_spec(module) is None:
            raise InputError(f"{key}, but {module} is not installed; expected it, as {command} does, or {other}")


def open_trackers(config: Config, start: int, launch: Mapping[str, Any]) -> List[Tracker]:
    """The trackers that `config` names, of a run that begins after step `start`; `launch`: its entry in
    environment.json.
    """
    trackers: List[Tracker] = []
    if config.train.tensorboard:
        trackers.append(EventLog(config, start, launch))
    if config.train.tracker != "none":
        trackers.append(LibraryTracker(config))
    return trackers
