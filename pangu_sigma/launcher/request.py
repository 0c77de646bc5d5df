"""What the user asks of the launcher, as the command line has it: what the ranks are to run, where, and how."""

from dataclasses import dataclass
from typing import List, Optional, Tuple

from locmoe_ops.errors import InputError
from locmoe_ops.json_file import whole_number
from pangu_sigma.checkpoint.locate import MODEL, SETTINGS, TRAINING, read_configuration
from pangu_sigma.config.schema import Config
from pangu_sigma.config.validate import validate

MSRUN, RANK_TABLE = "msrun", "rank-table"
ALL_TO_ALL, SELF_TEST = "all-to-all", "self-test"
STOP_TIMEOUT_S = 120
SSH = "ssh -o BatchMode=yes -o ConnectTimeout=10"  # there is nobody to ask for a password


@dataclass(frozen=True)
class RankCommand:
    """What every rank runs.

    Attributes:
        config: path of the configuration.
        overrides: KEY.PATH=VALUE, in order.
        bench: what to measure in place of training, `ALL_TO_ALL` or `SELF_TEST`; None: nothing.
        generate: continue prompts in place of training.
        further: arguments of what takes the place of training.
    """

    config: str
    overrides: Tuple[str, ...] = ()
    bench: Optional[str] = None
    generate: bool = False
    further: Tuple[str, ...] = ()

    def words(self) -> List[str]:
        """The words after `python` that make a process a rank."""
        command = ["generate"] if self.generate else ["bench", self.bench] if self.bench else ["train"]
        if self.bench == SELF_TEST:
            command = ["doctor", "--self-test"]
        return ["-m", "pangu_sigma", *command, *self.arguments(), *self.further]

    def arguments(self) -> List[str]:
        """The configuration and its overrides."""
        return [self.config, *(word for override in self.overrides for word in ("--set", override))]

    def read_config(self, ranks: int) -> Config:
        """The configuration, checked for so many ranks. Raises InputError: it does not fit."""
        use = MODEL if self.generate else SETTINGS if self.bench else TRAINING
        config = read_configuration(self.config, self.overrides, use)
        validate(config, ranks)
        return config


@dataclass(frozen=True)
class Placement:
    """Where the ranks are, each None unless the command line says it; numbers as the user wrote them.

    Attributes:
        ranks_per_node, nodes, node_rank, master_addr, node_addr, nodes_file: for `MSRUN`.
        rank_table, server: for `RANK_TABLE`.
    """

    ranks_per_node: Optional[str] = None
    nodes: Optional[str] = None
    node_rank: Optional[str] = None
    master_addr: Optional[str] = None
    node_addr: Optional[str] = None
    nodes_file: Optional[str] = None
    rank_table: Optional[str] = None
    server: Optional[str] = None


@dataclass(frozen=True)
class LaunchRequest:
    """All of it.

    Attributes:
        command, placement: what runs, and where.
        launcher: `MSRUN` or `RANK_TABLE`.
        port: on which the ranks meet; None: a free one.
        log_dir: of the ranks' logs; None: a new folder of the run's.
        env_file: shell file to read first.
        stop_timeout: seconds after which ranks that were told to stop are killed.
        bind_core: `msrun --bind_core`: auto, or a JSON object.
        ssh: start the job on all nodes from here, by `ssh_command`.
        leash: standard input gives LOCMOE_MESH_SECRET, and its end tells the job to stop.
        dry_run: show what would be started.
    """

    command: RankCommand
    placement: Placement = Placement()
    launcher: str = MSRUN
    port: Optional[str] = None
    log_dir: Optional[str] = None
    env_file: Optional[str] = None
    stop_timeout: int = STOP_TIMEOUT_S
    bind_core: Optional[str] = None
    ssh: bool = False
    ssh_command: str = SSH
    leash: bool = False
    dry_run: bool = False


def number_of(option: str, text: str, lowest: int, highest: int, what: str = "a number") -> int:
    """The number that the user gave.

    Args:
        option: by which it was given, for the message.
        text: as it was given.
        lowest, highest: what it may be.
        what: it is, for the message.

    Raises:
        InputError: it is none, or none of these.
    """
    number = whole_number(text)
    if number is None or not lowest <= number <= highest or str(number) != text:
        raise InputError(f"{option}: found '{text[:60]}', expected {what} from {lowest} to {highest}")
    return number


def port_of(text: str) -> int:
    """The port that ranks meet on. Raises InputError: it is none that a user may have."""
    return number_of("--port", text, 1024, 65535)
