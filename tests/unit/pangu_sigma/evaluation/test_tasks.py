import json
from pathlib import Path

import pytest
import yaml

from locmoe_ops.errors import InputError
from pangu_sigma.evaluation.prompts import prompt_text
from pangu_sigma.evaluation.tasks import load_task

CHOICE = {"kind": "choice", "data": "data.jsonl", "prompt": "{q}=", "choices": ["{a}", "{b}"], "answer": "right"}
GENERATE = {"kind": "generate", "data": "data.jsonl", "prompt": "{q}=", "answer": "text"}
EXAMPLES = [
    {"q": f"q{i}", "a": "x", "b": "y", "right": i % 2, "text": f"t{i}", "list": ["x", "y"], "label": "yes"}
    for i in range(6)
]


def load(tmp_path, config, examples=EXAMPLES, **changes):
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    path = tmp_path / "task.yaml"
    path.write_text(yaml.safe_dump({**config, **changes}))
    return load_task(str(path))


def test_choices_and_answers_in_each_of_their_forms(tmp_path):
    task = load(tmp_path, CHOICE)
    assert task.name == "task" and len(task.metrics) == 3
    assert [(e.prompt, e.choices, e.answer, e.solution) for e in task.examples[:2]] == [
        ("q0=", ("x", "y"), 0, "x"),
        ("q1=", ("x", "y"), 1, "y"),
    ]
    listed = {"choices": [], "choices_field": "list", "choice": "[{choice}]{q}"}
    assert load(tmp_path, CHOICE, **listed).examples[1].choices == ("[x]q1", "[y]q1")
    assert load(tmp_path, CHOICE, **listed, answer="b").examples[0].answer == 1  # by the text that the list holds
    assert load(tmp_path, CHOICE, answer="b").examples[0].answer == 1  # by the text of a choice
    assert load(tmp_path, CHOICE, answer="label", labels=["no", "yes"]).examples[0].answer == 1
    assert load(tmp_path, CHOICE, prompt="{{{q}}}").examples[0].prompt == "{q0}"


def test_answers_to_generate(tmp_path):
    assert load(tmp_path, GENERATE).examples[2].answers == ("t2",) and load(tmp_path, GENERATE).metrics == (
        "exact_match",
        "f1",
    )
    assert load(tmp_path, GENERATE, answer="list").examples[0].answers == ("x", "y")
    assert load(tmp_path, GENERATE, program="{completion}").metrics == ("passes",)


def test_solved_examples_are_drawn_alike_in_every_run_and_never_the_example_itself(tmp_path):
    task = load(tmp_path, CHOICE, shots=3, separator=" | ", seed=5)
    prompts = [prompt_text(task, number) for number in range(6)]
    again = load(tmp_path, CHOICE, shots=3, separator=" | ", seed=5)
    assert prompts == [prompt_text(again, number) for number in range(6)]
    solved = {f"q{i}={'xy'[i % 2]}" for i in range(6)}
    for number, prompt in enumerate(prompts):
        *shots, last = prompt.split(" | ")
        assert last == f"q{number}=" and len(set(shots)) == 3
        assert set(shots) <= solved - {f"q{number}={'xy'[number % 2]}"}
    assert len({tuple(prompt.split(" | ")[:3]) for prompt in prompts}) > 1  # other draws for other examples
    other = load(tmp_path, CHOICE, shots=3, separator=" | ", seed=6)
    assert prompts != [prompt_text(other, number) for number in range(6)]


def test_solved_examples_of_another_file(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"q": "z", "a": "1", "b": "2", "right": 1}) + "\n")
    task = load(tmp_path, CHOICE, shots=1, shots_data="train.jsonl")
    assert prompt_text(task, 0) == "z=2\n\nq0="


def test_a_limit_leaves_the_draw_as_it_is(tmp_path):
    whole = load(tmp_path, CHOICE, shots=2)
    first = load_task(str(tmp_path / "task.yaml"), limit=2)
    assert len(first.examples) == 2 and [prompt_text(first, n) for n in range(2)] == [
        prompt_text(whole, n) for n in range(2)
    ]


