"""Memory that tensors left stays with the process."""

import subprocess
import sys

import pytest

from anchorline.llm.device import keep_freed_memory

FAULTS = """
import resource, torch
from anchorline.llm.device import keep_freed_memory
{before}
for _ in range(3):  # until what is loaded at the first use has its place
    torch.ones(25_000_000)
start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(25_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
"""


def faults(before: str) -> int:
    code = FAULTS.format(before=before)
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def test_a_tensor_takes_the_memory_of_one_before():
    if not keep_freed_memory():
        pytest.skip("this C library has no mallopt")
    assert faults("keep_freed_memory()") < 1000  # of some 24,400 pages
    assert faults("") > 10_000
