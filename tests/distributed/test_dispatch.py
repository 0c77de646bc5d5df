"""Every dispatcher on four ranks of two nodes, against a loop over all tokens of all ranks; and the sum of
gradients.
"""

import os
import secrets
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.ports import free_port
from helpers.ranks import run_ranks

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))

from dispatch_worker import CASES, EXPERTS, HIDDEN, RANKS, TOKENS, example, factors, placement_of, sums  # noqa: E402

LIMIT = 600  # seconds; about 40 on two free cores


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dispatch")
    place = [free_port(), os.getpid()]
    commands = [[FOLDER / "dispatch_worker.py", rank, *place, folder / f"{rank}.npz"] for rank in range(RANKS)]
    run_ranks(commands, LIMIT, folder, MESH_SECRET=secrets.token_hex())
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(RANKS)]


def settled(case, own, places, room):
    """(place, expert, whether re-picked) of all assignments that find a slot. `room` holds the slots of each expert."""
    done, lost = [], []
    for place in places:
        e = int(own.expert[place])
        if room.get(e, 0):
            room[e] -= 1
            done.append((place, e, False))
        elif e < EXPERTS:
            lost.append(place)
    for t, k in lost if case.overflow == "repick" else []:
        e = int(own.second[t])
        if room.get(e, 0) and not any((t, earlier) in lost for earlier in range(k)):  # a token has one second expert
            room[e] -= 1
            done.append(((t, k), e, True))
    return done


def share_copies(case, done, places, node_of, own):
    """What is left of `done` where a token travels to a node other than its `own` once, for all that it wants there,
    and `case.copies` tokens at most; `node_of` of each expert. And the number of these travels.
    """
    travellers, left = {node: [] for node in node_of.values()}, []
    for place, e, again in sorted(done, key=lambda one: places.index(one[0])):
        token, there = place[0], travellers[node_of[e]]
        if node_of[e] != own and token not in there and (case.copies is None or len(there) < case.copies):
            there.append(token)
        if node_of[e] == own or token in there:
            left.append((place, e, again))
    return left, sum(map(len, travellers.values()))


def part_of(case, place):
    return place * case.parts // case.places


