"""Small files in the formats of the public sets."""

import json

import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.evaluation.readers import READERS


def read(tmp_path, reader, content, name="data.json"):
    """`content`: text, or what the file holds as JSON (a list of lines for readers of lines)."""
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    (tmp_path / name).write_text(text, encoding="utf-8")
    return list(READERS[reader](tmp_path / name))


def lines(*objects):
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in objects)


def test_lines_and_lists_of_objects(tmp_path):
    found = read(tmp_path, "jsonl", '{"a": 1}\n\n{"a": "二"}')
    assert [values for values, _ in found] == [{"a": 1}, {"a": "二"}] and found[1][1].endswith("data.json:3")
    assert [values for values, _ in read(tmp_path, "json", [{"a": 1}, {"a": 2}])] == [{"a": 1}, {"a": 2}]


def test_examples_of_every_system(tmp_path):
    found = read(tmp_path, "jsonl", '\ufeff{"a": "x\u2028y\u0085z"}\r\n \r\n{"a": "\\ud83d\\ude00"}')
    assert [values["a"] for values, _ in found] == ["x\u2028y\u0085z", "\U0001f600"] and found[1][1].endswith(
        "data.json:3"
    )


def test_c3(tmp_path):
    content = [
        [
            ["男：你好。", "女：你好！"],
            [
                {"question": "他们在做什么？", "choice": ["问好", "吵架"], "answer": "问好"},
                {"question": "几个人？", "choice": ["一", "二", "三"], "answer": "二"},
            ],
            "1-1",
        ]
    ]
    found = [values for values, _ in read(tmp_path, "c3", content)]
    assert [values["answer"] for values in found] == ["问好", "二"] and found[1]["choices"] == ["一", "二", "三"]
    assert found[0]["document"] == "男：你好。\n女：你好！" and found[0]["id"] == "1-1"


def test_cmnli_passes_over_what_nobody_agreed_on(tmp_path):
    content = lines(*({"sentence1": "a", "sentence2": "b", "label": label} for label in ("neutral", "-", "entailment")))
    assert [values["label"] for values, _ in read(tmp_path, "cmnli", content)] == ["neutral", "entailment"]


BLANKS = [
    {"before": "甲", "after": "乙____丙", "choices": ["一心一意", "三心二意"], "answer": "一心一意"},
    {"before": "甲____乙", "after": "丙", "choices": ["画蛇添足", "守株待兔"], "answer": "守株待兔"},
]


def test_chid_of_its_authors(tmp_path):
    content = lines(
        {
            "content": "甲#idiom#乙#idiom#丙",
            "realCount": 2,
            "groundTruth": ["一心一意", "守株待兔"],
            "candidates": [blank["choices"] for blank in BLANKS],
        }
    )
    assert [values for values, _ in read(tmp_path, "chid", content)] == BLANKS


def test_chid_of_clue(tmp_path):
    (tmp_path / "data_answer.json").write_text('{"#idiom000001#": 1, "#idiom000002#": 0, "#idiom000003#": 1}')
    content = lines(
        {"content": ["甲#idiom000001#乙", "丙#idiom000002#丁#idiom000003#"], "candidates": ["画蛇添足", "守株待兔"]}
    )
    found = [values for values, _ in read(tmp_path, "chid", content)]
    assert [(values["before"], values["after"], values["answer"]) for values in found] == [
        ("甲", "乙", 1),
        ("丙", "丁____", 0),
        ("丙____丁", "", 1),
    ]


def test_cmrc2018(tmp_path):
    answers = [
        {"text": "1963年", "answer_start": 3},
        {"text": "1963年", "answer_start": 3},
        {"text": "1963", "answer_start": 3},
    ]
    content = {
        "version": "v1.0",
        "data": [
            {
                "title": "t",
                "paragraphs": [
                    {
                        "id": "P",
                        "context": "于是在1963年。",
                        "qas": [{"id": "Q0", "question": "何时？", "answers": answers}],
                    }
                ],
            }
        ],
    }
    ((values, where),) = read(tmp_path, "cmrc2018", content)
    assert values == {
        "context": "于是在1963年。",
        "question": "何时？",
        "answers": ["1963年", "1963"],
        "id": "Q0",
    } and where.endswith("Q0")


def test_humaneval(tmp_path):
    item = {
        "task_id": "T/0",
        "prompt": "def f():\n",
        "canonical_solution": "    return 1\n",
        "test": "def check(f): ...",
        "entry_point": "f",
    }
    assert [values for values, _ in read(tmp_path, "humaneval", lines(item))] == [item]


BAD = [
    ("jsonl", "", "holds no examples"),
    ("jsonl", '{"a": 1}\n[2]\n', r"data.json:2: found a list; expected an example"),
    ("jsonl", '{"a": 1}\n{"a"\n', r"data.json:2: broken JSON"),
    ("jsonl", '\n{"a": ' + "7" * 5000 + "}", r"data.json:2: broken JSON \(an integer of 5000 digits\)"),
    ("jsonl", "[" * 50000, r"data.json:1: broken JSON \(nested too deeply\)"),
    ("json", "[" + "7" * 5000 + "]", r"data.json: not valid JSON \(an integer of 5000 digits\)"),
    ("json", "[" * 50000, r"data.json: not valid JSON \(nested too deeply\)"),
    ("json", '[{"a": 1, "a": 2}]', "'a' is given twice"),
    (
        "cmrc2018",
        {
            "data": [
                {"paragraphs": [{"context": "c", "qas": [{"id": "Q", "question": "q", "answers": [{"text": ["a"]}]}]}]}
            ]
        },
        "Q: found a list, expected text",
    ),
    ("json", "{}", "found an object, expected a list"),
    ("c3", [[["d"], [{"question": "q", "choice": ["a"]}], "id"]], r"\[0\] question 0: no field answer"),
    ("c3", [["d"]], r"\[0\]: found a list, expected \[lines, questions, id\]"),
    ("cmnli", lines({"sentence1": "a"}), "data.json:1: no field sentence2"),
    (
        "chid",
        lines({"content": "#idiom#", "candidates": [], "groundTruth": []}),
        "blank 0: no candidates or groundTruth",
    ),
    ("chid", lines({"content": ["#idiom1#"], "candidates": []}), "data_answer.json: cannot be read"),
    ("cmrc2018", {"data": [{"paragraphs": [{"context": "c"}]}]}, "no field qas"),
    ("humaneval", lines({"prompt": "p"}), "no field canonical_solution"),
]


@pytest.mark.parametrize(("reader", "content", "message"), BAD)
def test_what_does_not_fit_is_named(tmp_path, reader, content, message):
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, reader, content)
    assert "\n" not in str(error.value)
