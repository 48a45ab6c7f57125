"""What the tests of exports share."""

import logging

import pytest


@pytest.fixture(autouse=True)
def _without_trace_logs():
    """PyTorch logs every step of a trace for whoever listens, as pytest does: that takes longer than the tracing."""
    logger = logging.getLogger("torch.__trace")
    before, logger.disabled = logger.disabled, True
    yield
    logger.disabled = before
