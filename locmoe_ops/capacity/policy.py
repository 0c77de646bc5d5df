"""From the bound to slots, and slots that follow the bound while training runs.

Compiled graphs have static shapes, so a capacity that changes means another graph. Slots are therefore taken from a
small set of buckets, and a bucket is left only for a reason.
"""

import math
from bisect import bisect_left
from fractions import Fraction
from typing import Any, Dict, Optional, Sequence, Tuple

from locmoe_ops.capacity.factor import LARGEST_DENOMINATOR, capacity_by_factor, require_count
from locmoe_ops.errors import InputError


def slots_from_bound(
    bound_tokens: float,
    tokens: int,
    rows: int,
    top_k: int,
    experts_in_play: int,
    minimum_factor: float = 0.0,
    maximum_factor: Optional[float] = None,
) -> int:
    """Slots per (source rank, expert) of a batch, from LocMoE's bound in tokens per expert of one sample.

    rows * ceil(bound_tokens), at least 1 and at most `tokens`. The papers leave this step out. The reasons:

    - The bound is the number of tokens of a sample that an expert must take before it can expect one that belongs to
      it. Its sample is one sequence, and a rank's batch is `rows` of them.
    - An expert takes whole tokens, so each sequence's share is rounded up before they are added up.
    - Slots are kept by each source rank for each expert, which is exactly what the sequences of that rank draw on. How
      many ranks there are therefore does not matter. A sequence may use what another leaves over: the share is met on
      average.
    - `top_k` does not multiply the bound, which counts what reaches one expert, whatever else a token is sent to.
    - More slots than tokens are of no use: a token goes to an expert at most once.

    The bound is a floor of the theory and can be far below the load. Two switches of ours, off by default, keep the
    slots between two capacity factors, that is, multiples of the even load top_k * tokens / experts_in_play, rounded
    up.

    Args:
        bound_tokens: from `minimum_capacity`; above 0, inf allowed.
        tokens: tokens of one rank's batch. rows: sequences among which they are divided.
        top_k: experts a token is sent to. experts_in_play: experts among which these tokens spread.
        minimum_factor: 0, or the capacity factor the slots never fall below.
        maximum_factor: None, or the capacity factor they never exceed.

    Raises: InputError for other arguments, and where the minimum exceeds the maximum.
    """
    require_count("tokens", tokens)
    require_count("rows", rows)
    require_count("top_k", top_k)
    require_count("experts_in_play", experts_in_play)
    if not bound_tokens > 0.0:
        raise InputError(f"capacity: bound_tokens is {bound_tokens!r}, expected a number above 0")
    if maximum_factor is not None and minimum_factor > maximum_factor:
        raise InputError(
            f"capacity: minimum_factor is {minimum_factor!r}, expected at most maximum_factor, {maximum_factor!r}"
        )
    # Cut off first: inf has no integer, and no bound above `tokens` gives more than `tokens` slots.
    slots = min(tokens, rows * math.ceil(min(bound_tokens, float(tokens))))
    if maximum_factor is not None:
        slots = min(slots, capacity_by_factor(tokens, top_k, experts_in_play, maximum_factor))
    if minimum_factor != 0.0:
        slots = max(slots, capacity_by_factor(tokens, top_k, experts_in_play, minimum_factor))
    return slots


def capacity_buckets(tokens: int, smallest: int, count: int) -> Tuple[int, ...]:
    """At most `count` increasing slot counts from `smallest` to `tokens`, in a geometric series rounded to whole slots.

    Geometric, so that the slots a bucket wastes are a bounded share of it at every size. Values that round to the same
    count are one bucket; with a count of 1 the only bucket is `tokens`, since the last one must hold whatever is asked
    for.

    Args:
        tokens: the most slots that will ever be asked for: the tokens of a rank, or a cap below that.
        smallest: slots of the first bucket, in [1, tokens].
        count: most buckets, and so most graphs to compile.

    Raises: InputError for other arguments.
    """
    require_count("tokens", tokens)
    require_count("smallest", smallest)
    require_count("count", count)
    if smallest > tokens:
        raise InputError(f"capacity: smallest is {smallest}, expected at most the {tokens} slots of the largest bucket")
    if count == 1:
        return (tokens,)
    ratio = tokens / smallest
    return tuple(sorted({round(smallest * ratio ** (i / (count - 1))) for i in range(count)}))


def choose_bucket(slots: int, buckets: Sequence[int], least: int = 1) -> int:
    """The smallest of the increasing `buckets` that holds `slots`. Raises InputError where none does, and for slots
    below `least`.
    """
    if least > 0 or slots != 0:
        require_count("slots", slots)
    position = bisect_left(buckets, slots)
    if position == len(buckets):
        raise InputError(f"capacity: slots is {slots}, expected at most the largest bucket of {list(buckets)}")
    return buckets[position]


