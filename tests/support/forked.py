"""Processes that tests start next to their own: to train together, to ask for one thing at once, to be killed.

All are forked from one process that has imported the slow packages once and nothing else: seconds less for each, and
nothing of pytest's process (threads, an earlier test's Ray) is forked along. tests/conftest.py keeps the tests that
start them together, so that this is paid once.
"""

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

PRELOADED = (
    "tailsweep.trainables.training.stages", "transformers.models.bert.modeling_bert", "torch._dynamo",
    "sklearn.metrics", "pytest",
)  # fmt: skip


def fork_server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return context


def started(target: Callable[..., None], arguments: list[tuple[Any, ...]]) -> list[ForkServerProcess]:
    """A running process for each of ``arguments``."""
    children = [fork_server().Process(target=target, args=given) for given in arguments]
    for child in children:
        child.start()
    return children
