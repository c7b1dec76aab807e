"""Memory that tensors left stays with the process."""

import subprocess
import sys

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


def faults(before: str) -> int:
    code = FAULTS.format(before=before)
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def test_tensors_take_the_memory_of_those_before():
    if not keep_freed_memory():
        pytest.skip("this C library has no mallopt")
    assert faults("keep_freed_memory()") < 1000
    assert faults("") > 200_000
