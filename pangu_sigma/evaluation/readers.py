"""Files of examples. Each reader yields an example's fields and where it stands.

The formats of the public sets are those of the files as their authors distribute them. Those of C3, ChID and HumanEval
were written from the descriptions in their repositories, those of CMNLI, CMRC 2018 and CLUE's ChID from memory. All
were tried on small files of the same shape, not on the sets themselves.
"""

import re
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import parse_json, read_text
from pangu_sigma.data.jsonl import kind, read_records

Values = Dict[str, Any]
Examples = Iterator[Tuple[Values, str]]

_BLANK = re.compile(r"#idiom\d*#")
_OTHER_BLANK = "____"


def read_jsonl(path: Path) -> Examples:
    """One object a line."""
    found = False
    for record in read_records(path, "an example, one JSON object a line"):
        found = True
        yield record
    if not found:
        raise InputError(f"{path}: holds no examples; expected one JSON object a line")


def read_json(path: Path) -> Examples:
    """A list of objects."""
    content = _content(path)
    if not isinstance(content, list) or not content:
        raise InputError(f"{path}: found {kind(content)}, expected a list of objects")
    for number, item in enumerate(content):
        yield _object(item, f"{path}[{number}]"), f"{path}[{number}]"


def read_c3(path: Path) -> Examples:
    """C3: a list of [lines of a document, questions, id]. Fields: document, question, choices, answer (a text), id."""
    content = _content(path)
    for number, entry in enumerate(_list(content, str(path))):
        where = f"{path}[{number}]"
        if not isinstance(entry, list) or len(entry) < 2:
            raise InputError(f"{where}: found {kind(entry)}, expected [lines, questions, id]")
        for q, question in enumerate(_list(entry[1], where)):
            here = f"{where} question {q}"
            item = _with(_object(question, here), here, "question", "choice", "answer")
            yield (
                {
                    "document": "\n".join(map(str, _list(entry[0], where))),
                    "question": item["question"],
                    "choices": item["choice"],
                    "answer": item["answer"],
                    "id": entry[2] if len(entry) > 2 else number,
                },
                here,
            )


def read_cmnli(path: Path) -> Examples:
    """CMNLI: one object a line of sentence1, sentence2 and label; those without an agreed label (`-`) are left out."""
    for values, where in read_jsonl(path):
        if _with(values, where, "sentence1", "sentence2", "label")["label"] != "-":
            yield values, where


def read_chid(path: Path) -> Examples:
    """ChID: one object a line. Either as its authors distribute it: content, and for each blank groundTruth and
    candidates. Or as in CLUE: content is a list of passages, there is one list of candidates, and
    `<stem>_answer.json` in the same folder holds the number for each blank.

    An example is a blank. Fields: before, after (the text around it; other blanks are `____`), choices, answer.
    """
    keys: Values = {}
    for values, where in read_jsonl(path):
        _with(values, where, "content", "candidates")
        original = "groundTruth" in values
        if not original and not keys:
            answers = path.with_name(f"{path.stem}_answer.json")
            keys = _object(_content(answers), str(answers))
        number = 0
        for passage in [values["content"]] if original else _list(values["content"], where):
            for blank in _BLANK.finditer(_string(passage, where)):
                here = f"{where} blank {number}"
                example: Values = {
                    "before": _BLANK.sub(_OTHER_BLANK, passage[: blank.start()]),
                    "after": _BLANK.sub(_OTHER_BLANK, passage[blank.end() :]),
                }
                if not original:
                    if blank[0] not in keys:
                        raise InputError(f"{here}: no answer for {blank[0]}; expected one in the answer file")
                    example.update(choices=values["candidates"], answer=keys[blank[0]])
                else:
                    try:
                        example.update(choices=values["candidates"][number], answer=values["groundTruth"][number])
                    except (IndexError, KeyError, TypeError):
                        raise InputError(
                            f"{here}: no candidates or groundTruth for it; expected one of each a blank"
                        ) from None
                yield example, here
                number += 1


def read_cmrc2018(path: Path) -> Examples:
    """CMRC 2018 in SQuAD's style: data > paragraphs > qas. Fields: context, question, answers (distinct texts), id."""
    content = _with(_object(_content(path), str(path)), str(path), "data")
    for article in _list(content["data"], str(path)):
        for paragraph in _list(_with(_object(article, str(path)), str(path), "paragraphs")["paragraphs"], str(path)):
            _with(_object(paragraph, str(path)), str(path), "context", "qas")
            for item in _list(paragraph["qas"], str(path)):
                _with(_object(item, str(path)), str(path), "id", "question", "answers")
                where = f"{path} {item['id']}"
                answers = [
                    _string(_with(_object(one, where), where, "text")["text"], where)
                    for one in _list(item["answers"], where)
                ]
                yield (
                    {
                        "context": paragraph["context"],
                        "question": item["question"],
                        "answers": list(dict.fromkeys(answers)),
                        "id": item["id"],
                    },
                    where,
                )


def read_humaneval(path: Path) -> Examples:
    """HumanEval and sets like it: one object a line of task_id, prompt, canonical_solution, test and entry_point."""
    for values, where in read_jsonl(path):
        yield _with(values, where, "prompt", "canonical_solution", "test", "entry_point"), where


READERS: Dict[str, Callable[[Path], Examples]] = {
    "jsonl": read_jsonl,
    "json": read_json,
    "c3": read_c3,
    "cmnli": read_cmnli,
    "chid": read_chid,
    "cmrc2018": read_cmrc2018,
    "humaneval": read_humaneval,
}


def _content(path: Path) -> Any:
    """What a file of one JSON value holds."""
    return parse_json(read_text(path, "a file of examples"), str(path), "examples")


def _object(value: Any, where: str) -> Values:
    if not isinstance(value, dict):
        raise InputError(f"{where}: found {kind(value)}, expected an object")
    return value


def _list(value: Any, where: str) -> List[Any]:
    if not isinstance(value, list):
        raise InputError(f"{where}: found {kind(value)}, expected a list")
    return value


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: found {kind(value)}, expected text")
    return value


def _with(values: Values, where: str, *names: str) -> Values:
    missing = [name for name in names if name not in values]
    if missing:
        raise InputError(f"{where}: no field {missing[0]}; expected the fields {', '.join(names)}")
    return values
