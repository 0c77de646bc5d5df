"""TensorBoard's event files, besides metrics.jsonl, in the run folder's `tensorboard/` (`train.tensorboard: true`).

Scalars: every metric that is one number, each step, under its own name, with the unit's brackets as an underscore
(`time/step_s`): TensorBoard allows none. Its meaning is the curve's description, `time/unix` the time of its points.
Texts: the configuration, and the start's entry in environment.json. Histograms, every `train.log_interval` steps and
after the last one: `moe/tokens_per_expert/layer_N`, whose horizontal axis is the expert's number and whose height its
tokens; at the end those of cosines.json, `cosines/...`. A resumed run writes a file of its own, which hides what an
earlier one has from its first step on.

tensorboardX writes them, an optional dependency (`pip install tensorboardX`); TensorBoard itself shows them.
"""

import re
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence, Set

import yaml

from pangu_sigma.config.load import to_dict
from pangu_sigma.config.schema import Config
from pangu_sigma.metrics.definitions import DEFINITIONS
from pangu_sigma.metrics.window import CLOCK
from pangu_sigma.runtime.strict_json import dumps

FOLDER = "tensorboard"
FLUSH_S = 10  # what a killed run may lose of these files; metrics.jsonl has it all


class EventLog:
    """Writes the event files of a run that begins after step `start`; `launch`: its entry in environment.json."""

    def __init__(self, config: Config, start: int, launch: Mapping[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        self._train = config.train
        self._step = start
        self._writer = SummaryWriter(
            str(Path(config.train.output_dir) / FOLDER),
            purge_step=start + 1,
            flush_secs=FLUSH_S,
            filename_suffix=f".after_{start}",
        )
        self._described: Set[str] = set()  # curves whose description this file has
        settings = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
        for name, text in (("configuration", settings), ("environment", dumps(launch, indent=1))):
            # TensorBoard takes Markdown: as code it shows text line by line.
            self._writer.add_text(name, "".join(f"    {line}\n" for line in text.splitlines()), start)

    def write(self, record: Mapping[str, Any]) -> None:
        """A step's metrics, as metrics.jsonl has them."""
        self._step = record["progress/step"]
        for name, value in record.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and name != CLOCK:
                self._scalar(name, value, record.get(CLOCK))
        if self._step % self._train.log_interval == 0 or self._step == self._train.steps:
            for layer, counts in enumerate(record.get("moe/tokens_per_expert", [])):
                self._histogram(f"moe/tokens_per_expert/layer_{layer}", range(len(counts) + 1), counts)

    def write_cosines(self, cosines: Mapping[str, Any]) -> None:
        """The histograms of cosines.json."""
        for name, found in cosines.items():
            if isinstance(found, dict) and "edges" in found:
                self._histogram(f"cosines/{name}", found["edges"], found["counts"])

    def close(self) -> None:
        self._writer.close()

    def _scalar(self, name: str, value: float, unix_s: Optional[float]) -> None:
        """A point of a curve, with what the curve means if it is the first."""
        meaning = DEFINITIONS[name].meaning if name in DEFINITIONS and name not in self._described else ""
        self._described.add(name)
        self._writer.add_scalar(tag(name), value, self._step, unix_s, summary_description=meaning)

    def _histogram(self, name: str, edges: Sequence[float], counts: Sequence[float]) -> None:
        """`counts` of the values between neighbouring `edges`; sums take each value as its bin's middle."""
        middles = [(left + right) / 2 for left, right in zip(edges, edges[1:])]
        sums: Dict[str, float] = {
            "num": sum(counts),
            "sum": sum(m * n for m, n in zip(middles, counts)),
            "sum_squares": sum(m * m * n for m, n in zip(middles, counts)),
        }
        self._writer.add_histogram_raw(
            name,
            edges[0],
            edges[-1],
            **sums,
            bucket_limits=list(edges[1:]),
            bucket_counts=list(counts),
            global_step=self._step,
        )


def tag(name: str) -> str:
    """A metric's name in TensorBoard: `time/step(s)` -> `time/step_s`."""
    return re.sub(r"\((\w+)\)", r"_\1", name)
