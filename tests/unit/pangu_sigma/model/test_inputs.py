"""A batch on its way into a graph: what goes in comes out under its name, whatever the order."""

import numpy as np
import pytest

from mindspore import nn

from locmoe_ops.errors import InputError
from pangu_sigma.data.batch import make_batch
from pangu_sigma.model.inputs import BATCH_FIELDS, pack_batch, row_seeds, unpack_batch

ROWS = np.array([[3, 1, 4, 0, 5], [2, 6, 5, 3, 5], [3, 1, 4, 0, 5]], np.int32)


def batch_of(rows=ROWS, homes=(0, 1, 0)):
    domain = np.arange(len(rows)) % 2
    return make_batch(rows, domain, np.array(homes), end_of_text=0, reset=True)


class Named(nn.Cell):
    """Some arithmetic on each tensor, by its name; the result tells which is which."""

    def construct(self, *fields):
        batch = unpack_batch(*fields)
        return {
            "ids": batch["ids"] + 1,
            "targets": batch["targets"] + 2,
            "positions": batch["positions"] + 3,
            "documents": batch["documents"] + 4,
            "loss_mask": batch["loss_mask"] + 5.0,
            "domain": batch["domain"] + 6,
            "home": batch["home"] + 7,
            "seeds": batch["seeds"] + 8,
        }


def test_a_graph_reads_by_name_what_the_host_packed():
    batch = batch_of()
    fields = pack_batch(batch, vocab_size=7, domains=2)
    assert len(fields) == len(BATCH_FIELDS)
    found = {name: value.asnumpy() for name, value in Named()(*fields).items()}
    for number, (name, array) in enumerate(batch._asdict().items(), 1):
        np.testing.assert_array_equal(found[name], array + number, name)
        assert found[name].dtype == array.dtype, name
    np.testing.assert_array_equal(found["seeds"], 8)  # without a key there is nothing random


def test_seeds_are_those_of_the_rows_and_the_key():
    fields = dict(zip(BATCH_FIELDS, pack_batch(batch_of(), vocab_size=7, domains=2, key=(1, 5))))
    np.testing.assert_array_equal(fields["seeds"].asnumpy(), row_seeds(ROWS[:, :-1], np.array([0, 1, 0]), (1, 5)))


def test_a_rows_seed_depends_on_its_text_its_home_and_the_key_alone():
    ids, home = np.ascontiguousarray(ROWS[:, :-1]), np.array([0, 1, 0], np.int32)
    seeds = row_seeds(ids, home, (1, 5))
    assert seeds.dtype == np.int32 and seeds[0] == seeds[2] != seeds[1]
    np.testing.assert_array_equal(row_seeds(ids[::-1], home[::-1], (1, 5)), seeds[::-1])
    for other in (row_seeds(ids, home + 1, (1, 5)), row_seeds(ids, home, (1, 6)), row_seeds(ids, home, (2, 5))):
        assert (other != seeds).all()


@pytest.mark.parametrize("vocab_size, domains", [(6, 2), (7, 1)])
def test_ids_beyond_their_table_are_refused(vocab_size, domains):
    with pytest.raises(InputError, match="out of range"):
        pack_batch(batch_of(), vocab_size, domains)
