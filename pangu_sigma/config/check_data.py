"""Checks of what is read and how it is mixed. All raise `InputError` naming keys and values."""

from locmoe_ops.errors import InputError
from pangu_sigma.config.schema import Config
from pangu_sigma.config.schema_run import DataConfig


def check_data(config: Config) -> None:
    """Checks the section `data`, for `prepare` and for training alike. Raises InputError: one field of a record for
    both text and domain; weights that nothing reads, or weighted mixing without any.
    """
    prepare = config.data.prepare
    if prepare.text_key == prepare.domain_key:
        raise InputError(
            f"data.prepare.text_key and data.prepare.domain_key are both {prepare.text_key}; expected two fields of a "
            "record"
        )
    _check_weights(config.data)


def _check_weights(data: DataConfig) -> None:
    if data.weights is not None and data.mixing != "weighted":
        raise InputError(
            f"data.weights is given with data.mixing {data.mixing}, which reads none; expected data.mixing weighted, "
            "or null"
        )
    if data.mixing != "weighted":
        return
    if not data.weights:
        raise InputError(
            "data.mixing is weighted, but data.weights holds none; expected a weight for each domain, as in "
            "{en: 1, zh: 3}"
        )
    wrong = [f"data.weights.{name}: found {weight:g}" for name, weight in data.weights.items() if weight <= 0.0]
    if wrong:
        raise InputError(f"{wrong[0]}; expected a number > 0: a domain that is not to be read is left out of the data")
