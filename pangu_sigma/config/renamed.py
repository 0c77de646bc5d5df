"""Keys that have another name than they once had.

Where people write them - configurations, `--set`, files of comparisons - an old name is refused with the new one: two
names for one key would stay for ever. Where this program wrote them - a run's `config.yaml`, a checkpoint's manifest -
they are read under their new names, so that older runs and checkpoints open as they did.
"""

from typing import Any, Dict, Mapping, Optional, Sequence

RENAMED: Dict[str, str] = {  # full path of a key, or of a section with all that is in it -> what it is now
    "moe.placement": "moe.expert_placement",
    "moe.layout": "moe.logical_topology",
    "moe.router.local_term": "moe.router.locality_bias",
    "optimizer.shard": "optimizer.zero",
    "optimizer.experts": "optimizer.expert_state",
}


def new_name(path: str) -> Optional[str]:
    """Full path of what was once called `path`; None where nothing was."""
    return RENAMED.get(path)


def with_new_names(raw: Mapping[str, Any]) -> Dict[str, Any]:
    """A configuration that an older version saved, as nested mappings, under the names of now.

    A key that is there under both names keeps them, and is then refused like any other unknown one.
    """
    found: Dict[str, Any] = dict(raw)
    for old, new in RENAMED.items():
        (*above, name), (*target, now) = old.split("."), new.split(".")
        section = _opened(found, above)
        if section is None or name not in section:
            continue
        value = section.pop(name)  # first: opening the new place copies what lies on the way to it
        place = _opened(found, target)
        if place is not None and now not in place:
            place[now] = value
            continue
        section = _opened(found, above)
        assert section is not None  # it was there
        section[name] = value
    return found


def _opened(raw: Dict[str, Any], names: Sequence[str]) -> Optional[Dict[str, Any]]:
    """The mapping under `names` in `raw`, a copy that may be changed, made where it was not; None where something else
    stands.
    """
    for name in names:
        inner = raw.get(name, {})
        if not isinstance(inner, dict):
            return None
        inner = dict(inner)
        raw[name] = inner
        raw = inner
    return raw
