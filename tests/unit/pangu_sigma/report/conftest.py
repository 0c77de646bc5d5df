"""Run folders as they are while a run goes on and after it."""

import json
import os

import pytest
import yaml

from pangu_sigma.config.load import config_from_dict, to_dict
from pangu_sigma.report.collect import collect

LAST_WRITTEN_S = 1_700_000_000


@pytest.fixture
def write_run_folder(tmp_path):
    """Leaves a run of 10 steps (or as `settings` say) in tmp_path/name, with a summary if `finished`; returns the
    folder.
    """

    def _write(name, records, finished=False, cosines=None, **settings):
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        raw = {
            "model": {"sequence_length": 32},
            "optimizer": {"warmup_steps": 1},
            "moe": {"num_experts": 8},
            "train": {"steps": 10, "global_batch_size": 4, "output_dir": str(folder)},
        }
        for key, value in settings.items():
            section, _, option = key.partition("__")
            raw.setdefault(section, {})[option] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config_from_dict(raw))))
        metrics = folder / "metrics.jsonl"
        metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
        os.utime(metrics, (LAST_WRITTEN_S, LAST_WRITTEN_S))
        if finished:
            (folder / "summary.json").write_text('{"router": "locmoe", "unigram_perplexity": 900.0}')
        if cosines:
            (folder / "cosines.json").write_text(json.dumps(cosines))
        return folder

    return _write


@pytest.fixture
def data_of(make_plan, write_run, tmp_path):
    """Collects a comparison of hash and locmoe whose runs have these records (by variant, or for both), and these
    files.
    """

    def _collect(records, files=(), **changed):
        plan = make_plan(**changed)
        for run in plan.runs:
            write_run(run, records[run.variant] if isinstance(records, dict) else records, **dict(files))
        return collect(plan, tmp_path / "out")

    return _collect
