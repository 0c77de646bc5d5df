"""What runs leave, made up: everything that a report can show."""

import math

import pytest


@pytest.fixture(scope="session")
def made_up_records():
    return _records


@pytest.fixture(scope="session")
def made_up_cosines():
    return _cosines


def _records(place, seed, steps):
    """Records of the `place`-th variant: shorter steps and fewer bytes for later ones, the best text for the second."""
    step = 1.9 - 0.2 * place + 0.03 * seed
    communication, idle, overlapped = 0.55 * step - 0.1 * place, 0.12, 0.15 * place
    far, near = 25_100_000 // (place + 1), 12_500_000 + 4_000_000 * place
    records = []
    for number in range(1, steps + 1):
        counts = [[100.0 + 60 * math.sin(expert + place + number / 40) for expert in range(8)] for _ in range(2)]
        record = {
            "progress/step": number, "progress/epoch": number / 500, "loss/total": 7.0,
            "loss/task": 5.0 - 0.1 * place + 4 * math.exp(-number / 60), "time/step(s)": step + 0.01 * (number % 7),
            "time/communication(s)": communication, "time/idle(s)": idle, "time/overlapped(s)": overlapped,
            "time/compute(s)": step - communication - idle + overlapped, "time/all_to_all(s)": 0.8 * communication,
            "comm/intra_node(B)": near + 3_000_000, "comm/inter_node(B)": far + 6_000_000,
            "comm/all_to_all/intra_node(B)": near, "comm/gradient/intra_node(B)": 3_000_000,
            "comm/all_to_all/inter_node(B)": far, "comm/gradient/inter_node(B)": 6_000_000,
            "moe/drop_fraction": 0.02 * place, "moe/local_fraction": 0.5 + 0.1 * place, "moe/load_max_over_mean": 1.6,
            "moe/tokens_per_expert": counts, "throughput/tokens_per_second": 128 / step}
        if number % 20 == 0:
            perplexity = 230 + 4 * (place - 1) ** 2 + 2 * seed + 1400 * math.exp(-number / 60)
            record.update({"valid/loss": math.log(perplexity), "valid/perplexity": perplexity})
        records.append(record)
    return records


def _cosines(place):
    edges = [-1 + 0.1 * number for number in range(21)]

    def bell(middle, width):
        return {"edges": edges, "counts": [round(1000 * math.exp(-((edge + 0.05 - middle) / width) ** 2)) for edge in edges[:-1]]}

    return {"token_token_within": bell(0.3 + 0.1 * place, 0.3), "token_token_across": bell(0.1, 0.25), "token_gate": bell(0.02, 0.08)}
