"""What shortens compilation is refused where it would change nothing, with the reason."""

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.validate import validate

ON_RANKS = {"parallel": {"expert": 2, "overlap_gradients": False}}


def make(sections, **model):
    return config_from_dict({"model": model, **sections})


@pytest.mark.parametrize(
    ("sections", "model", "world_size"),
    [
        ({"runtime": {"compile_cache": "kept"}}, {}, 1),
        ({"runtime": {"compile_cache": "kept"}, **ON_RANKS}, {}, 2),
    ],
)
def test_it_is_let_through(sections, model, world_size):
    validate(make(sections, **model), world_size)


REFUSED = {
    "kept graphs where none are compiled": (
        {"runtime": {"compile_cache": "kept", "mode": "pynative"}},
        {},
        1,
        "runtime.compile_cache is kept with runtime.mode pynative, which compiles nothing; expected null",
    ),
    "kept graphs on Ascend": (
        {"runtime": {"compile_cache": "kept", "device": "ascend"}},
        {},
        1,
        "runtime.compile_cache is kept with runtime.backend hccl, where it was not tried",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_have_no_effect_is_refused(case):
    sections, model, world_size, fragment = REFUSED[case]
    with pytest.raises(InputError) as caught:
        validate(make(sections, **model), world_size)
    assert fragment in str(caught.value)
