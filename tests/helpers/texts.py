"""Texts that a tokenizer must give back as they were."""

from pangu_sigma.data.tokenizer import END_OF_TEXT, domain_tag

TEXTS = [
    "the cat sat on the mat\n\n    and the dog\tsat too\r\n",
    "天下大势，分久必合，合久必分。",
    "def f(x):\n    return x + 1\n",
]
TRICKY = [
    "",
    " ",
    "   a  b   ",
    "\u2581",
    "a\u2581\u2581 b \u2581",
    "\0\0x",
    "line\r\nline\rline\n\n\n",
    "\ufeffmark",
    END_OF_TEXT + domain_tag("en"),
    "<0x41><unk><s></s><pad>",
    "\u2585\u2047\ufffd",
    "e\u0301 \ufb01 \uff21\u3000",
    "\U0001f600\U0010ffff",
    "\u2028\x85\x0b\x1c",
]