class AdaptiveCapacity:
    """The bucket in force while the bound is measured again and again.

    1. Every observation counts: between decisions the largest slots seen are remembered.
    2. A decision falls at the first observation, and then at the first observation `interval` steps or more after the
       last one.
    3. It goes up at once to the bucket that holds the largest slots seen: tokens would be dropped otherwise.
    4. It goes down only as far as the share `hysteresis` of the new bucket would stay free, so that a bound that wavers
       around a bucket's edge does not change graphs at every decision.

    Deterministic. All ranks of an all-to-all must agree on the slots: give every one of them the same observations.

    Args:
        interval: steps between decisions, at least 1.
        buckets: increasing slot counts, from `capacity_buckets`.
        hysteresis: in [0, 1); 0 follows every change.
        initial: slots wanted before the first observation; default: the largest bucket.
        least: the smallest number of slots that a bucket may have: 1, or 0 where none may be needed.

    Raises: InputError for other arguments.
    """

    def __init__(
        self,
        interval: int,
        buckets: Sequence[int],
        hysteresis: float = 0.1,
        initial: Optional[int] = None,
        least: int = 1,
    ) -> None:
        require_count("interval", interval)
        self._buckets, self._least = tuple(buckets), least
        if not buckets or buckets[0] < least or any(left >= right for left, right in zip(buckets, buckets[1:])):
            raise InputError(
                f"capacity: buckets are {list(buckets)}, expected increasing slot counts of at least {least}"
            )
        if not 0.0 <= hysteresis < 1.0:
            raise InputError(f"capacity: hysteresis is {hysteresis!r}, expected a share in [0, 1)")
        self._interval = interval
        # The nearest simple fraction, so that a tenth kept free of 100 slots leaves exactly 90.
        self._usable = 1 - Fraction(hysteresis).limit_denominator(LARGEST_DENOMINATOR)
        self._bucket = choose_bucket(self._buckets[-1] if initial is None else initial, self._buckets, least)
        self._used = {self._bucket}
        self._changes = 0
        self._largest_seen = 0
        self._decided_at: Optional[int] = None

    @property
    def bucket(self) -> int:
        """Slots per (source rank, expert) now in force."""
        return self._bucket

    @property
    def changes(self) -> int:
        """How often the bucket changed."""
        return self._changes

    @property
    def graphs(self) -> int:
        """Buckets that were in force so far, the first included: graphs compiled, if each is compiled once."""
        return len(self._used)

    def observe(self, step: int, slots: int) -> int:
        """Takes in the slots that a step's batch asks for; returns the bucket in force from now on.

        Raises: InputError for slots below the least or above the largest bucket.
        """
        choose_bucket(slots, self._buckets, self._least)
        self._largest_seen = max(self._largest_seen, int(slots))
        if self.is_due(step):
            wanted = choose_bucket(self._largest_seen, self._buckets, self._least)
            if wanted < self._bucket:
                with_room = min(math.ceil(self._largest_seen / self._usable), self._buckets[-1])
                wanted = min(self._bucket, choose_bucket(with_room, self._buckets, self._least))
            self._changes += wanted != self._bucket
            self._bucket, self._largest_seen, self._decided_at = wanted, 0, step
            self._used.add(wanted)
        return self._bucket

    def is_due(self, step: int) -> bool:
        """True if an observation at `step` would bring about a decision."""
        return self._decided_at is None or step - self._decided_at >= self._interval

    def state(self) -> Dict[str, Any]:
        """What a checkpoint keeps, as JSON values; `restore` takes it."""
        return {
            "buckets": list(self._buckets),
            "bucket": self._bucket,
            "used": sorted(self._used),
            "changes": self._changes,
            "largest_seen": self._largest_seen,
            "decided_at": self._decided_at,
        }

    def restore(self, state: Dict[str, Any]) -> None:
        """Resumes where `state` was taken. Raises InputError where it belongs to other buckets or is incomplete."""
        missing = sorted(set(self.state()) - set(state))
        if missing:
            raise InputError(f"capacity: saved state lacks {', '.join(missing)}")
        if tuple(state["buckets"]) != self._buckets:
            raise InputError(
                f"capacity: saved state has buckets {list(state['buckets'])}, expected {list(self._buckets)}"
            )
        self._bucket = choose_bucket(state["bucket"], self._buckets, self._least)
        self._used = set(state["used"])
        self._changes = state["changes"]
        self._largest_seen = state["largest_seen"]
        self._decided_at = state["decided_at"]
