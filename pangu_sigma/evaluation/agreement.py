"""How far an answer agrees with those that are right: exact match and F1 over units of text.

A unit is a Chinese character (or kana), or a word or number of other scripts. Case, the width of letters, punctuation
and white space play no part. F1 is SQuAD's (arXiv 1606.05250) on these units, without dropping English articles; the
official script of CMRC 2018 has another one, by the longest common piece of text.
"""

import re
import unicodedata
from collections import Counter
from typing import List, Sequence

_CHARACTER = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_UNIT = re.compile(rf"[{_CHARACTER}]|[^\W_{_CHARACTER}]+")


def units(text: str) -> List[str]:
    return _UNIT.findall(unicodedata.normalize("NFKC", text).casefold())


def exact_match(found: str, answers: Sequence[str]) -> bool:
    """Whether the units are those of one of the answers, in order."""
    return any(units(found) == units(answer) for answer in answers)


def f1(found: str, answers: Sequence[str]) -> float:
    """The best over the answers of 2PR / (P + R), where units count as often as they occur. Two texts without units
    agree.
    """
    return max(_f1(units(found), units(answer)) for answer in answers)


def _f1(found: List[str], answer: List[str]) -> float:
    if not found or not answer:
        return float(found == answer)
    common = sum((Counter(found) & Counter(answer)).values())
    return 2.0 * common / (len(found) + len(answer))
