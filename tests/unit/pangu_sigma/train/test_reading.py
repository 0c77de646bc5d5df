"""Results of steps that are read later are the same results, and what depends on them happens at the same steps."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from mindspore import Tensor

from locmoe_ops.collectives.create import create_collectives
from locmoe_ops.errors import CollectiveError, InputError
from locmoe_ops.topology import Topology
from pangu_sigma.bench.step import random_batch
from pangu_sigma.config.load import config_from_dict
from pangu_sigma.config.validate import validate
from pangu_sigma.data.vocabulary import Vocabulary
from pangu_sigma.runtime.messages import set_up_messages
from pangu_sigma.runtime.runtime import Runtime
from pangu_sigma.train.engine import StepResult, TrainEngine
from pangu_sigma.train.loop import TrainingLoop
from pangu_sigma.train.metrics import MetricsLog
from pangu_sigma.train.statistics import ExtraSums, Statistics

RULES = ("each_step", "next_step", "log_interval")
STEPS, INTERVAL = 12, 4
STATISTICS = Statistics(1, 4, ExtraSums(limits_rows=True))
CHIPS = {"cpu": None, "910b": "910b"}


class Job:
    """A run whose steps compute nothing: step n has loss 1 / n, and norm n.

    Args:
        losses: of some steps, by number. skips: steps whose updates overflow. beyond: steps with too many rows.
        stop_at: the step during which a request to stop comes.

    Attributes:
        events: (what, step or value), in order.
    """

    def __init__(self, folder, config, chip=None, losses=(), skips=(), beyond=(), stop_at=None):
        self.events, self.stop = [], SimpleNamespace(requested=False)
        self._losses, self._skips, self._beyond, self._stop_at = dict(losses), skips, beyond, stop_at
        engine = SimpleNamespace(
            loss_scale=SimpleNamespace(skipped=Tensor(0.0)),
            words=SimpleNamespace(vocab_size=320),
            capacity=SimpleNamespace(prepare=lambda *_: None, metrics=dict),
            local_share=SimpleNamespace(prepare=lambda *_: None, metrics=dict),
            launch_step=self._launch,
            read_step=self._read,
            set_locality_bias=lambda value: self.events.append(("set", value)),
            set_locality_loss_weight=None,
            set_context_weight=None,
            set_expert_choice=None,
        )
        saving = SimpleNamespace(
            data=SimpleNamespace(rows=lambda *_: 100, domains=("en",)), writer=SimpleNamespace(check=lambda: None)
        )
        runtime = Runtime(create_collectives("local", Topology(1, 1), 0), chip=chip)
        loader = SimpleNamespace(step=lambda step: [step])
        self.loop = TrainingLoop(config, runtime, engine, loader, saving, self.stop)
        self.loop.host_sum = lambda tensor: tensor
        self.loop.utilisation = SimpleNamespace(begin=lambda: None, memory=dict, mfu=lambda step_s: {})
        self.loop.validation = SimpleNamespace(measure=self._validate, batches=[0])
        self.loop._save = self._save
        self._log = MetricsLog(folder / "metrics.jsonl", 0)

    def _launch(self, batches, step, rate):
        self.events.append(("launch", step))
        if step == self._stop_at:
            self.stop.requested = True
        return step

    def _read(self, step):
        self.events.append(("read", step))
        vector = np.zeros(STATISTICS.size)
        vector[:2], vector[-1] = (1.0, self._losses.get(step, 1.0 / step)), step in self._beyond
        skipped = sum(one <= step for one in self._skips)
        return StepResult(STATISTICS.unpack(vector), float(step), 2.0**-step, skipped)

    def _validate(self):
        self.events.append(("validate", len(self.launched)))
        return {"valid/loss": 1.0, "valid/perplexity": float(len(self.launched))}

    def _save(self, step):
        self.events.append(("save", step))
        self.loop.saved_step = step

    @property
    def launched(self):
        return [step for what, step in self.events if what == "launch"]

    def of(self, what):
        return [step for event, step in self.events if event == what]

    def run(self):
        """Records of metrics.jsonl, but their times."""
        try:
            self.loop.run(0, self._log)
        finally:
            self._log.close()
        lines = (self._log._path).read_text().splitlines()
        return [
            {name: value for name, value in json.loads(line).items() if not name.startswith(("time/", "throughput/"))}
            for line in lines
        ]


def config_of(rule, **changed):
    return config_from_dict(
        {
            "model": {"hidden_size": 16, "num_heads": 2, "sequence_length": 12},
            "moe": {"num_experts": 4, "router": {"type": "switch", **changed.pop("router", {})}},
            "optimizer": {"warmup_steps": 1},
            "data": {"path": "absent"},
            "checkpoint": {"interval": changed.pop("interval", 5)},
            "train": {
                "steps": STEPS,
                "global_batch_size": 4,
                "log_interval": INTERVAL,
                "eval_rows": 0,
                "read_results": rule,
                **changed,
            },
        }
    )


CASES = {
    "to the end": ({}, {}),
    "with validations": ({"eval_interval": 3}, {}),
    "cut off": ({"stop_after": 7}, {}),
    "losses that are no numbers": ({"divergence_patience": 2}, {"losses": {4: np.inf, 6: np.nan, 7: np.inf}}),
    "no good step": ({"divergence_patience": 3}, {"losses": {step: np.nan for step in range(1, 13)}}),
    "a bad last step": ({}, {"losses": {12: np.nan}}),
    "a bad step at a checkpoint": ({}, {"losses": {5: np.inf}}),
    "overflows": ({"divergence_patience": 3}, {"skips": (2, 5, 6, 7)}),
    "overflows that end": ({"divergence_patience": 4}, {"skips": (5, 6, 7)}),
}


@pytest.mark.parametrize("rule", RULES[1:])
@pytest.mark.parametrize("case", CASES)
def test_the_same_is_written_saved_and_judged(tmp_path, rule, case):
    keys, events = CASES[case]
    found = {}
    for name in ("each_step", rule):
        (tmp_path / name).mkdir()
        job = Job(tmp_path / name, config_of(name, **keys), **events)
        found[name] = job.run(), job.of("save"), job.of("validate"), job.loop.verdict, job.loop.stopped
    assert found[rule] == found["each_step"]
    assert [record["progress/step"] for record in found[rule][0]] == list(range(1, len(found[rule][0]) + 1))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("chip", CHIPS)
def test_a_step_is_launched_before_an_earlier_one_is_read(tmp_path, rule, chip):
    job = Job(tmp_path, config_of(rule, steps=9, interval=0), CHIPS[chip])
    records = job.run()
    after = {  # the step after whose launch each is read; the last one is read at once
        "each_step": range(1, 10),
        "next_step": (2, 3, 4, 5, 6, 7, 8, 9, 9),
        "log_interval": (4, 4, 4, 4, 8, 8, 8, 8, 9),
    }[rule]
    place = {event: index for index, event in enumerate(job.events)}
    for step, launched in enumerate(after, 1):
        assert place["read", step] > place["launch", launched]
        assert launched == 9 or place["read", step] < place["launch", launched + 1]
    assert len(records) == 9


@pytest.mark.parametrize("rule", RULES)
def test_what_changes_or_keeps_the_network_comes_after_all_that_was_launched(tmp_path, rule):
    """A schedule that begins after step 5 and takes three steps; validations, checkpoints and profiled steps."""
    term = {"kind": "margin", "strength": 0.5, "start_step": 5, "warmup_steps": 3}
    job = Job(tmp_path, config_of(rule, router={"locality_bias": term}, eval_interval=4, interval=3, profile=[11, 11]))
    job.loop.profile = SimpleNamespace(
        begin=lambda step: job.events.append(("begin", step)) if step == 11 else None,
        end=lambda step, own: job.events.append(("end", step)) if step == 11 else None,
        close=lambda: None,
    )
    job.run()
    waiting = set()
    for what, value in job.events:
        waiting |= {value} if what == "launch" else set()
        waiting -= {value} if what == "read" else set()
        assert not waiting or what in ("launch", "read"), (what, value)
    assert job.of("set") == [0.0, pytest.approx(1 / 6), pytest.approx(1 / 3), 0.5]
    assert job.of("begin") == job.of("end") == [11]


@pytest.mark.parametrize(("rule", "last"), [("each_step", 2), ("next_step", 2), ("log_interval", 4)])
def test_a_request_to_stop_leaves_a_checkpoint_of_the_last_step_that_was_launched(tmp_path, rule, last):
    """Requested while step 2 is launched, after which next_step reads step 1, and so notices."""
    job = Job(tmp_path, config_of(rule), stop_at=2)
    records = job.run()
    assert job.loop.stopped and job.launched[-1] == last
    assert (job.of("save"), len(records)) == ([last], last)


@pytest.mark.parametrize("rule", RULES)
def test_rows_beyond_the_limit_end_the_job_under_their_step(tmp_path, rule):
    job = Job(tmp_path, config_of(rule), beyond=(7,))
    with pytest.raises(CollectiveError, match="^step 7: 1 rows came"):
        job.run()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["progress/step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert job.of("save") == [5]


def test_times_on_a_device_add_up_to_the_time_that_passed(tmp_path, monkeypatch):
    """The clock shows a second more each time that it is asked: twice a launch, once a reading."""
    from pangu_sigma.train import loop as loop_module

    clock = iter(range(1000))
    monkeypatch.setattr(loop_module.time, "perf_counter", lambda: float(next(clock)))
    job = Job(tmp_path, config_of("log_interval", steps=8, interval=0), "910b")
    job.run()
    times = [record["time/step(s)"] for record in job._log.records]
    assert times == [8 / 4] * 8  # four launches begin at 0, 2, 4, 6 and are read at 8


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"optimizer": {"expert_state": "host_dense"}}, "with optimizer.expert_state host_dense, where the host waits"),
        ({"train": {"log_interval": 1}}, "with train.log_interval 1, which is every step; expected each_step"),
    ],
)
def test_a_rule_that_would_change_nothing_is_refused(changed, message):
    train = {"read_results": "log_interval", **changed.pop("train", {})}
    with pytest.raises(InputError, match=f"train.read_results is log_interval {message}"):
        validate(config_from_dict({"train": train, **changed}), 1)


@pytest.mark.compiles
def test_outputs_keep_their_numbers_while_later_steps_run(networks):
    """Accumulators are emptied, the loss scale doubles and an update is skipped meanwhile; to the bit."""
    words = Vocabulary(29, 2, np.ones(29, np.int64))
    config = networks.small_config(
        {"dense_layers": 0},
        {"router": {"type": "switch"}},
        train={"global_batch_size": 4, "micro_batch_size": 2, "steps": 10},
        runtime={"precision": "fp16", "loss_scale": {"initial": 2.0**22, "growth_interval": 1}},
    )
    engine = TrainEngine(config, Runtime(create_collectives("local", Topology(1, 1), 0)), words)
    batches = [random_batch(2, 12, words)] * 2
    begin = {entry.name: entry.get().copy() for entry in engine.state()}
    at_once = [engine.train_step(batches, step, 0.01) for step in range(1, 7)]
    ended = {entry.name: entry.get().copy() for entry in engine.state()}
    for entry in engine.state():
        entry.set(begin[entry.name])
    launched = [engine.launch_step(batches, step, 0.01) for step in range(1, 7)]
    later = [engine.read_step(outputs) for outputs in launched]
    assert len({result.loss_scale for result in at_once}) > 1 and at_once[-1].skipped_steps in range(1, 6)
    for one, other in zip(at_once, later):
        np.testing.assert_equal(vars(other), vars(one))
    for entry in engine.state():
        np.testing.assert_array_equal(entry.get(), ended[entry.name], err_msg=entry.name)


@pytest.mark.parametrize(("level", "told"), [("info", (3, 4, 6, 8, 9, 12)), ("debug", range(1, 13)), ("warning", ())])
def test_what_the_console_says(level, told, tmp_path, capsys):
    """Steps of a validation or of the interval, compiling and its seconds; nothing of a bar, since this is no
    terminal. A debug level tells every step.
    """
    set_up_messages(level)
    try:
        Job(tmp_path, config_of("each_step", eval_interval=3)).run()
    finally:
        set_up_messages("info")
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert [int(line.split()[1].partition("/")[0]) for line in steps] == list(told)
    assert {int(line.split()[1].partition("/")[0]) for line in steps if " ppl " in line} <= {3, 6, 9, 12}
    assert all(len(line) <= 79 and " loss " in line and " norm " in line for line in steps)
    rest = [line for line in lines if line not in steps]
    waits = ["compiling the step", "compiling the validation"]
    assert rest == ([f"{what} ...{end}" for what in waits for end in ("", " 0 s")] if told else []) and shown.err == ""