BAD = [
    (CHOICE, {"promt": "x"}, "unknown key, did you mean prompt"),
    (CHOICE, {"data": ""}, "data: missing, expected a file of examples"),
    (CHOICE, {"data": "no.jsonl"}, "no.jsonl: cannot be read"),
    (CHOICE, {"kind": "chose"}, "kind: found 'chose', expected one of choice, generate"),
    (CHOICE, {"prompt": "{q"}, "prompt: .*expected text with fields"),
    (CHOICE, {"prompt": "{q.x}"}, "prompt: .*holds more than a field's name"),
    (CHOICE, {"prompt": "{nothing}"}, "data.jsonl:1: no field nothing, which prompt asks for; found q, a"),
    (
        CHOICE,
        {"prompt": "{list}"},
        "data.jsonl:1: field list, which prompt asks for, is a list; expected text or a number",
    ),
    (CHOICE, {"choices": ["{a}"]}, "choices: found 1, expected at least 2"),
    (CHOICE, {"choices": ["{a}", "{a}{a}", ""]}, "choice 2 is empty"),
    (CHOICE, {"choices_field": "list"}, "choices and choices_field: expected one of the two"),
    (CHOICE, {"choices": [], "choices_field": "q"}, "field q is 'q0'; expected a list of at least two texts"),
    (CHOICE, {"labels": ["yes"]}, "labels: found 1 for 2 choices"),
    (CHOICE, {"labels": ["yes", "no"]}, "data.jsonl:1: field right is 0; expected 'yes', 'no'"),
    (CHOICE, {"answer": "q"}, "field q is 'q0'; expected 0 to 1, or the text of a choice"),
    (CHOICE, {"answer": "nothing"}, "no field nothing, which answer names"),
    (CHOICE, {"metrics": ["f1"]}, "metrics: found f1 with kind choice, expected some of accuracy"),
    (CHOICE, {"stop": ["x"]}, "stop: given with kind choice, which does not use it"),
    (CHOICE, {"seed": 3}, "seed: given with shots 0, which does not use it"),
    (CHOICE, {"shots": 6}, "shots is 6, but there are 5 other examples"),
    (GENERATE, {"choices": ["x", "y"]}, "choices: given with kind generate"),
    (GENERATE, {"metrics": ["passes"]}, "program and the metric passes: found one without the other"),
    (GENERATE, {"program": "x", "metrics": ["f1"]}, "program and the metric passes: found one without the other"),
    (GENERATE, {"answer": "right"}, "field right is 0; expected text, or a list of texts"),
]


HALF = "\ud83d"


@pytest.mark.parametrize(
    ("config", "changes", "example", "message"),
    [
        (CHOICE, {}, {"q": HALF}, "data.jsonl:2: prompt holds half of a surrogate pair"),
        (CHOICE, {}, {"a": HALF}, r"data.jsonl:2: choices\[0\] holds half of a surrogate pair"),
        (
            CHOICE,
            {"choices": [], "choices_field": "list"},
            {"list": ["x", HALF]},
            "data.jsonl:2: choice holds half of a surrogate pair",
        ),
        (GENERATE, {}, {"text": HALF}, "data.jsonl:2: field text holds half of a surrogate pair"),
        (
            GENERATE,
            {"program": "{completion} {a}"},
            {"a": HALF},
            "data.jsonl:2: program holds half of a surrogate pair",
        ),
        (GENERATE, {"program": "{completion} {nothing}"}, {}, "data.jsonl:1: no field nothing, which program asks for"),
    ],
)
def test_texts_that_no_tokenizer_takes_are_named_before_anything_is_done(tmp_path, config, changes, example, message):
    examples = [EXAMPLES[0], {**EXAMPLES[1], **example}]
    with pytest.raises(InputError, match=message):
        load(tmp_path, config, examples, **changes)
    harmless = [EXAMPLES[0], {**EXAMPLES[1], "unused": HALF}]
    assert len(load(tmp_path, CHOICE, harmless).examples) == 2


@pytest.mark.parametrize(("config", "changes", "message"), BAD)
def test_bad_task_files_are_told_in_one_line(tmp_path, config, changes, message):
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path, config, **changes)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


SHIPPED = Path(__file__).parents[4] / "configs" / "tasks"
SAMPLES = {
    "c3": ("c3-m-dev.json", [[["文。"], [{"question": "问？", "choice": ["甲", "乙"], "answer": "乙"}], "1"]]),
    "cmnli": ("dev.json", {"sentence1": "今天下雨", "sentence2": "天气不好", "label": "neutral"}),
    "chid": (
        "dev.json",
        {"content": "他#idiom#。", "groundTruth": ["一心一意"], "candidates": [["三心二意", "一心一意"]]},
    ),
    "cmrc2018": (
        "cmrc2018_dev.json",
        {
            "data": [
                {"paragraphs": [{"context": "文", "qas": [{"id": "1", "question": "问", "answers": [{"text": "文"}]}]}]}
            ]
        },
    ),
    "humaneval": (
        "HumanEval.jsonl",
        {
            "prompt": "def f():\n",
            "canonical_solution": "    return 1\n",
            "test": "def check(c): assert c() == 1",
            "entry_point": "f",
        },
    ),
}
PROMPTS = {
    "c3": ("文。\n问题：问？\n答案：", "乙"),
    "cmnli": ("今天下雨？", "也许，天气不好"),
    "chid": ("填成语：他", "一心一意。"),
    "cmrc2018": ("文\n问题：问\n答案：", "文"),
    "humaneval": ("def f():\n", "    return 1\n"),
}


def test_every_shipped_task_is_tried():
    assert {path.stem for path in SHIPPED.glob("*.yaml")} == set(SAMPLES)


@pytest.mark.parametrize("name", SAMPLES)
def test_shipped_tasks_read_files_of_their_form(tmp_path, name):
    file, content = SAMPLES[name]
    (tmp_path / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    task = load_task(str(SHIPPED / f"{name}.yaml"), str(tmp_path))
    assert [(example.prompt, example.solution) for example in task.examples] == [PROMPTS[name]]
