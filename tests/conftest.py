"""What holds for all tests: no hub, no sockets in the unit tier, repeatable examples, and where the embedded model is."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pytest
import pytest_socket
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports the hub's client, which reads it once
_REFERENCES = tempfile.TemporaryDirectory()
os.environ["ANCHORLINE_REFERENCE_CACHE"] = _REFERENCES.name  # no test leaves some in the user's cache folder

UNIT = Path(__file__).parent / "unit"
sys.path.append(str(UNIT))  # the model tier plays with the unit tier's toys, also when it is run alone

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def no_sockets(request: pytest.FixtureRequest):
    """A unit test that opens a socket fails. (AF_UNIX stays: event loops wake themselves through it.)"""
    if UNIT not in request.path.parents:
        yield
        return
    pytest_socket.disable_socket(allow_unix_socket=True)
    yield
    pytest_socket.enable_socket()


@pytest.fixture(autouse=True)
def references_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No test finds the reference log-probs of another."""
    monkeypatch.setenv("ANCHORLINE_REFERENCE_CACHE", str(tmp_path / "reference"))


@pytest.fixture(autouse=True, scope="module")
def one_thread(request: pytest.FixtureRequest):
    """A toy model on several threads waits for them most of the time, and its sums depend on their number."""
    torch = sys.modules.get("torch") if UNIT in request.path.parents else None
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def embedded() -> str:
    """The embedded model's id; a test that asks for it is skipped where the model cannot run."""
    from anchorline.errors import ModelError
    from anchorline.llm.embedded import gguf_file

    model = "embedded:smollm2-135m-instruct"
    missing = [name for name in ("torch", "transformers", "gguf") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the embedded model needs {', '.join(missing)}: pip install '.[train]'")
    try:
        gguf_file(model)
    except ModelError as error:
        pytest.skip(str(error))
    return model
