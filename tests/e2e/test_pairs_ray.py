"""`--engine ray` on a cluster of two nodes with a worker each: the local engine's results, limits and resumes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import psutil
import pytest
from chat import Running, rows_of, write_project

from anchorline.data import read_json, write_rows
from anchorline.errors import UNANSWERED, UserError
from anchorline.recipe.ray_engine import _cluster

pytest.importorskip("ray", reason="needs the extra ray")
pytestmark = pytest.mark.e2e

Make = Callable[..., tuple[int, str]]
SECRET = "sk-the-secret-of-the-ray-test-0123456789"
ROWS = 40
AGAIN = 5
"""So many rows ask for the very same as others."""
KEYS = ROWS - AGAIN
REPLY = """It shouts.
<<<REVISED ANSWER>>>
It left this week. Please wait for it, it will come by boat soon.
<<<END OF REVISED ANSWER>>>
BETTER: A
"""
CLUSTER = """
import os, sys
from ray.cluster_utils import Cluster
os.environ["THE_KEY"] = os.environ.pop("KEY_OF_THE_NODES")
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print(cluster.address, cluster.head_node.get_session_dir_path(), flush=True)
sys.stdin.read()  # until the test closes it
cluster.shutdown()
"""
COMMANDS = """
import json, os, sys
from anchorline.cli.main import entry
told = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
for line in sys.stdin:
    place, words, address = json.loads(line)
    os.chdir(place)
    os.environ["RAY_ADDRESS"] = address
    os.dup2(os.open("stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.argv = ["anchorline", *words]
    try:
        entry()
    except SystemExit as end:
        code = end.code or 0
    os.write(told, b"%d\\n" % code)
"""
"""Commands one after the other in one process: starting Python and Ray takes longer than most of them."""
ENVIRON = os.environ | {"THE_KEY": SECRET, "DRIVERS_KEY": SECRET, "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, Path]]:
    """The address and the session folder of two nodes of one core each; only THE_KEY is in their environment."""
    environ = {name: value for name, value in ENVIRON.items() if name not in ("THE_KEY", "DRIVERS_KEY")}
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environ | {"KEY_OF_THE_NODES": SECRET},
    )
    assert process.stdout is not None
    address, session = process.stdout.readline().split()
    yield address, Path(session)
    process.communicate(timeout=60)


@pytest.fixture(scope="module")
def make() -> Iterator[Make]:
    """Runs `anchorline pairs clair recipe.yaml` (or other words, with a maker) in a folder: the exit code, and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMANDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRON
    )
    assert process.stdin is not None and process.stdout is not None
    asks, tells = process.stdin, process.stdout

    def call(place: Path, *words: str, maker: str = "clair", address: str = "") -> tuple[int, str]:
        asks.write(json.dumps([str(place), ["pairs", maker, "recipe.yaml", *words], address]) + "\n")
        asks.flush()
        return int(tells.readline()), (place / "stderr.txt").read_text()

    yield call
    process.communicate(timeout=60)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A recipe, its style and a template beside it, and answers that shout."""
    answers = [
        {
            "id": f"a{i}",
            "prompt": f"where is order {i % KEYS}",
            "text": f"It left on day {i % KEYS}! Please wait for it, it will come.",
        }
        for i in range(ROWS)
    ]
    write_rows(tmp_path / "answers.jsonl", answers)
    (tmp_path / "style.yaml").write_text(json.dumps({"name": "calm", "rules": [{"kind": "no_exclamation"}]}))
    (tmp_path / "reply.txt").write_text(REPLY)
    slots = "{{conversation}} {{answer}} {{aim}} {{open}} {{close}}"
    (tmp_path / "mine.txt").write_text(f"=== user ===\nEdit this as little as you can: {slots}")
    endpoint = {"model": "fake", "api_key_env": "THE_KEY", "max_tokens": 60, "timeout": 5, "attempts": 2}
    endpoint["prices"] = {"input": 1, "output": 2}
    recipe = {
        "style": "style.yaml",
        "pairs": {"answers": "answers.jsonl", "reviser": "llm", "prompt": "mine.txt", "workers": 2},
        "llm": {"reviser": endpoint, "judge": endpoint},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    return tmp_path


@contextmanager
def serving(place: Path, *words: str) -> Iterator[list[str]]:
    """A fake server in a process of its own, its log new; settings that lead to it."""
    log = place / "answered.jsonl"
    log.unlink(missing_ok=True)
    words = ("--seed", "5", "--key-env", "THE_KEY", "--log", str(log), "--reply-file", str(place / "reply.txt"), *words)
    server = subprocess.Popen(
        [sys.executable, "-m", "anchorline.llm.fake_server", *words], stdout=subprocess.PIPE, text=True, env=ENVIRON
    )
    assert server.stdout is not None
    url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
    try:
        yield [word for name in ("reviser", "judge") for word in ("--set", f"llm.{name}.base_url={url}")]
    finally:
        server.terminate()
        server.communicate()


def start(place: Path, *words: str, address: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "anchorline", "pairs", "clair", "recipe.yaml", *words],
        cwd=place,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRON | ({"RAY_ADDRESS": address} if address else {}),
    )


def answered(place: Path) -> Counter[str]:
    log = place / "answered.jsonl"
    return Counter(json.loads(line)["key"] for line in log.read_text().splitlines()) if log.exists() else Counter()


def wait_for(process: subprocess.Popen[str], found: Callable[[], Any]) -> Any:
    end = time.monotonic() + 200
    while not (result := found()):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)
    return result


def results(folder: Path) -> list[bytes]:
    """Pairs and failures; messages name the server, which has another port each time."""
    files = [folder / name for name in ("sets/clair/pairs.jsonl", "failures.jsonl")]
    return [re.sub(rb"127\.0\.0\.1:\d+", b"SERVER", file.read_bytes()) for file in files]


def holding(word: str, *folders: Path) -> list[Path]:
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    return [file for file in files if word.encode() in file.read_bytes()]


def test_the_same_pairs_and_failures_as_the_local_engine(place: Path, make: Make, cluster: tuple[str, Path]) -> None:
    """Against a server with every kind of fault; then nothing is asked again, by either engine, and no key is anywhere."""
    address, session = cluster
    faults = ["--error", "0.2", "--throttle", "0.1", "--retry-after", "0.05", "--truncate", "0.1", "--malformed", "0.2"]
    with serving(place, *faults) as settings:
        assert make(place, *settings, "--out", "local") == (0, "")
        asked = answered(place)
    with serving(place, *faults) as settings:
        assert make(place, *settings, "--out", "ray", "--engine", "ray", address=address) == (0, "")
        assert answered(place) == asked and set(asked.values()) == {1}
        assert results(place / "ray") == results(place / "local")
        kinds = {json.loads(line)["kind"] for line in results(place / "ray")[1].splitlines()}
        assert kinds >= {"server", "bad_reply"} and len(results(place / "ray")[0].splitlines()) > ROWS // 2
        local, ray = (read_json(place / name / "manifest.json") for name in ("local", "ray"))
        reasons = [manifest["makers"]["pairs:clair"].pop("reasons") for manifest in (local, ray)]
        assert reasons[0].keys() == reasons[1].keys() == kinds & UNANSWERED  # they name the server's port
        assert ray["costs"] == local["costs"] and ray["counts"] == local["counts"]
        assert ray["makers"] == local["makers"] and ray["makers"]["pairs:clair"]["costs"]["usd"] > 0
        assert not list((place / "ray").rglob("*.partial"))

        # the local engine goes on where Ray was, from the same cache: the set is up to date, and an unpaid second one
        assert make(place, *settings, "--out", "ray") == (0, "")
        gate = ["--set", "pairs.gates.max_change=0.89"]
        assert make(place, *settings, "--out", "ray", *gate) == (0, "")
        assert answered(place) == asked
        assert results(place / "ray") == results(place / "local")
    assert holding("THE_KEY", place)  # the search finds what is there
    assert not holding(SECRET, place, session)


def test_what_was_paid_without_a_price_gets_it_before_ray_works(
    place: Path, make: Make, cluster: tuple[str, Path]
) -> None:
    address, _ = cluster
    with serving(place) as settings:
        unpriced = ["--set", "llm.reviser.prices=null", "--set", "llm.judge.prices=null"]
        assert make(place, *settings, *unpriced, "--out", "late", "--dry-run", "--pilot", "5") == (0, "")
        assert make(place, *settings, "--out", "late", "--engine", "ray", address=address) == (0, "")
        assert make(place, *settings, "--out", "known") == (0, "")
    late, known = (read_json(place / name / "manifest.json")["costs"] for name in ("late", "known"))
    assert late["usd"] == pytest.approx(known["usd"]) and late["usd"] > 0


def test_other_makers_by_models_that_are_asked_and_judged(
    tmp_path: Path, make: Make, cluster: tuple[str, Path]
) -> None:
    """Samples, other models' answers and a stronger model's, judged in both orders: what the local engine makes of them."""
    makers = ("on-policy", "off-policy", "stronger")
    for name, words in (("local", ()), ("ray", ("--engine", "ray"))):
        # new each time: its policy counts how often it is asked; two sets share their judgements
        with Running() as fake:
            write_project(tmp_path / name, fake.url, rows=8, pairs__verify="llm", pairs__workers=2)
            for maker in makers:
                done = make(tmp_path / name, "--out", "out", *words, maker=maker, address=cluster[0])
                assert done == (0, "")
            assert set(fake.server.answered.values()) <= {1, 2} and len(fake.asked("judge")) == 2 * 2 * 8
    local, ray = (tmp_path / name / "out" for name in ("local", "ray"))
    for maker in makers:
        files = [folder / f"sets/{maker.replace('-', '_')}/pairs.jsonl" for folder in (local, ray)]
        assert files[0].read_bytes() == files[1].read_bytes() and len(rows_of(files[0])) == 8
    assert (local / "failures.jsonl").read_bytes() == (ray / "failures.jsonl").read_bytes()
    for part in ("makers", "costs", "counts"):
        assert read_json(local / "manifest.json")[part] == read_json(ray / "manifest.json")[part]
    assert all(counts["costs"]["usd"] > 0 for counts in read_json(ray / "manifest.json")["makers"].values())


def workers(session: Path) -> list[int]:
    """The processes of the makers' actors of this session."""
    found = []
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        name = " ".join(process.info["cmdline"] or [])
        if "MapWorker" in name and str(session) in str(process.parents() and process.parents()[0].cmdline()):
            found.append(process.info["pid"])
    return found


def test_a_budget_holds_over_all_workers_and_one_that_dies_is_replaced(
    place: Path, make: Make, cluster: tuple[str, Path]
) -> None:
    limit = 1000
    with serving(place, "--latency", "0.3") as settings:
        words = [*settings, "--set", "llm.reviser.max_concurrency=6", "--out", "out", "--engine", "ray"]
        code, errors = make(place, *words, "--max-tokens", str(limit), address=cluster[0])
        assert code == 1 and errors.count("\n") == 1 and "the run's budget is used up" in errors
        assert limit - 300 < spent(place / "out") <= limit
        assert not (place / "out" / "sets" / "clair" / "pairs.jsonl").exists()
        before = answered(place)
        assert set(before.values()) == {1} and len(before) < KEYS // 2

        process = start(place, *words, "--max-tokens", "1000000", address=cluster[0])
        pid = wait_for(process, lambda: len(answered(place)) > len(before) + 6 and workers(cluster[1]))[0]
        os.kill(pid, signal.SIGKILL)
        out, errors = process.communicate(timeout=300)
        assert (process.returncode, errors) == (0, ""), out
        twice = [key for key, count in answered(place).items() if count > 1]
        assert len(twice) <= 6 and not set(twice) & set(before)  # at most what was in flight
        assert before <= answered(place) and len(answered(place)) == KEYS
        pairs, failures = results(place / "out")
        assert [json.loads(line)["id"] for line in pairs.splitlines()] == [f"a{i}" for i in range(ROWS)]
        assert not failures


def spent(folder: Path) -> int:
    import sqlite3

    with sqlite3.connect(folder / "requests.sqlite") as db:
        return db.execute("SELECT sum(prompt_tokens + completion_tokens) FROM payments").fetchone()[0]


def test_a_key_that_the_workers_lack_is_one_line(place: Path, make: Make, cluster: tuple[str, Path]) -> None:
    """Workers read keys from their own environment: the driver's does not travel."""
    with serving(place) as settings:
        words = [*settings, "--set", "llm.reviser.api_key_env=DRIVERS_KEY", "--out", "out", "--engine", "ray"]
        code, errors = make(place, *words, address=cluster[0])
    assert code == 2 and errors.count("\n") == 1 and "the environment variable DRIVERS_KEY is not set" in errors
    assert f"a worker on {socket.gethostname()}" in errors
    assert not answered(place)


def test_kill_9_in_the_middle_of_a_cluster_of_its_own(place: Path, make: Make, cluster: tuple[str, Path]) -> None:
    """Finished shards are not made again, those begun come from the cache, and no process stays behind."""
    copies = set(Path(gettempdir()).glob("anchorline-worker-*"))
    # slow enough that rows are left when the cluster has seen that its driver is gone
    with serving(place, "--latency", "0.4") as settings:
        words = [*settings, "--set", "llm.reviser.max_concurrency=2", "--out", "out", "--engine", "ray"]
        process = start(place, *words)
        shards = place / "out" / "sets" / "clair" / "pairs.jsonl.partial"
        wait_for(process, lambda: list(shards.glob("*.jsonl")) and len(answered(place)) > KEYS // 2)
        children = psutil.Process(process.pid).children(recursive=True)
        # Ray's agents, which do none of our work, take a minute to see that they are alone
        ours = [child for child in children if not child.name().endswith("Agent")]
        assert len(ours) > 3
        process.send_signal(signal.SIGKILL)
        process.communicate()
        _, alive = psutil.wait_procs(ours, timeout=60)
        assert not alive
        assert set(Path(gettempdir()).glob("anchorline-worker-*")) <= copies, "the customer's files stay behind"
        time.sleep(1)  # the server still answers, and logs, what was in flight
        before = answered(place)
        assert KEYS // 2 < len(before) < KEYS
        kept = {file.name: file.stat().st_mtime_ns for file in shards.glob("*.jsonl")}

        # another cluster goes on, with more calls at once
        words[words.index("llm.reviser.max_concurrency=2")] = "llm.reviser.max_concurrency=4"
        process = start(place, *words, address=cluster[0])
        wait_for(process, lambda: len(list(shards.glob("*.jsonl"))) > len(kept))
        assert kept.items() <= {file.name: file.stat().st_mtime_ns for file in shards.glob("*.jsonl")}.items()
        out, errors = process.communicate(timeout=300)
        assert (process.returncode, errors) == (0, ""), out
        twice = [key for key, count in answered(place).items() if count > 1]
        assert len(twice) <= 2 and set(twice) <= set(before) and len(answered(place)) == KEYS
        assert make(place, *settings, "--out", "local") == (0, "")
        assert results(place / "out") == results(place / "local")
        resumed, whole = (read_json(place / name / "manifest.json")["makers"] for name in ("out", "local"))
        assert resumed == whole  # the cost, too: of what was paid before the kill and after it, once


def test_engine_ray_without_ray_says_what_to_install(place: Path) -> None:
    code = "import sys; sys.modules['ray'] = None; from anchorline.cli.main import entry; sys.argv[0] = 'anchorline'; entry()"
    words = ["pairs", "clair", "recipe.yaml", "--engine", "ray", "--out", "out"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=place, capture_output=True, text=True, check=False, env=ENVIRON
    )
    assert done.returncode == 2 and not (place / "out").exists()
    assert done.stderr == (
        "error: --engine ray needs packages that are not installed; in anchorline's checkout: "
        "pip install -c constraints.txt '.[ray]'\n"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "pairs.reviser=rules"], "quick work for this process"),
        (["--batch"], "leave out either --batch or --engine ray"),
    ],
)
def test_engine_ray_where_it_makes_no_sense(place: Path, make: Make, words: list[str], says: str) -> None:
    code, errors = make(place, "--engine", "ray", "--out", "out", *words)
    assert code == 2 and says in errors and errors.count("\n") == 1 and not (place / "out").exists()


def test_a_clients_address_is_refused(place: Path, make: Make) -> None:
    code, errors = make(place, "--engine", "ray", "--out", "out", address="ray://10.0.0.1:10001")
    assert code == 2 and "a client's address" in errors and errors.count("\n") == 1


def test_an_address_where_nothing_listens_is_one_line_at_once(place: Path, make: Make) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: a connection is refused
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        code, errors = make(place, "--engine", "ray", "--out", "out", address=address)
    assert code == 2 and f"no Ray cluster at RAY_ADDRESS={address}" in errors and errors.count("\n") == 1


@pytest.mark.parametrize("by_name", [True, False])
def test_a_cluster_that_does_not_take_the_token_is_told_from_none(
    by_name: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray
    from ray.exceptions import AuthenticationError

    def init(**_: Any) -> None:
        if by_name:
            raise AuthenticationError("no token")
        raise ConnectionError("Failed to connect") from RuntimeError("InvalidAuthToken: tried for long")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match="did not take this machine's token; set RAY_AUTH_MODE"), _cluster():
        pass
