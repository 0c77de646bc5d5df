"""What is read and how it is mixed: keys that do not go together."""

import re

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.config.check_data import check_data
from pangu_sigma.config.load import config_from_dict, to_dict


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"weights": {"en": 1}}, "data.weights is given with data.mixing balanced, which reads none"),
        ({"weights": {"en": 1}, "mixing": "proportional"}, "data.weights is given with data.mixing proportional"),
        ({"mixing": "weighted"}, "data.mixing is weighted, but data.weights holds none"),
        ({"mixing": "weighted", "weights": {}}, "data.mixing is weighted, but data.weights holds none"),
        ({"mixing": "weighted", "weights": {"en": 1, "中文": 0}}, "data.weights.中文: found 0; expected a number > 0"),
        ({"mixing": "weighted", "weights": {"en": -0.5}}, "data.weights.en: found -0.5; expected a number > 0"),
        ({"prepare": {"text_key": "domain"}}, "data.prepare.text_key and data.prepare.domain_key are both domain"),
    ],
)
def test_what_does_not_go_together_is_refused(data: dict, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        check_data(config_from_dict({"data": data}))


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([1, 2], "data.weights: found [1, 2], expected a mapping of names to numbers"),
        ({"en": "much"}, "data.weights.en: found 'much', expected a number"),
        ({"en": True}, "data.weights.en: found true, expected a number"),
        ({False: 1.0}, "data.weights: found the key false, expected a string (put it in quotes)"),
        ({"en": None}, "data.weights.en: found"),
    ],
)
def test_weights_are_numbers_by_name(weights: object, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        config_from_dict({"data": {"weights": weights}})


def test_weights_are_saved_as_they_were_given() -> None:
    found = config_from_dict({"data": {"mixing": "weighted", "weights": {"en": 1, "中文": "2e-1"}}})
    assert to_dict(found)["data"]["weights"] == {"en": 1.0, "中文": 0.2}
    check_data(found)
