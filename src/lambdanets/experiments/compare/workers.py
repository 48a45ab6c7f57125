"""Places where cells run: processes of this machine, jobs of a cluster by submitit; and the signals that stop them."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lambdanets.experiments.compare.study import StoppedError
from lambdanets.training.engine.signals import StopSignal

__all__ = ["Cluster", "ClusterExecutor", "check_stopped", "cluster_jobs", "processes", "stop_cells"]


def stop_cells() -> StopSignal:
    """Return a context in which the first SIGINT or SIGTERM raises a StoppedError where the main thread is.

    A library may drop what is raised in a callback, or turn it into another error: ``check_stopped`` raises it again.
    """
    return StopSignal(_raise_stopped)


def check_stopped(signals: StopSignal) -> None:
    """Raise a StoppedError if a signal came."""
    if signals.number is not None:
        _raise_stopped(signals.number)


def _raise_stopped(number: int) -> None:
    raise StoppedError(number)


@contextmanager
def processes(jobs: int) -> Iterator[Executor]:
    """Processes that run calls. After an error, or a signal, they are stopped, each at the end of a step."""
    executor = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _leave_interrupts_to_the_parent)
    try:
        yield executor
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        executor.shutdown(cancel_futures=True)
        raise
    executor.shutdown()


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class Cluster:
    """Cluster to which jobs are sent.

    Args:
        name: of submitit's executor: "slurm", or "local" for processes of this machine.
        parameters: of its jobs, as ``timeout_min``, ``gpus_per_node``, ``slurm_partition``.
    """

    name: str
    parameters: Mapping[str, bool | float | str] = field(default_factory=dict)


# Parameters of submitit that count something that a job must have.
_POSITIVE = {"timeout_min", "mem_gb", "nodes", "cpus_per_task", "tasks_per_node"}


@contextmanager
def cluster_jobs(cluster: Cluster, jobs: int, folder: Path) -> Iterator[ClusterExecutor]:
    """Jobs of a cluster that run calls. After an error, or a signal, they are cancelled.

    Args:
        cluster: where they are sent.
        jobs: how many at a time.
        folder: for submitit's files; all machines must see it.

    Raises:
        ValueError: if submitit is missing, or does not know the cluster, or refuses a parameter.
    """
    executor = ClusterExecutor(cluster, jobs, folder)
    try:
        yield executor
    except BaseException:
        executor.cancel()
        executor.shutdown(cancel_futures=True)
        raise
    executor.shutdown()


class ClusterExecutor(Executor):
    """Each call is a job, for which a thread waits; a future has what the first of its tasks returned.

    It raises a ChildProcessError if the job ended without a result, a ValueError if it could not be sent.
    """

    def __init__(self, cluster: Cluster, jobs: int, folder: Path) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ValueError(
                f"--cluster {cluster.name} needs the package submitit: pip install 'lambdanets[cluster]'"
            ) from error
        self._name, self._uncompleted = cluster.name, submitit.core.utils.UncompletedJobError
        # Submitit takes "" as a question which one there is; its "debug" runs jobs within this process.
        if cluster.name not in ("slurm", "local", "debug"):
            raise ValueError(f"--cluster is {cluster.name!r}; give slurm, or local for processes of this machine")
        try:
            self._submitit = submitit.AutoExecutor(folder, cluster=cluster.name)
            self._submitit.update_parameters(name="lambdanets")
        except (ValueError, RuntimeError) as error:
            remedy = "start it on a machine of the cluster, or give local for processes of this machine"
            raise ValueError(f"--cluster {cluster.name}: {error}; {remedy}") from error
        for name, value in cluster.parameters.items():
            self._set(name, value)
        self._threads = ThreadPoolExecutor(jobs)
        self._jobs: list[Any] = []
        self._guard, self._cancelled = threading.Lock(), False

    def _set(self, name: str, value: bool | float | str) -> None:
        remedy = "give a parameter of submitit's AutoExecutor, as timeout_min=600, mem_gb=7.5 or slurm_partition=NAME"
        general = name.removeprefix(f"{self._name}_")
        positive = general in _POSITIVE
        if isinstance(value, int | float) and (value <= 0 if positive else value < 0):
            raise ValueError(f"--job {name}={value} must be {'more than' if positive else 'at least'} 0; {remedy}")
        try:
            self._submitit.update_parameters(**{name: value})
        except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
            said = str(error).partition("\n")[0]
            raise ValueError(f"--job {name}={value} is refused by submitit ({said}); {remedy}") from error

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call in a job, in all of its tasks together."""
        return self._threads.submit(self._run, _in_all_tasks, call, args, kwargs)

    def submit_alone(self, call: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Run a call in the first task of a job; its others end at once."""
        return self._threads.submit(self._run, _in_first_task, call, args, {})

    def _run(
        self, way: Callable[..., Any], call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        try:
            job = self._submitit.submit(way, call, args, kwargs)
        except (AssertionError, OSError, RuntimeError, ValueError) as error:
            raise ValueError(f"--cluster {self._name} takes no job: {error}; see to it and to each --job") from error
        with self._guard:
            self._jobs.append(job)
            if self._cancelled:  # while it was sent
                job.cancel(check=False)
        try:
            return job.results()[0]
        except self._uncompleted as error:
            raise ChildProcessError(
                f"its job {job.job_id} ended without a result (state {job.state}); what it wrote is in "
                f"{job.paths.stderr}"
            ) from error
        finally:
            with self._guard:
                self._jobs.remove(job)

    def cancel(self) -> None:
        """Cancel all jobs, those that are being sent too; those that have ended may say so."""
        with self._guard:
            self._cancelled = True
            for job in self._jobs:
                job.cancel(check=False)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See the interface."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)


def _in_all_tasks(call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run a call in each task of a job; several tasks find each other as those of torchrun."""
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export()
    return call(*args, **kwargs)


def _in_first_task(call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run a call in the first task of a job alone: what others compute beside it would disturb what it measures."""
    import submitit

    return call(*args, **kwargs) if submitit.JobEnvironment().global_rank == 0 else None
