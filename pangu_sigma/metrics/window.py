"""Over which steps of a run its numbers are taken: for the console, `watch`, summary.json, `report` and `compare`.

The window is the second half of the steps so far, in which the router is trained and nothing is compiled for the first
time.

- Routing (`moe/...`) is the mean over all of it.
- Times, bytes and throughput are means over the middle half of the window by step time: a quarter of its steps, the
  fastest, and as many of the slowest are left out. Like a median such a mean does not follow a step that the machine
  disturbed; unlike medians the pieces of a step still add up. Tokens a second are the tokens of these steps over the
  time that they took, and so is the share of the devices' peak.
- What only some steps have (`time/slowest_rank`) or what counts up (`moe/graphs`) is the last value.
"""

from statistics import fmean
from typing import Any, Dict, List, Mapping, Sequence

from pangu_sigma.runtime.strict_json import number

Record = Mapping[str, Any]  # a step's metrics, as metrics.jsonl has them
STEP, TOKENS, PROGRESS = "time/step(s)", "throughput/tokens_per_second", "progress/step"
CLOCK = "time/unix"  # a moment, of which there is no mean
RATES = (TOKENS, "throughput/mfu")  # of a step, by its time
COMPILING_STEPS = 1  # the first of a run
_LAST = ("time/slowest_rank", "time/median_rank", "moe/graphs")  # beginnings of names


def window(records: Sequence[Record]) -> List[Record]:
    """The second half of the steps, the larger one where their number is odd."""
    return list(records[len(records) // 2 :])


def timed_steps(records: Sequence[Record], ignored: int = COMPILING_STEPS) -> List[Record]:
    """The middle half of the window of `records` by step time; steps up to `ignored` count if there are no others."""
    chosen = window(records)
    return middle_half([record for record in chosen if record.get(PROGRESS, 0) > ignored] or chosen)


def middle_half(records: Sequence[Record]) -> List[Record]:
    """The records between the quartiles of step time: floor(n / 4) of the fastest and as many of the slowest are left
    out.
    """
    timed = [record for record in records if number(record.get(STEP)) is not None]
    cut = len(timed) // 4
    return sorted(timed, key=lambda record: record[STEP])[cut : len(timed) - cut]


def measured(records: Sequence[Record], ignored: int = COMPILING_STEPS) -> Dict[str, Any]:
    """One value for each metric of time, bytes, throughput and routing that the records have, by the rule above.

    A list, a number or a list a layer (share at home; tokens of each expert), gives the list of its means. A metric
    without any finite number is left out.

    Args:
        records: one a step, from the first on.
        ignored: see `timed_steps`.
    """
    routed, timed = window(records), timed_steps(records, ignored)
    values: Dict[str, Any] = {}
    for name in dict.fromkeys(name for record in records for name in record):
        if name == CLOCK or not name.startswith(("time/", "comm/", "moe/")):
            continue
        last, chosen = name.startswith(_LAST), routed if name.startswith("moe/") else timed
        found = [record[name] for record in (records if last else chosen) if number(record.get(name)) is not None]
        lists = [record[name] for record in chosen if isinstance(record.get(name), list)]
        if lists and not last:
            values[name] = [
                [round(fmean(counts), 1) for counts in zip(*of_layer)]
                if isinstance(of_layer[0], list)
                else fmean(of_layer)
                for of_layer in zip(*lists)
            ]
        elif found:
            values[name] = found[-1] if last else fmean(found)
    for name in RATES if number(values.get(STEP)) else ():
        if all(number(record.get(name)) is not None for record in timed):
            values[name] = fmean(record[name] * record[STEP] for record in timed) / values[STEP]
    return values


def summarise(records: Sequence[Record]) -> Dict[str, Any]:
    """What summary.json says of the steps: everything that the last one has, and of what is measured `measured`."""
    return {**(records[-1] if records else {}), **measured(records)}
