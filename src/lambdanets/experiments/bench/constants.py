"""Origin of the planner's constants: this machine, another one, or none of their kind."""

from __future__ import annotations

import torch

from lambdanets.kernels.grid import costs
from lambdanets.provenance import processor

__all__ = ["device_name", "where_from"]


def device_name(device: str) -> str:
    """Return the name of this machine's processor or GPU as in result files, or a text that there is none."""
    if device == "cpu":
        return processor()
    there = device == "cuda" and torch.cuda.is_available()
    return torch.cuda.get_device_name() if there else f"{device}, which this machine does not have"


def where_from(device: str) -> str:
    """Return a sentence that says by which constants kernels are ranked on a type of device.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
    """
    own, package = costs.calibrated(), costs.shipped()
    calibrated = device in own.get("devices", {})
    if not calibrated and device not in package["devices"]:
        return (
            f"Constants: none were measured on {device}. Kernels for every device have a CPU's, so the times are not "
            f"those of {device}; those for {device} alone have derived ones."
        )
    measured = (own if calibrated else package).get("measured_on", {})
    name = measured.get("machine" if device == "cpu" else "card", "one without a name")
    threads = f", {measured['threads']} threads" if device == "cpu" and "threads" in measured else ""
    kind = "processor" if device == "cpu" else "GPU"
    same = "this {kind}" if calibrated else "a {kind} of this name"
    where = same.format(kind=kind) if name == device_name(device) else f"another {kind}"
    how = "calibrated" if calibrated else "of the package, measured"
    used = torch.get_num_threads()
    differs = device == "cpu" and measured.get("threads", used) != used
    note = f" The times are of that number of threads, and this process has {used}." if differs else ""
    return f"Constants: {how} on {where} ({name}{threads}).{note}"
