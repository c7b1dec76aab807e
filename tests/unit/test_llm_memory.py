"""Memory that tensors left stays with the process."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from anchorline.llm.device import keep_freed_memory

FAULTS = """
import resource, torch
from anchorline.llm.device import keep_freed_memory
{before}
resource.getrusage(resource.RUSAGE_SELF)
for _ in range(20):  # aligned blocks need some room beside the first ones, which comes with time
    torch.ones(25_000_000)
start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(25_000_000)  # some 24,400 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""


def faults(before: str, *, huge: str = "0") -> int:
    code, env = FAULTS.format(before=before), {**os.environ, "THP_MEM_ALLOC_ENABLE": huge}
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env).stdout)


def test_tensors_take_the_memory_of_those_before():
    if not keep_freed_memory():
        pytest.skip("this C library keeps no blocks of every size")
    assert faults("keep_freed_memory()") < 1000
    assert faults("") > 200_000


def test_large_tensors_come_in_large_pages(monkeypatch):
    offered = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not offered.is_file() or "[never]" in offered.read_text():
        pytest.skip("this system has no large pages for programs")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    code = "import os, anchorline.llm.device; print(os.environ['THP_MEM_ALLOC_ENABLE'])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "1\n"
    # freed and taken again each time: 512 times fewer, where the system finds some in one piece
    assert faults("", huge="1") < 100_000


MIB = 2**20
MMAP, TRIM, PAD = -3, -1, -2


@pytest.mark.parametrize(
    ("most", "refused", "kept"), [(2**31, (), True), (32 * MIB, (), False), (1, (), False), (2**31, (TRIM,), False)]
)
def test_a_c_library_that_takes_no_large_threshold_is_told_the_rest(monkeypatch, most, refused, kept):
    """The C library is a stand-in: it refuses a threshold over `most`, and what is in `refused`."""
    asked = []

    def mallopt(name, value):
        asked.append((name, value))
        return int(name not in refused and (name != MMAP or value <= most))

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    assert keep_freed_memory.__wrapped__() is kept
    assert {name for name, _ in asked} == {MMAP, TRIM, PAD}
    assert ((MMAP, 32 * MIB) in asked) == (most < 2**31)


def no_library(_):
    raise OSError("Dynamic loading not supported")


@pytest.mark.parametrize("library", [no_library, lambda _: SimpleNamespace()])
def test_without_such_a_c_library_memory_is_as_it_was(monkeypatch, library):
    monkeypatch.setattr(ctypes, "CDLL", library)
    assert keep_freed_memory.__wrapped__() is False