def loop(name):
    """What every rank should find, one assignment after another."""
    case = CASES[name]
    scale, per_node = factors(case.tensor).astype(np.float64).sum(0), case.ranks_per_node // case.tensor
    placement, dscale, found = placement_of(case), np.zeros((EXPERTS, HIDDEN)), []
    for rank in range(case.places):
        own = example(name, rank)
        places = [(t, k) for k in range(case.top_k) for t in range(TOKENS)]
        if case.priority == "weight":
            places.sort(key=lambda place: -own.weight[place])
        rank_of = {e: placement.ep_index_of(e) for e in range(EXPERTS)}
        room = {e: case.near if rank_of[e] // per_node == rank // per_node else case.far for e in rank_of}
        room.update({e: 0 for e in rank_of if part_of(case, rank_of[e]) != part_of(case, rank)})
        y, dx, dweight = np.zeros((TOKENS, HIDDEN)), np.zeros((TOKENS, HIDDEN)), np.zeros(own.weight.shape)
        kept, dsecond = np.zeros(own.weight.shape), np.zeros(TOKENS)
        done = settled(case, own, places, room)
        copies = len(done)
        if case.kind == "node_dedup":
            node_of = {e: rank_of[e] // per_node for e in rank_of}
            done, copies = share_copies(case, done, places, node_of, rank // per_node)
        for (t, k), e, again in done:
            weight, gradient = (
                (own.second_weight[t], dsecond[t : t + 1]) if again else (own.weight[t, k], dweight[t, k : k + 1])
            )
            kept[t, k] = 1
            y[t] += weight * own.x[t] * scale[e]
            dx[t] += weight * own.dy[t] * scale[e]
            gradient[:] = np.dot(own.dy[t], own.x[t] * scale[e])
            dscale[e] += weight * own.dy[t] * own.x[t]
        kept = kept.T.reshape(-1, 1)
        found.append({"y": y, "dx": dx, "dweight": dweight, "dsecond": dsecond, "kept": kept, "copies": copies})
    for rank in range(case.places):  # each term of a sum has the sum's gradient
        found[rank]["dfactor"] = dscale[list(placement.local_experts(rank))][:, None]
    return [found[rank // case.tensor] for rank in range(RANKS)]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.overflow == "repick"])
def test_some_are_repicked_and_some_dropped(name, monkeypatch):
    repicking = np.concatenate([rank["kept"] for rank in loop(name)])
    monkeypatch.setitem(CASES, name, CASES[name]._replace(overflow="drop"))
    with_drops = np.concatenate([rank["kept"] for rank in loop(name)])
    assert with_drops.sum() + 2 <= repicking.sum() <= len(repicking) - 3


def rounded_up(case):
    """A case's capacities in whole slots of every chunk and every share."""
    shares = case.tensor if case.share else 1
    unit = case.chunks * shares
    if case.kind == "node_dedup":
        return case._replace(near=-(-case.near // unit) * unit)
    if case.kind == "flat":
        return case._replace(near=-(-case.near // unit) * unit, far=-(-case.far // unit) * unit)
    far = -(-case.far // shares) * shares
    return case._replace(near=far + -(-max(case.near - far, 0) // unit) * unit, far=far)


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_match_a_loop(results, name, monkeypatch):
    monkeypatch.setitem(CASES, name, rounded_up(CASES[name]))
    for rank, expected in enumerate(loop(name)):
        for key, array in expected.items():
            # float32, sums of at most a few dozen products of order 1
            np.testing.assert_allclose(
                results[rank][f"{name}/{key}"], array, rtol=0, atol=1e-5, err_msg=f"rank {rank}: {key}"
            )


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.gathered])
def test_gathered_tokens_are_the_same_to_the_bit(results, name):
    for found in results:
        for key in ("y", "kept", "dx", "dweight", "dfactor"):
            np.testing.assert_array_equal(found[f"{name}/{key}"], found[f"{name.replace(', gathered', '')}/{key}"])


def test_one_copy_a_node_equals_plain_dispatch_for_fewer_bytes(results):
    """Four choices on 2 x 2 nodes: the same assignments are dropped, and outputs and gradients are the same to
    rounding: sums of a few dozen float32 products of order 1, in another order.
    """
    plain, deduplicated = "flat, top 4", "node_dedup, top 4"
    for found in results:
        for key in ("y", "kept", "dx", "dweight", "dfactor"):
            np.testing.assert_allclose(
                found[f"{deduplicated}/{key}"], found[f"{plain}/{key}"], rtol=0, atol=1e-5, err_msg=key
            )
        assert found[f"{deduplicated}/between nodes"] <= 0.6 * found[f"{plain}/between nodes"]
    kept = np.concatenate([found[f"{plain}/kept"] for found in results])
    assert 0.7 < kept.mean() < 1.0  # some are dropped


@pytest.mark.parametrize("name", [name for name in CASES if "copies overflow" in name])
def test_copies_overflow_where_experts_have_slots_left(name, monkeypatch):
    kept = np.concatenate([rank["kept"] for rank in loop(name)]).sum()
    monkeypatch.setitem(CASES, name, CASES[name]._replace(copies=None))
    assert kept + 3 <= np.concatenate([rank["kept"] for rank in loop(name)]).sum()


def test_overflow_is_seen():
    """The cases that say so drop on both tiers, and not everything."""
    for name in CASES:
        if "overflow" in name:
            kept = np.concatenate([rank["kept"] for rank in loop(name)])
            assert 0.2 < kept.mean() < 0.9, name


@pytest.mark.parametrize("name", list(CASES))
def test_bytes_between_nodes(results, name):
    """Two ways forward and two backward; a rank sends `far` slots to each expert on other nodes (of its part) and
    nothing else; of as many, ranks that share them send a share each. With one copy a node, `copies` rows to each other
    node, on the way out with k weights beside the row; and once a number for each of the slots.
    """
    case = rounded_up(CASES[name])
    if case.kind == "ragged":
        return check_ragged_bytes(results, name)
    if case.gathered:  # to each of the others what is meant for all of the group
        native = results[0][f"{name.replace(', gathered', '')}/between nodes"]
        ranks = RANKS if case.kind == "flat" else RANKS // case.ranks_per_node  # of those that nodes exchange among
        assert {int(found[f"{name}/between nodes"]) for found in results} == {int(native) * ranks}
        return
    places, per_node = case.places // case.parts, case.ranks_per_node // case.tensor
    elsewhere = EXPERTS // case.parts * max(places - per_node, 0) // places
    if case.kind == "node_dedup":
        rows = min(TOKENS, case.copies or TOKENS) * (RANKS // case.ranks_per_node - 1)
        planned = 2 * rows * (HIDDEN + case.top_k) * 4 + 2 * rows * HIDDEN * 4 + elsewhere * case.far * 4
        assert {int(found[f"{name}/between nodes"]) for found in results} == {planned}
        return
    for rank in range(RANKS):
        assert results[rank][f"{name}/between nodes"] == 4 * elsewhere * case.far * HIDDEN * 4 / (
            case.tensor if case.share else 1
        )


def test_sharing_between_two_halves_the_bytes_between_nodes(results):
    whole, half = (
        sum(rank[f"flat, {how}/between nodes"] for rank in results) for how in ("tensor parallel", "group-wise")
    )
    assert whole == 2 * half > 0


def check_ragged_bytes(results, name):
    """Real rows alone, there and back and both again in the backward pass, and to everyone the numbers of rows for all
    experts.
    """
    case, placement, row = CASES[name], placement_of(CASES[name]), HIDDEN * 4
    flows = np.zeros((RANKS, RANKS), int)  # rows from rank to rank
    for rank in range(RANKS):
        for expert in example(name, rank).expert.ravel():
            if expert < EXPERTS and part_of(case, placement.ep_index_of(int(expert))) == part_of(case, rank):
                flows[rank, placement.ep_index_of(int(expert))] += 1
    for rank in range(RANKS):
        others = [
            peer
            for peer in range(RANKS)
            if part_of(case, peer) == part_of(case, rank) and peer // case.ranks_per_node != rank // case.ranks_per_node
        ]
        real_rows = flows[rank, others].sum() + flows[others, rank].sum()
        exchanging = sum(part_of(case, peer) == part_of(case, rank) for peer in range(RANKS))
        numbers = len(others) * exchanging * EXPERTS // RANKS
        assert results[rank][f"{name}/between nodes"] == 2 * real_rows * row + numbers * 4


def test_rows_that_do_not_fit_end_the_job_on_all_ranks(results):
    for rank, found in enumerate(results):
        message = str(found["failure"])
        assert message.startswith(f"rank {rank}: ")
        assert (
            "rank 0 stopped (ragged, tight/dispatch: 44 rows arrive, room for 39; " in message
        )  # 3.5 * 11, rounded up
        assert "that is 3.5 times an even load, raise moe.dispatch.ragged_limit)" in message


@pytest.mark.parametrize("size", sums(0))
def test_gradients_cross_between_nodes_once(results, size):
    expected = np.sum([sums(rank)[size].astype(np.float64) for rank in range(RANKS)], axis=0)
    for found in results:
        np.testing.assert_allclose(
            found[f"sum {size}/values"], expected, rtol=0, atol=2e-6
        )  # three float32 sums of order 1
        np.testing.assert_array_equal(
            found[f"sum {size}/values"], results[0][f"sum {size}/values"]
        )  # the same bits everywhere
        # Padded to a multiple of the node's two ranks, each of which sends its half to one rank of the other node.
        assert found[f"sum {size}/between nodes"] == (size + size % 2) // 2 * 4


def test_gradients_in_flight_are_the_same_sums(results):
    """To the bit, step after step, in one message; what is computed meanwhile is left as it is."""
    for found in results:
        for size in sums(0):
            for when in ("first", "second"):
                np.testing.assert_array_equal(found[f"flight {size}/{when}"], found[f"sum {size}/values"])
        assert found["flight/control"] == 4.0
        whole = sum(sums(0))
        assert found["flight/between nodes"] == (whole + whole % 2) // 2 * 4


def half(numbers):
    """Rounded as on the wire, to be added in float32."""
    return numbers.astype(np.float16).astype(np.float32)


def narrow_sum(size):
    """Two nodes of two ranks: each pair's sum of rounded numbers, rounded; their sum. Of two numbers a float32 sum is
    the same in any order, so that all is to the bit.
    """
    first, second = (half(sums(rank)[size]) + half(sums(rank + 1)[size]) for rank in (0, 2))
    return half(first) + half(second)


@pytest.mark.parametrize("size", sums(0))
def test_narrow_gradients_are_added_in_float32(results, size):
    """To the bit, the same on all ranks; half the bytes of the sum above, but for the padding to four ranks."""
    exact = np.sum([sums(rank)[size].astype(np.float64) for rank in range(RANKS)], axis=0)
    for found in results:
        np.testing.assert_array_equal(found[f"narrow {size}/values"], half(narrow_sum(size)))
        # A term, a pair's sum and the sum are rounded to 11 bits, numbers of up to about 8.
        np.testing.assert_allclose(found[f"narrow {size}/values"], exact, rtol=0, atol=(4 * 4 + 2 * 8 + 8) * 2.0**-11)
        padded = -(-size // RANKS) * RANKS
        assert found[f"narrow {size}/between nodes"] == padded // 2 * 2


def test_a_stretch_of_a_narrow_sum_is_not_rounded(results):
    """By place in the node, then by node; what is added in float32 stays so where it is used."""
    whole = narrow_sum(10001)[:10000].reshape(2, 2, 2500)  # (places, nodes, n)
    for rank, found in enumerate(results):
        np.testing.assert_array_equal(found["stretch"], whole[rank % 2, rank // 2])


def test_narrow_gradients_in_flight_are_the_same_sums(results):
    for found in results:
        for size in sums(0):
            for when in ("first", "second"):
                np.testing.assert_array_equal(found[f"narrow flight {size}/{when}"], found[f"narrow {size}/values"])
        assert found["narrow flight/control"] == 4.0
        whole = sum(sums(0))
        assert found["narrow flight/between nodes"] == (whole + whole % 2) // 2 * 2
