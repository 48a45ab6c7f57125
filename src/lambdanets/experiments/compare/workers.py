"""Where cells run beside each other: in processes of this machine, or as jobs of a cluster by submitit."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lambdanets.experiments.compare.study import StoppedError

__all__ = ["Cluster", "cluster_jobs", "processes"]


@contextmanager
def processes(jobs: int) -> Iterator[Executor]:
    """Processes that run calls. When this process is stopped they are, too, each at the end of a step.

    Raises:
        StoppedError: for SIGINT and SIGTERM.
    """
    executor = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _leave_interrupts_to_the_parent)

    def end() -> None:
        for child in multiprocessing.active_children():
            child.terminate()
        executor.shutdown(cancel_futures=True)

    with _ended_by_signals(end):
        yield executor
        executor.shutdown()


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class Cluster:
    """Where jobs are sent.

    Args:
        name: of submitit's executor: "slurm", or "local" for processes of this machine.
        parameters: of its jobs, as ``timeout_min``, ``gpus_per_node``, ``slurm_partition``.
    """

    name: str
    parameters: Mapping[str, int | str] = field(default_factory=dict)


@contextmanager
def cluster_jobs(cluster: Cluster, jobs: int, folder: Path) -> Iterator[Executor]:
    """Jobs of a cluster that run calls. When this process is stopped they are cancelled.

    Args:
        cluster: where they are sent.
        jobs: how many at a time.
        folder: for submitit's files; all machines must see it.

    Raises:
        ValueError: if submitit is missing, or does not know the cluster or a parameter.
        StoppedError: for SIGINT and SIGTERM.
    """
    executor = _ClusterExecutor(cluster, jobs, folder)

    def end() -> None:
        executor.cancel()
        executor.shutdown(cancel_futures=True)

    with _ended_by_signals(end):
        yield executor
        executor.shutdown()


class _ClusterExecutor(Executor):
    """Each call is a job, for which a thread waits."""

    def __init__(self, cluster: Cluster, jobs: int, folder: Path) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ValueError(
                f"--cluster {cluster.name} needs the package submitit: pip install 'lambdanets[cluster]'"
            ) from error
        try:
            self._submitit = submitit.AutoExecutor(folder, cluster=cluster.name)
            self._submitit.update_parameters(**{"name": "lambdanets", **cluster.parameters})
        except (ValueError, NameError, RuntimeError) as error:
            raise ValueError(f"--cluster {cluster.name}: {error}") from error
        self._threads = ThreadPoolExecutor(jobs)
        self._jobs: list[Any] = []

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._threads.submit(self._run, call, args, kwargs)

    def _run(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        job = self._submitit.submit(_in_job, call, args, kwargs)
        self._jobs.append(job)
        return job.results()[0]

    def cancel(self) -> None:
        for job in self._jobs:
            job.cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait, cancel_futures=cancel_futures)


def _in_job(call: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run a call in each task of a job; several tasks find each other as those of torchrun."""
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export()
    return call(*args, **kwargs)


@contextmanager
def _ended_by_signals(end: Callable[[], object]) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except KeyboardInterrupt:
        end()
        raise StoppedError(signal.SIGINT) from None
    except BaseException:
        end()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: object) -> None:
    raise StoppedError(number)
