"""What a user of the API sees, with a small model of random weights."""

import numpy as np
import pytest

from locmoe_ops.errors import InputError
from pangu_sigma.inference.generator import Generator, SamplingSettings

GREEDY = SamplingSettings(max_new_tokens=9, temperature=0.0, stop_at_end=False)
WARM = SamplingSettings(max_new_tokens=9, temperature=1.5, top_p=0.9, seed=5, repetition_penalty=1.2, stop_at_end=False)


@pytest.fixture(scope="module")
def prompts(generator):
    """Five rows of different length; the second holds the end of a document, the last fills the model's length but for
    one.
    """
    end = generator.codec.tokenizer.end_of_text
    ids = np.random.default_rng(4).integers(260, 320, 31).tolist()
    return [ids[:3], [*ids[:5], end, *ids[5:9]], ids[4:5], [*ids[:7], end], ids]


DOMAINS = [0, 1, 0, 1, 1]


def _likeliest(generator, prompt, domain, count):
    """Greedy decoding without a cache: the whole row through the network of training for every token."""
    row = list(prompt)
    for _ in range(count):
        row.append(int(generator.logits(row, domain)[-1].argmax()))
    return row[len(prompt) :]


def test_greedy_output_is_that_of_whole_rows(generator, prompts):
    found = generator.generate(prompts, DOMAINS, GREEDY)
    assert [len(output) for output in found] == [
        9,
        9,
        9,
        9,
        2,
    ]  # 31 of 32 places are taken, and the last token is not read
    assert len({token for output in found for token in output}) > 9
    for output, prompt, domain in zip(found, prompts, DOMAINS):
        assert output == _likeliest(generator, prompt, domain, len(output))


def test_sampled_output_follows_from_seed_and_row_alone(generator, prompts):
    found = generator.generate(prompts, DOMAINS, WARM)
    assert generator.generate(prompts, DOMAINS, WARM) == found
    order = [4, 2, 0]  # other neighbours, another order, another number
    assert generator.generate([prompts[row] for row in order], [DOMAINS[row] for row in order], WARM) == [
        found[row] for row in order
    ]
    assert list(generator.stream(prompts[1], DOMAINS[1], WARM)) == found[1]  # alone
    twins = generator.generate([prompts[0], prompts[0]], [0, 0], WARM)
    assert twins[0] == found[0] != twins[1]
    other = generator.generate(prompts, DOMAINS, SamplingSettings(**{**vars(WARM), "seed": 6}))
    assert all(a != b for a, b in zip(found[:4], other))


def test_text_and_streamed_text_are_the_decoded_ids(generator):
    words = generator.codec
    ids = [words.tokenizer.domain_tags["two"], *words.tokenizer.encode("abcd")]
    assert words.encode("abcd", 1) == ids
    expected = words.tokenizer.decode(generator.generate([ids], [1], WARM)[0])
    assert generator.generate_text(["abcd"], ["two"], WARM) == [expected]
    assert "".join(generator.stream_text("abcd", "two", WARM)) == expected


@pytest.mark.parametrize(
    "prompts, domains, told",
    [
        ([[]], [0], "prompt 0 has 0 tokens; expected 1 to 32"),
        ([[5] * 33], [0], "prompt 0 has 33 tokens; expected 1 to 32"),
        ([[5], [400]], [0, 0], "token id 400 is out of range; expected 0 to 319"),
        ([[5]], [2], "domain id 2 is out of range; expected 0 to 1"),
        ([[5], [6]], [0], "1 domains for 2 prompts; expected one each"),
    ],
)
def test_prompts_that_do_not_fit(generator, prompts, domains, told):
    with pytest.raises(InputError, match=told):
        generator.generate(prompts, domains)


def test_domains_by_name_and_number(generator):
    assert [generator.codec.domain(given) for given in ("one", "two", "1", 0)] == [0, 1, 1, 0]
    for wrong in ("three", "2", 2, -1):
        with pytest.raises(InputError, match="expected one of one, two, or a number from 0 to 1"):
            generator.codec.domain(wrong)


def test_what_cannot_be_loaded(run_folder, tmp_path):
    with pytest.raises(InputError, match="expected a checkpoint folder"):
        Generator.load(tmp_path)
    (tmp_path / "other").write_bytes(b"none")
    with pytest.raises(InputError, match="other: not the file that .* was trained with"):
        Generator.load(run_folder, tokenizer=str(tmp_path / "other"))
