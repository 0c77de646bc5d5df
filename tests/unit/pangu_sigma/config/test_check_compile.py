"""What shortens compilation is refused where it would change nothing, with the reason."""

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.validate import validate

SHARED = {"runtime": {"lazy_inline": True}}
ON_RANKS = {"parallel": {"expert": 2, "overlap_gradients": False}}


def make(sections, **model):
    return config_from_dict({"model": model, **sections})


@pytest.mark.parametrize(
    ("sections", "model", "world_size"),
    [
        ({"runtime": {"compile_cache": "kept"}}, {}, 1),
        ({"runtime": {"compile_cache": "kept"}, **ON_RANKS}, {}, 2),
        ({"runtime": {"compile_cache": "auto", "mode": "pynative"}}, {}, 1),
        ({"runtime": {"compile_cache": "none", "mode": "pynative"}}, {}, 1),
        ({"runtime": {"compile_cache": None, "mode": "pynative"}}, {}, 1),
        ({"runtime": {"compile_cache": "none", "device": "ascend"}}, {}, 1),
        (SHARED, {"dense_layers": 2}, 1),
        ({**SHARED, **ON_RANKS}, {"dense_layers": 2}, 2),
        ({**SHARED, "train": {"recompute": "all"}}, {"dense_layers": 2}, 1),
    ],
)
def test_it_is_let_through(sections, model, world_size):
    validate(make(sections, **model), world_size)


REFUSED = {
    "kept graphs where none are compiled": (
        {"runtime": {"compile_cache": "kept", "mode": "pynative"}},
        {},
        1,
        "runtime.compile_cache is kept with runtime.mode pynative, which compiles nothing; expected auto or none",
    ),
    "kept graphs on Ascend": (
        {"runtime": {"compile_cache": "kept", "device": "ascend"}},
        {},
        1,
        "runtime.compile_cache is kept with runtime.backend hccl, where it was not tried",
    ),
    "shared graphs where none are compiled": (
        {"runtime": {"lazy_inline": True, "mode": "pynative"}},
        {"dense_layers": 2},
        1,
        "runtime.lazy_inline is true with runtime.mode pynative, which compiles nothing; expected false",
    ),
    "one dense layer": (SHARED, {"dense_layers": 1}, 1, "with model.dense_layers 1: layers with experts share no"),
    "dropout": (SHARED, {"dense_layers": 2, "hidden_dropout": 0.1}, 1, "with model.hidden_dropout 0.1: each layer"),
    "dropout of attention": (
        SHARED,
        {"dense_layers": 2, "attention_dropout": 0.1},
        1,
        "with model.attention_dropout 0.1: each layer has random numbers",
    ),
    "tensor parallelism": ({**SHARED, "parallel": {"tensor": 2}}, {"dense_layers": 2}, 2, "with parallel.tensor 2:"),
    "overlapped gradients": (
        {**SHARED, "parallel": {"expert": 2}},
        {"dense_layers": 2},
        2,
        "with parallel.overlap_gradients true: each layer sends gradients of its own; expected false, or "
        "runtime.lazy_inline=false",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_have_no_effect_is_refused(case):
    sections, model, world_size, fragment = REFUSED[case]
    with pytest.raises(InputError) as caught:
        validate(make(sections, **model), world_size)
    assert fragment in str(caught.value)
