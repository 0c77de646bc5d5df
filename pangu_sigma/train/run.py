"""One training run, from configuration to summary: `pangu-sigma train`."""

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from locmoe_ops.errors import InputError
from pangu_sigma.checkpoint.folders import finished, prune, set_aside_after
from pangu_sigma.checkpoint.resume import (
    CheckpointLoader,
    ResumePoint,
    ResumeSource,
    find_source,
    restores_weights,
)
from pangu_sigma.checkpoint.state import rank_location, writing_ranks
from pangu_sigma.checkpoint.writer import CheckpointWriter, Retention, WritingJob
from pangu_sigma.config.derived import has_experts, last_step, router_names
from pangu_sigma.config.load import save_config
from pangu_sigma.config.schema import Config
from pangu_sigma.data.cooccurrence import nodes_of_ids
from pangu_sigma.data.dataset import PreparedData
from pangu_sigma.data.domains import check_domains
from pangu_sigma.data.known_routes import KnownRoutes
from pangu_sigma.data.loader import BatchLoader, create_loader
from pangu_sigma.data.vocabulary import vocabulary
from pangu_sigma.errors import RunDiverged
from pangu_sigma.metrics.window import summarise
from pangu_sigma.model.capacity_rules import resolve_layout
from pangu_sigma.model.pangu_sigma import sparse_layers
from pangu_sigma.model.sparse import homes_of_ids, locality_advice
from pangu_sigma.runtime.environment import add_launch, describe_launch
from pangu_sigma.runtime.files import set_aside
from pangu_sigma.runtime.host_sum import HostSum
from pangu_sigma.runtime.launch import read_launch
from pangu_sigma.runtime.locks import FolderLock
from pangu_sigma.runtime.messages import end_log, keep_log
from pangu_sigma.runtime.messages import log as messages
from pangu_sigma.runtime.run_folder import CHECKPOINTS, CONFIG, ENVIRONMENT, METRICS, SUMMARY, is_saved_config
from pangu_sigma.runtime.runtime import Runtime, start_runtime
from pangu_sigma.runtime.strict_json import dumps
from pangu_sigma.runtime.versions import code_version
from pangu_sigma.train.console import next_lines
from pangu_sigma.train.cosines import FILE as COSINES
from pangu_sigma.train.cosines import measure_cosines
from pangu_sigma.train.divergence import Verdict
from pangu_sigma.train.engine import TrainEngine
from pangu_sigma.train.loop import Saving, StopRequest, TrainingLoop
from pangu_sigma.train.metrics import MetricsLog, write_atomically
from pangu_sigma.train.trackers import check_trackers, open_trackers
from pangu_sigma.train.validation import validation_unigram

FINISHED = "finished"  # the status of a run in summary.json, or else `divergence.DIVERGED`


