"""A job from what the user asks to its exit status."""

from typing import Optional

from pangu_sigma.launcher import msrun, rank_table
from pangu_sigma.launcher.environment import forget_ranks, rank_environment, read_env_file, settings_to_pass
from pangu_sigma.launcher.job import RankJob
from pangu_sigma.launcher.log_folder import LogFolder
from pangu_sigma.launcher.over_ssh import NodesOverSsh, hold_leash
from pangu_sigma.launcher.plan import check_command
from pangu_sigma.launcher.request import RANK_TABLE, LaunchRequest
from pangu_sigma.launcher.signals import Signals
from pangu_sigma.launcher.supervise import Supervision, supervise
from pangu_sigma.runtime.reporting import SUCCESS


def launch(request: LaunchRequest, supervision: Optional[Supervision]) -> int:
    """Starts a job's ranks, and returns when none of them is left.

    Args:
        request: what to start, and where.
        supervision: how often to start it again where it fails; None: never.

    Returns:
        The job's exit status: 0, 2 bad input, 1 any other failure, 130 interrupted, 143 told to end before it could
        end well.

    Raises:
        InputError: nothing is started, since something of the request is wrong.
    """
    if request.leash:
        hold_leash()
    forget_ranks()
    check_command(request.command)
    if supervision is not None:
        return supervise(request, supervision, launch_once)
    return launch_once(request, Signals())


def launch_once(request: LaunchRequest, signals: Signals) -> int:
    """As `launch`, without restarts. `signals`: those that come while there is a job to end."""
    settings = settings_to_pass()
    read_env_file(request.env_file)
    method = rank_table if request.launcher == RANK_TABLE else msrun
    plan = method.make_plan(request)
    logs = LogFolder(plan.config.train.output_dir, request.log_dir, plan.node_folder)
    if signals.status is not None:  # one came before there was anything to end
        return signals.status
    if request.ssh:
        nodes = NodesOverSsh(request, plan, logs, method.options_of_node, settings)
        if not request.dry_run:
            with signals:
                return nodes.run(signals)
        print("\n".join(nodes.shown()))
        return SUCCESS
    job: RankJob
    if request.launcher == RANK_TABLE:
        job = rank_table.RankTableJob(plan, logs, request.stop_timeout, rank_table.table_of(request))
    else:
        job = msrun.MsrunJob(plan, logs, request.stop_timeout, request.bind_core)
        if not request.dry_run:
            msrun.require_msrun(rank_environment(1)["PATH"])
    if request.dry_run:
        print("\n".join(job.shown()))
        return SUCCESS
    with signals:
        return job.run(signals)
