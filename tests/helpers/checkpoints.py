"""What a run saved, for comparison with another's."""

from pangu_sigma.checkpoint.reader import CheckpointReader


def saved_tensors(output, name, step):
    """Every tensor and counter of OUTPUT/NAME's checkpoint of `step`, put together from all ranks."""
    with CheckpointReader.open(output / name / "checkpoints" / f"step_{step}") as reader:
        return {**{name: reader.read(name) for name in reader.names()}, **reader.header.scalars}
