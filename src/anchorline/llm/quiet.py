"""Keep the libraries' own progress bars and notices off the terminal: anchorline shows its own.

>>> with quiet():
...     pass
"""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers, accelerate, DeepSpeed, lm-evaluation-harness and the hub's client print errors only."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hub_bars = not are_progress_bars_disabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    disable_progress_bars()
    levels = {name: logging.getLogger(name).level for name in ("accelerate", "lm_eval")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    # it sets its logger's level where it is first imported, which accelerate does in the middle of a training
    deepspeed = logging.getLogger("DeepSpeed")
    filtered = _is_error in deepspeed.filters
    deepspeed.addFilter(_is_error)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(level)
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)
        if not filtered:
            deepspeed.removeFilter(_is_error)
        if bars:
            hf_logging.enable_progress_bar()
        if hub_bars:
            enable_progress_bars()


@contextmanager
def hushed() -> Iterator[None]:
    """Inside, nothing reaches stderr where it is no terminal: no library's bars, nor what a program that it calls says."""
    if sys.stderr is None or sys.stderr.isatty():
        yield
        return
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere, redirect_stderr(io.StringIO()):
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
