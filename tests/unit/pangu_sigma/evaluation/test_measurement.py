"""What is measured of a small model with a tokenizer, against the NumPy model with the same weights."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.errors import InputError
from locmoe_ops.routers.specs.replay import ReplayOptions
from locmoe_ops.routing_trace import read_trace
from locmoe_ops.topology import Topology
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.validate import validate
from pangu_sigma.data.corpus import cut
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.tokenizer import Tokenizer
from pangu_sigma.data.vocabulary import vocabulary
from pangu_sigma.evaluation.choice import ChoiceTask, picked
from pangu_sigma.evaluation.generation import GenerationTask, before_stop
from pangu_sigma.evaluation.model import EvaluatedModel, _context, without_drops
from pangu_sigma.evaluation.perplexity import TextPieces, ValidationRows
from pangu_sigma.evaluation.prompts import prompt_text, task_domain
from pangu_sigma.evaluation.ranks import validation_batches
from pangu_sigma.evaluation.scoring import Scorer
from pangu_sigma.evaluation.tasks import load_task
from pangu_sigma.evaluation.trace import TraceRequest, check_trace_request, chosen_rows, write_trace
from pangu_sigma.inference.load import inference_config
from pangu_sigma.model.dims import model_dims
from pangu_sigma.model.pangu_sigma import PanGuSigma
from pangu_sigma.runtime.runtime import Runtime


@pytest.fixture(scope="module")
def model(tiny_data, networks):
    """Every number random; the words of one domain mean something else in the other."""
    config = without_drops(
        config_from_dict(
            {
                "model": {**networks.SMALL, "sequence_length": 32, "domain_embeddings": True},
                "moe": {"num_experts": 4, "num_groups": 2, "router": {"type": "switch"}},
                "data": {"path": str(tiny_data), "prepare": {"document_bytes": 200}},
                "train": {"global_batch_size": 4, "eval_rows": 6},
            }
        )
    )
    data = PreparedData.open(str(tiny_data))
    runtime = Runtime(create_collectives("local", Topology(1, 1), 0))
    context = _context(config, runtime, vocabulary(config, data))
    network = PanGuSigma(context)
    scorer = Scorer(network, context.shape, traces=True)
    networks.randomise(network, 2)
    return EvaluatedModel(
        config,
        runtime,
        data,
        Tokenizer.load(data.tokenizer_path),
        data.domains,
        Path("checkpoint"),
        7,
        "0" * 64,
        network,
        scorer,
        expert_nodes=(0, 1, 0, 1),
    )


@pytest.fixture(scope="module")
def double(model, networks, numpy_model):
    """The same network in NumPy."""
    options = model.config.model
    return numpy_model.NumpyModel(
        numpy_model.NumpyOptions(
            options.dense_layers,
            options.sparse_layers,
            options.num_heads,
            model.data.vocab_size,
            options.layer_norm_epsilon,
            options.activation,
            False,
            True,
            networks.layer_spec(model.config, 4, training=False),
        ),
        networks.parameter_arrays(model.network),
    )


@pytest.fixture(scope="module")
def nats(double, numpy_model):
    """`nats(ids, domain)`: of each id after the first, by the NumPy model reading them as one document."""

    def read(ids, domain):
        n = len(ids) - 1
        batch = {
            "ids": np.array([ids[:-1]]),
            "positions": np.arange(n)[None],
            "documents": np.zeros((1, n), int),
            "domain": np.array([domain]),
            "home": np.zeros(1, int),
        }
        return numpy_model.token_losses(double.forward(batch).logits, np.asarray(ids[1:]))

    return read


def test_perplexity_and_bits_per_byte_of_text(model, nats, tmp_path):
    """Pieces that fill less than a row, and one that fills more; an unknown character goes through as bytes."""
    text = "abcd efgh ij\n" * 3 + "一 cdef\n" + "jjaa bbcc ddee ffgg hhii " * 8
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    pieces = TextPieces(model, "two", str(tmp_path / "text.txt"))
    records = pieces.measure(range(pieces.size))
    encode, tag, end = model.tokenizer.encode, model.tag(1), model.tokenizer.end_of_text
    total = tokens = 0.0
    for piece in cut(text, 200):
        ids, scored = [tag, *encode(piece), end], 0
        while scored < len(ids) - 1:
            stop = min(scored + 32, len(ids) - 1)
            start = max(0, stop - 32) if len(ids) > 33 else 0
            total += nats(ids[start : stop + 1], 1)[scored - start :].sum()
            scored = stop
        tokens += len(ids) - 1
    assert pieces.size == 2 and tokens > 2 * 33
    perplexity, bits = pieces.figures(records)
    # float32 logits of a few layers: 2e-5 of the nats, and so of perplexity some times that
    assert (
        bits.estimate.value == pytest.approx(total / len(text.encode()) / math.log(2.0), rel=2e-5)
        and bits.domain == "two"
    )
    assert (
        perplexity.estimate.value == pytest.approx(math.exp(total / tokens), rel=2e-4)
        and perplexity.metric == "perplexity"
    )


def test_perplexity_of_validation_rows_by_domain(model, nats):
    ranked = validation_batches(model.config, model.data, Topology(1, 1), 1)
    batches = [batch for _, batch in ranked]
    rows = ValidationRows(model, ranked)
    assert rows.size == 6  # of 8 in two batches
    records = rows.measure([5, 0, 1, 2, 3, 4])
    sums = {0: np.zeros(3), 1: np.zeros(3)}
    for batch in batches:
        for ids, targets, documents, mask, domain in zip(
            batch.ids, batch.targets, batch.documents, batch.loss_mask, batch.domain
        ):
            for document in np.unique(documents) if mask.any() else ():
                part = documents == document
                found = nats([*ids[part], targets[part][-1]], domain)
                counts = mask[part] > 0
                text = model.tokenizer.decode(targets[part][counts].tolist())
                sums[int(domain)] += found[counts].sum(), counts.sum(), len(text.encode("utf-8", "replace"))
    figures = {(figure.domain, figure.metric): figure.estimate.value for figure in rows.figures(records)}
    for domain, name in enumerate(("one", "two")):
        total, tokens, size = sums[domain]
        assert figures[name, "perplexity"] == pytest.approx(math.exp(total / tokens), rel=2e-4)  # as above
        assert figures[name, "bits_per_byte"] == pytest.approx(total / size / math.log(2.0), rel=2e-5)
    both = sums[0] + sums[1]
    assert figures["all", "perplexity"] == pytest.approx(math.exp(both[0] / both[1]), rel=2e-4)
    assert rows.measure([4]) == records[5:] and rows.notes(records) == []


@pytest.fixture(scope="module")
def traced(model, tmp_path_factory):
    """The path of a trace of all validation rows, and what `eval` says of it."""
    path = tmp_path_factory.mktemp("trace") / "a.safetensors"
    return str(path), write_trace(model, TraceRequest(str(path), "validation", 6 * 32))


def test_a_trace_holds_what_the_routers_chose(model, double, traced):
    """Row by row, by the NumPy model reading each row alone."""
    path, told = traced
    trace = read_trace(path, "--trace")
    assert told.startswith("routing trace: 192 tokens in 6 rows, 1 sparse layers, 1 experts a token; ")
    rows = {
        (batch.ids[row].tobytes(), int(batch.domain[row])): (batch, row)
        for _, batch in validation_batches(model.config, model.data, Topology(1, 1), 1)
        for row in np.flatnonzero(batch.loss_mask.any(1))
    }
    assert {(ids.tobytes(), int(domain)) for ids, domain in zip(trace.token, trace.domain)} == set(rows)
    for number, ids in enumerate(trace.token):
        batch, row = rows[ids.tobytes(), int(trace.domain[number])]
        alone = {name: array[row : row + 1] for name, array in batch._asdict().items()}
        (layer,) = double.forward(alone).layers
        np.testing.assert_array_equal(trace.expert[0, number], layer.expert[0])
        # float32 probabilities behind a few layers, as above
        np.testing.assert_allclose(trace.weight[0, number], layer.weight[0], rtol=2e-5)
    assert trace.node.tolist() == [0, 1, 0, 1] and trace.domains == model.domains
    assert trace.source == {
        "checkpoint": "checkpoint",
        "sha256": "0" * 64,
        "step": "7",
        "router": "switch",
        "rows": "validation",
    }


def test_a_replayed_trace_scores_as_the_router_did(model, networks, traced):
    """Another network, with the same weights but for the gate, which it does not have. Bit for bit: the same operators
    get the same experts and the same weights.
    """
    router = replace(model.config.moe.router, type="replay", replay=ReplayOptions(traced[0]))
    config = replace(model.config, moe=replace(model.config.moe, router=router))
    validate(config, 1)
    network = PanGuSigma(_context(config, model.runtime, vocabulary(config, model.data)))
    own = {parameter.name: parameter for parameter in model.network.get_parameters()}
    assert {name for name in own if "gate" in name} == set(own) - {one.name for one in network.get_parameters()}
    for parameter in network.get_parameters():
        parameter.set_data(own[parameter.name])
    scorer = Scorer(network, model_dims(config, model.scorer.rows, model.data.vocab_size, 2), traces=True)
    for _, batch in validation_batches(config, model.data, Topology(1, 1), 1):
        before, found = model.scorer.tokens(batch), scorer.tokens(batch)
        np.testing.assert_array_equal(found.routed.expert, before.routed.expert)
        np.testing.assert_array_equal(found.routed.weight, before.routed.weight)
        np.testing.assert_array_equal(found.losses, before.losses)
    with pytest.raises(InputError, match="moe.router.type is replay, which routes whole rows of text alone"):
        inference_config(config)


def test_rows_that_are_traced_are_the_same_each_time_and_of_all_batches(model):
    batches = [batch for _, batch in validation_batches(model.config, model.data, Topology(1, 1), 1)]
    found = chosen_rows(batches, 4)
    assert len(set(found)) == 4 and found == chosen_rows(batches, 4) == sorted(found)
    assert set(found) < set(chosen_rows(batches, 99)) and len(chosen_rows(batches, 99)) == 6
    assert chosen_rows([*batches, *batches], 99) == chosen_rows(batches, 99)  # each text once


@pytest.mark.parametrize(
    ("changes", "tokens", "problem"),
    [
        ({}, 31, "--trace-tokens 31: a row has 32 tokens; expected at least one row"),
        ({}, 10**9, r"the trace would take 12,000,000,000 bytes; expected at most 4,294,967,296"),
        ({"sparse_layers": 0}, 64, "the model has no experts"),
    ],
)
def test_traces_that_cannot_be(model, tmp_path, changes, tokens, problem):
    config = replace(model.config, model=replace(model.config.model, **changes))
    with pytest.raises(InputError, match=problem):
        check_trace_request(config, TraceRequest(str(tmp_path / "a"), "validation", tokens))


def test_a_trace_replaces_no_other_file(model, tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"weights")
    with pytest.raises(InputError, match="--trace .*mine.safetensors: is there already, and pangu-sigma did not write"):
        check_trace_request(model.config, TraceRequest(str(tmp_path / "mine.safetensors"), "validation", 64))


@pytest.fixture
def task(tmp_path):
    def write(**config):
        items = [
            {"q": "abcd efgh", "c": [" ij", " jjaa bbcc", " a"], "a": 1},
            {"q": "hh ii " * 20, "c": [" b", " ccdd"], "a": 0},
            {"q": "jj", "c": ["aabb", "ccdd eeff gg"], "a": 1},
        ]
        (tmp_path / "data.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        (tmp_path / "task.yaml").write_text(yaml.safe_dump({"data": "data.jsonl", "prompt": "{q}", **config}))
        return load_task(str(tmp_path / "task.yaml"))

    return write


def test_multiple_choice_by_likelihood(model, nats, task):
    measured = ChoiceTask(model, task(choices_field="c", answer="a", shots=1), 0)
    records = measured.measure([0, 1, 2])
    encode, tag = model.tokenizer.encode, model.tag(0)
    for number, (record, example) in enumerate(zip(records, measured._task.examples)):
        context = [tag, *encode(prompt_text(measured._task, number))]
        expected = []
        for choice in example.choices:
            ids = encode(choice)
            kept = context if len(context) + len(ids) <= 33 else [tag, *context[len(context) - 32 + len(ids) :]]
            expected.append(nats(kept + ids, 0)[-len(ids) :].sum())
        assert record["nats"] == pytest.approx(expected, rel=2e-5)  # as above
        assert record["bytes"] == [len(choice) for choice in example.choices] and record["answer"] == example.answer
        assert picked(record, "accuracy") == int(np.argmin(expected))
    short = sum(record["lost"] > 0 for record in records)
    assert short >= 1 and measured.notes(records) == [
        f"task-task: {short} of 3 prompts lost their beginning to fit into 32 tokens"
    ]


def test_lengths_are_normalised_in_bytes_or_tokens():
    record = {"nats": [4.0, 6.0, 5.0], "bytes": [2, 4, 2], "tokens": [2, 4, 5], "answer": 1}
    assert [picked(record, metric) for metric in ("accuracy", "accuracy_per_byte", "accuracy_per_token")] == [0, 1, 2]


ANSWERS = {"kind": "generate", "answer": "answer"}


@pytest.fixture
def generated(model, tmp_path):
    """`generated(texts, ...)`: a generation task whose model writes these texts; what it was asked is in `asked`."""
    asked = []

    def make(texts, run_code=False, **config):
        items = [{"q": "ab " * 20, "answer": ["cd", "北京"], "n": 1}, {"q": "ef", "answer": "x y", "n": 2}]
        (tmp_path / "data.jsonl").write_text(
            "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8"
        )
        content = {**ANSWERS, "data": "data.jsonl", "prompt": "{q}", "max_new_tokens": 8, **config}
        (tmp_path / "task.yaml").write_text(yaml.safe_dump(content))

        def write(prompts, domains, most):
            asked.append((prompts, domains, most))
            return [model.tokenizer.encode(text) for text in texts]

        return GenerationTask(model, load_task(str(tmp_path / "task.yaml")), 1, write, run_code)

    make.asked = asked
    return make


def test_what_the_model_writes_is_cut_and_compared(model, generated):
    measured = generated(["北 京。\nand on", "y z"], stop=["\n", "zz"])
    records = measured.measure([0, 1])
    ((prompts, domains, most),) = generated.asked
    assert (
        most == 8
        and domains == [1, 1]
        and [len(prompt) for prompt in prompts] == [24, 1 + len(model.tokenizer.encode("ef"))]
    )
    assert prompts[0][0] == model.tag(1) and prompts[0][1:] == model.tokenizer.encode("ab " * 20)[-23:]
    assert [record["completion"] for record in records] == ["北 京。", "y z"]
    assert [record["lost"] > 0 for record in records] == [True, False]
    figures = {figure.metric: figure.estimate.value for figure in measured.figures(records)}
    assert figures == {"exact_match": 0.5, "f1": pytest.approx((1.0 + 0.5) / 2)}


def test_code_runs_only_where_it_may(generated):
    program = "x = {n}\n{completion}\nassert y == 2\n"
    with pytest.raises(InputError, match="task.yaml: the metric passes runs programs .* expected --run-code"):
        generated(["", ""], program=program)
    measured = generated(["y = 2 * x", "y = 2 * x"], run_code=True, program=program)
    assert [record["passes"] for record in measured.measure([0, 1])] == [True, False]


def test_an_answer_ends_before_the_first_stop():
    assert before_stop("a#b\nc", ["\n", "#"]) == "a" and before_stop("abc", ["x", ""]) == "abc"


def test_the_domain_of_a_task(model, task):
    assert task_domain(model, task(choices_field="c", answer="a", domain="two"), None) == 1
    assert task_domain(model, task(choices_field="c", answer="a", domain="two"), "one") == 0
    with pytest.raises(InputError, match="names no domain; expected --domain, or a key domain: one of one, two"):
        task_domain(model, task(choices_field="c", answer="a"), None)
    with pytest.raises(InputError, match="--domain: found three, expected one of the model's domains: one, two"):
        task_domain(model, task(choices_field="c", answer="a"), "three")
    with pytest.raises(InputError, match=r"--text three=x: found three, expected one of"):
        TextPieces(model, "three", "x")
    with pytest.raises(InputError, match="--text one: 'x' does not exist; expected a folder or a file of text"):
        TextPieces(model, "one", "x")