def train(config: Config) -> int:
    """Trains as configured, alone or as one rank of a job; returns the exit status.

    Nothing is written before everything that can be checked has been.

    Raises:
        InputError: data, checkpoint or output folder do not fit the configuration.
        CollectiveError: another rank was lost or did not come.
        RunDiverged: on all ranks alike, after what there is to keep was written.
    """
    check_trackers(config)
    with ExitStack() as held:
        held.enter_context(FolderLock(Path(config.data.path), "data.path", shared=True))
        data = PreparedData.open(config.data.path)
        words = vocabulary(config, data)
        check_domains(config, words.domains)
        if read_launch().rank == 0:
            held.enter_context(FolderLock(Path(config.train.output_dir), "train.output_dir"))
        source = find_source(config, data)
        runtime = held.enter_context(start_runtime(config))
        topology = runtime.topology
        layout = resolve_layout(config, topology)
        words = replace(words, id_nodes=nodes_of_ids(config, data, words.vocab_size, layout))
        loader = create_loader(config, data, layout, runtime.rank // topology.tensor, topology.data)
        held.enter_context(closing(loader))
        engine = TrainEngine(config, runtime, words, draw=not restores_weights(source, runtime))
        runtime.check_groups()
        diverged = _run(config, runtime, data, loader, engine, source)
    if diverged:  # raised here, when the ranks have parted in good order
        raise RunDiverged(diverged)
    end_log()
    return 0


def _run(
    config: Config, runtime: Runtime, data: PreparedData, loader: BatchLoader, engine: TrainEngine, source: ResumeSource
) -> str:
    """Trains and writes what a run leaves; returns the message of a run that diverged, else nothing."""
    code = code_version() if runtime.is_first else ""  # now: the files may change during the run
    place = rank_location(config, runtime)
    start = CheckpointLoader(config, runtime, data, engine).load(source)
    if not (engine.drawn or start.checkpoint or source.initial):
        raise InputError(
            f"checkpoint.resume: the checkpoints in {config.train.output_dir} were there when the job began and are "
            "gone; expected nobody to change that folder during a run"
        )
    if loader.by_routes:  # now: a checkpoint brings its own maps
        homes = homes_of_ids(config, engine.context.layout, sparse_layers(engine.network))
        loader.follow(KnownRoutes(data, engine.context.domain_groups, homes))
    folder = Path(config.train.output_dir) / CHECKPOINTS
    with StopRequest() as stop, _checkpoint_writer(config, runtime, data, folder) as writer:
        loop = TrainingLoop(config, runtime, engine, loader, Saving(writer, place, data), stop)
        launch = describe_launch(runtime.topology, runtime.chip, code, start.step) if runtime.is_first else {}
        log = _open_log(config, start.step, launch) if runtime.is_first else None
        keep_log(config.train.output_dir)
        if log is not None:
            for line in (*_headline(config, engine, data, runtime.world_size, start, source), *loader.notes):
                messages.info("%s", line)
        loop.run(start.step, log)
        if loop.stopped and loop.verdict is None:
            writer.wait()
            if log is not None:
                _close_stopped(config, log, loop.saved_step)
            return ""
        cosines = None if loop.verdict else _cosines(config, runtime, loader, engine)
        unigram = validation_unigram(data, loop.validation.batches, HostSum(runtime.collectives, "metrics/unigram"))
        writer.wait()
        message = ""
        if loop.verdict:
            runtime.collectives.barrier()  # what any rank had to write is there: all see the same checkpoints
            sound = [path for step, path in finished(folder) if loop.verdict.is_sound(step)]
            newest = f"the newest checkpoint from before is {sound[-1]}" if sound else ""
            newest = newest or f"{folder} holds no checkpoint from before"
            message = loop.verdict.line(newest, config.runtime.precision == "fp16")
        if log is not None:
            log.close(cosines)
            _tidy(config, loop.verdict)
            of_run = {
                "code": code,
                "unigram_perplexity": unigram,
                "time/checkpoint_stall(s)": writer.stalled_s,
                "time/checkpoint_writing(s)": writer.written_s,
            }
            _write_results(config, log.records, of_run, cosines, loop.verdict)
            if not loop.verdict:
                for line in next_lines(config.train.output_dir, data.domains):
                    messages.info("%s", line)
        return message


def _checkpoint_writer(config: Config, runtime: Runtime, data: PreparedData, folder: Path) -> CheckpointWriter:
    options = config.checkpoint
    job = WritingJob(
        runtime.rank,
        writing_ranks(runtime.topology),
        config.runtime.collective_timeout,
        runtime.collectives.barrier,
        lambda: None if runtime.mesh is None else runtime.mesh.failure,
    )
    # During the run there are two checkpoints at least: only the next step shows whether the newest weights are good.
    least = 2 if config.train.divergence_patience else 1
    retention = Retention(max(options.keep_last, least), options.keep_every)
    # Read now: data.path may be prepared anew during the run.
    files = {data.manifest.tokenizer_name: data.read_tokenizer()} if runtime.is_first else None
    return CheckpointWriter(folder, job, retention, options.asynchronous, files)


def _close_stopped(config: Config, log: MetricsLog, saved_step: int) -> None:
    """Ends a run that was requested to stop: what it has saved is whole, and there is no summary."""
    log.close()
    step = log.records[-1]["progress/step"]
    then = "checkpoint.resume=auto continues from there"
    if saved_step != step:
        then = "without a checkpoint, as its loss is not usable"
    messages.info("stopped after step %d, as requested; %s", step, then)
    _tidy(config, None)


def _tidy(config: Config, verdict: Optional[Verdict]) -> None:
    """At the end of a run: keeps as many checkpoints as the configuration says.

    Of a run that diverged all stay, but those from after the last usable loss are set aside, so that nothing resumes
    from them.
    """
    folder = Path(config.train.output_dir) / CHECKPOINTS
    if not folder.is_dir():
        return
    if verdict is None:
        prune(folder, config.checkpoint.keep_last, config.checkpoint.keep_every)
    elif not verdict.skipped:
        for path in set_aside_after(folder, verdict.last_good - 1):
            messages.info("%s: written when the run had diverged, set aside", path)


def _cosines(config: Config, runtime: Runtime, loader: BatchLoader, engine: TrainEngine) -> Optional[Dict[str, Any]]:
    """What the last step's first micro-batch shows, for `cosines.json`; None where there is to be no such file."""
    train = config.train
    if not (train.cosines and has_experts(config)) or last_step(config) < train.steps:
        return None
    batch = loader.step(train.steps - 1)[0]
    return measure_cosines(config, engine.routed_tokens(batch), len(batch.ids), runtime.collectives)


def _open_log(config: Config, start: int, launch: Mapping[str, Any]) -> MetricsLog:
    output = Path(config.train.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"train.output_dir: cannot make {output} ({error.strerror}); expected a writable place"
        ) from None
    try:
        for path in set_aside_after(output / CHECKPOINTS, start):
            messages.info("%s: of a later step than this run resumes from, set aside", path)
        if (output / CONFIG).exists() and not is_saved_config(output / CONFIG):
            messages.info("%s: the configuration that was there, set aside", set_aside(output / CONFIG))
        save_config(config, output / CONFIG)
        add_launch(output / ENVIRONMENT, launch)
        return MetricsLog(output / METRICS, start, open_trackers(config, start, launch))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(
            f"train.output_dir: cannot write in {output} ({reason}); expected a writable place on a disk with room"
        ) from None


def _headline(
    config: Config,
    engine: TrainEngine,
    data: PreparedData,
    world_size: int,
    start: ResumePoint,
    source: ResumeSource,
) -> List[str]:
    """What rank 0 prints before the first step: the model, the ranks, where the weights come from, and advice."""
    own = sum(p.size for p in engine.parameters) / 1e6
    model = config.model
    tensor = f", tensor parallel {config.parallel.tensor}" if config.parallel.tensor > 1 else ""
    lines = [
        f"{router_names(config)}: {model.dense_layers} dense + {model.sparse_layers} sparse layers, "
        f"hidden {model.hidden_size}, {config.moe.num_experts} experts",
        f"{own:.1f}M parameters on this rank; {', '.join(data.domains)}; "
        f"{world_size} rank{'s' * (world_size != 1)}, expert parallel {config.parallel.expert}{tensor}",
    ]
    if start.checkpoint is not None:
        lines.append(f"resuming from {start.checkpoint}")
    elif source.initial is not None:
        lines.append(f"beginning with the weights of {source.initial}")
    return lines + (locality_advice(engine.context) if has_experts(config) else [])


def _write_results(
    config: Config,
    records: List[Dict[str, Any]],
    of_run: Dict[str, Any],
    cosines: Optional[Dict[str, Any]],
    verdict: Optional[Verdict],
) -> None:
    """Writes cosines.json and summary.json, unless the run ended early as if cut off (`train.stop_after`)."""
    if not records or (verdict is None and records[-1]["progress/step"] < config.train.steps):
        return
    output = Path(config.train.output_dir)
    if cosines is not None:
        write_atomically(output / COSINES, dumps(cosines) + "\n")
    summary = {
        "router": router_names(config),
        "status": FINISHED,
        **of_run,
        **summarise(records),
        **({} if verdict is None else verdict.metrics()),
    }
    write_atomically(output / SUMMARY, dumps(summary, indent=1) + "\n")
