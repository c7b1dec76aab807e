"""A key appears in nothing that is written or printed: real commands with a marked key, then a look at every byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from chat import Actor, Running, anchorline, write_project

pytestmark = pytest.mark.e2e
MARKED = "sk-MARKED0123456789abcdef"
PLAIN = "MARKED0123456789abcdef"
"""A key whose form says nothing."""


def run(*words: object, cwd: Path, code: int, **env: str) -> str:
    """Run a command in a process of its own, with the client's debug output on; all that it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "anchorline", *map(str, words)],
        cwd=cwd,
        check=False,
        env={**os.environ, "MY_KEY": MARKED, "OPENAI_API_KEY": MARKED, "OPENAI_LOG": "debug", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def assert_hidden(folder: Path, said: str) -> None:
    assert PLAIN not in said
    files = [file for file in folder.rglob("*") if file.is_file()]
    for file in files:
        assert PLAIN.encode() not in file.read_bytes(), file


def test_a_whole_run_with_a_key_that_servers_repeat(tmp_path: Path) -> None:
    """Sampling, revising, judging, a batch, measuring, exporting: with the right key, and with a wrong one."""
    actor = Actor()
    said = ""
    with Running(actor, key=MARKED) as fake:
        recipe = write_project(
            tmp_path, fake.url, llm__policy__api_key_env="MY_KEY", llm__reviser__api_key_env="MY_KEY"
        )
        data = yaml.safe_load(recipe.read_text())
        for one in (data["llm"]["judge"], data["llm"]["stronger"], *data["llm"]["others"]):
            one["api_key_env"] = "MY_KEY"
        recipe.write_text(yaml.safe_dump(data))
        for maker in ("clair", "on-policy"):
            said += run("pairs", maker, recipe, "--out", "run", cwd=tmp_path, code=0)
        assert fake.calls > 0
        said += run("pairs", "clair", recipe, "--out", "batch", "--batch", cwd=tmp_path, code=0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MY_KEY", MARKED)
            patch.setenv("OPENAI_API_KEY", MARKED)
            for words in (("pairs", "off-policy", recipe), ("pairs", "stronger", recipe), ("cache", "stats")):
                said += anchorline(*words, *(["--out"] if "pairs" in words else []), tmp_path / "run").output
            pairs = tmp_path / "run/sets/clair/pairs.jsonl"
            said += anchorline("export", pairs, "--out", tmp_path / "set", "--licence", "mit").output
    with Running(actor, key="another") as fake:
        data["llm"]["reviser"]["base_url"] = fake.url
        recipe.write_text(yaml.safe_dump(data))
        refused = run("pairs", "clair", recipe, "--out", "run", "--set", "llm.reviser.model=new", cwd=tmp_path, code=2)
        assert "MY_KEY" in refused
        other = ("--batch", "--set", "llm.reviser.model=other")
        refused += run("pairs", "clair", recipe, "--out", "run", *other, cwd=tmp_path, code=2)
        refused += run(
            "pairs",
            "clair",
            recipe,
            "--out",
            "run",
            "--set",
            "llm.reviser.model=new",
            cwd=tmp_path,
            code=2,
            ANCHORLINE_DEBUG="1",
        )
    assert_hidden(tmp_path, said + refused)


@pytest.mark.parametrize("key", [MARKED, PLAIN])
@pytest.mark.parametrize(
    "setting",
    [
        "llm.reviser.base_url=http://user:{key}@127.0.0.1:1/v1",
        "llm.reviser.base_url=http://{key}@127.0.0.1:1/v1",
        "llm.reviser.base_url=http://127.0.0.1:1/v1?api_key={key}",
        "llm.reviser.base_url=http://127.0.0.1:1/v1#{key}",
        "llm.reviser.base_url=[http://127.0.0.1:1/v1?k={key}, http://127.0.0.1:2/v1]",
        "llm.reviser.extra_body={{api_key: {key}}}",
        "llm.reviser.extra_body={{x-api-key: {key}}}",
        "llm.reviser.extra_body={{a: [{{Authorization: {key}}}]}}",
        "llm.reviser.extra_body={{note: Bearer {key}}}",
        "llm.reviser.extra_body={{token: {key}}}",
        "llm.reviser.headers={{Authorization: Bearer {key}}}",
        "llm.reviser.extra_headers={{X-Key: {key}}}",
        "llm.reviser.api_key={key}",
        "llm.reviser.max_tokens={key}",
        "llm.reviser.prices={key}",
        "llm.reviser={key}",
        "llm.others=[{key}]",
        "llm.budget={key}",
        "llm.budget.max_usd={key}",
        "llm={key}",
        "llm.key={key}",
        "llm.reviser.model.key={key}",
        "train.arguments={key}",
        "train.arguments.hub_token={key}",
        "train.arguments.fsdp_config={{api_key: {key}}}",
        "train.arguments={{hub_token: {key}",
    ],
)
def test_a_key_in_the_wrong_place_is_refused_unseen(setting: str, key: str, tmp_path: Path) -> None:
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url)
        before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        for words in (("pairs", "clair"), ("pairs", "clair", "--dry-run"), ("run",)):
            result = anchorline(*words, recipe, "--out", tmp_path / "run", "--set", setting.format(key=key), code=2)
            # what the user typed may be named by its setting, never by its value
            assert PLAIN not in result.output + result.stderr
        assert fake.calls == 0
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    "text",
    [
        "llm:\n  reviser: {{model: m, api_key: {key}, base_url: [}}\n",
        "llm:\n  reviser:\n    api_key: {key}: x\n",
        "llm: {{reviser: {{api_key: {key}}}}}\n",
        "- {key}\n",
        "\tapi_key: {key}\n",
        "api_key: {key}\n",
        "llm:\n  reviser: {{model: m, api_key_env: {key}}}\n",
    ],
)
def test_a_key_in_a_recipe_that_cannot_be_read_is_not_shown(text: str, tmp_path: Path) -> None:
    for key in (MARKED, PLAIN + "-x"):
        file = tmp_path / "recipe.yaml"
        file.write_text(text.format(key=key))
        result = anchorline("pairs", "clair", file, "--out", tmp_path / "run", code=2)
        assert PLAIN not in result.output + result.stderr


def test_the_look_at_every_byte_would_see_it(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(json.dumps({"key": MARKED}))
    with pytest.raises(AssertionError):
        assert_hidden(tmp_path, "")
    with pytest.raises(AssertionError):
        assert_hidden(tmp_path / "nothing", f"it was {MARKED}")
