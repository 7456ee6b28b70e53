"""Cancel within a batch: a slice may take a processor more than a second, a layer of the network does not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from SPDSegmentLib.errors import Cancelled


@contextmanager
def stop_between_layers(stop: Callable[[], bool]) -> Iterator[None]:
    """Within this context every module of torch raises Cancelled, before it runs, once ``stop`` is true.

    Only for code that stores results after the network has returned them, as the predictor's session does. Does nothing
    where torch is not loaded.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return

    def check(module: Any, inputs: Any) -> None:
        if stop():
            raise Cancelled()

    hook = torch.nn.modules.module.register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()
