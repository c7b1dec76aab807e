"""`anchorline pairs` and `cache` as a user runs them, against a real HTTP server on loopback."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
from chat import Actor, Running, anchorline, manifest_of, rows_of, write_project, write_prompts

from anchorline.llm.fake_faults import FaultPlan

pytestmark = pytest.mark.e2e
MAKERS = ("clair", "on-policy", "off-policy", "stronger")


def folder_name(maker: str) -> str:
    return maker.replace("-", "_")


def test_four_makers_on_the_same_prompts_and_answers(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url)
        said = {maker: anchorline("pairs", maker, recipe, "--out", out).stdout for maker in MAKERS}
        asked = fake.calls
        for maker in MAKERS:
            anchorline("pairs", maker, recipe, "--out", out)
        assert fake.calls == asked and set(fake.server.answered.values()) == {1, 2}  # 2: the samples of on-policy

        for name in map(folder_name, MAKERS):
            for kind in ("pairs", "matched"):
                rows = rows_of(out / "sets" / name / f"{kind}.jsonl")
                assert [row["id"] for row in rows] == [f"p{i}" for i in range(8)]
                assert {row["maker"] for row in rows} == {name}
                assert [len(row["prompt"]) for row in rows] == [4, 1, 1, 1] * 2
        answers = {row["id"]: row["text"] for row in rows_of(out / "answers.jsonl")}
        for name in ("clair", "stronger"):
            assert {r["id"]: r["rejected"][0]["content"] for r in rows_of(out / f"sets/{name}/pairs.jsonl")} == answers
        assert "matched: 8 pairs in each of 4 sets (clair 8, on_policy 8, off_policy 8, stronger 8)" in said["stronger"]
        assert "set clair: 8 pairs of 8 rows" in said["clair"] and "0 pairs" not in said["clair"]
        assert not (out / "pairs.jsonl").exists()

        # the whole conversation is seen by whoever answers, revises and judges
        answerers = [b for b in fake.asked("answers") if len(b["messages"]) == 4]
        assert {b["model"] for b in answerers} == {"policy", "quiet", "loud"}
        assert all([t["role"] for t in b["messages"]] == ["system", "user", "assistant", "user"] for b in answerers)
        for role in ("reviser", "judge"):
            texts = [body["messages"][-1]["content"] for body in fake.asked(role)]
            whole = "[system]\nYou are Ada 4.\n\n[user]\nHi 4\n\n[assistant]\nHello.\n\n[user]\nAnd order 4?"
            assert sum(whole in text for text in texts) >= 1

        write_prompts(tmp_path, 10)
        before = fake.calls
        anchorline("pairs", "clair", recipe, "--out", out)
        assert fake.calls == before + 4  # two new prompts, each sampled and revised
        anchorline("pairs", "clair", recipe, "--out", out, "--set", "pairs.gates.max_change=0.8")
        assert fake.calls == before + 4 and len(rows_of(out / "sets/clair/pairs.jsonl")) == 10


def test_the_rules_make_a_set_beside_the_runs_own_pairs(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url)
        anchorline("pairs", recipe, "--out", out)
        own = (out / "pairs.jsonl").read_bytes()
        recipe_was = (out / "recipe.yaml").read_bytes()
        anchorline("pairs", "clair", out, "--reviser", "rules")
        calls = fake.calls
        anchorline("pairs", out)  # with the options of the run, not of the set
        assert fake.calls == calls and (out / "recipe.yaml").read_bytes() == recipe_was
        assert "reviser: rules" in (out / "sets/clair/recipe.yaml").read_text()
    assert (out / "pairs.jsonl").read_bytes() == own
    assert {row["reviser"] for row in rows_of(out / "sets/clair/pairs.jsonl")} == {"rules"}
    assert {row["reviser"] for row in rows_of(out / "pairs.jsonl")} == {"reviser"}


def test_sets_of_other_answers_are_not_matched(tmp_path: Path) -> None:
    out = tmp_path / "run"
    matched = {name: out / "sets" / name / "matched.jsonl" for name in ("clair", "stronger", "off_policy")}
    actor = Actor()
    with Running(lambda body: actor(body) + " Quick!" * (body.get("temperature") == 1.1)) as fake:
        recipe = write_project(tmp_path, fake.url)
        for maker in ("clair", "off-policy", "stronger"):
            anchorline("pairs", maker, recipe, "--out", out)
        assert all(file.is_file() for file in matched.values())
        hot = ("--set", "sample.temperature=1.1")
        # a budget that ends the making leaves no set behind, nor what was matched to it
        ends = ("--set", "llm.reviser.model=other", "--set", "llm.budget.max_tokens=1")
        anchorline("pairs", "clair", recipe, "--out", out, *ends, code=1)
        assert not any(file.exists() for file in matched.values())

        said = anchorline("pairs", "clair", recipe, "--out", out, *hot).stdout
        assert "matched: 8 pairs in each of 2 sets (clair 8, off_policy 8)" in said
        assert "not matched: stronger, which has no pairs of these answers of the policy; make it again: " in said
        assert f"anchorline pairs stronger {out}" in said and "not matched: off" not in said
        assert not matched["stronger"].exists()
        assert set(manifest_of(out)["counts"]) & {"sets/clair", "sets/stronger", "sets/matched"} == {
            "sets/clair",
            "sets/matched",
        }

        assert "not matched: clair" in anchorline("pairs", "stronger", recipe, "--out", out).stdout
        assert matched["stronger"].is_file() and not matched["clair"].exists()
        said = anchorline("pairs", "stronger", recipe, "--out", out, *hot).stdout
        assert "matched: 8 pairs in each of 3 sets" in said and "not matched" not in said
        sides = [{row["id"]: row["rejected"] for row in rows_of(matched[name])} for name in ("clair", "stronger")]
        assert sides[0] == sides[1]


def test_a_judge_that_always_says_the_first_gives_ties_only(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Running(Actor(judge="Both are fine.\nVERDICT: A")) as fake:
        recipe = write_project(tmp_path, fake.url)
        result = anchorline("pairs", "on-policy", recipe, "--out", out, code=2)
        assert "turned with the order of the answers in 8 of 8 comparisons" in result.stderr
        assert len(fake.asked("judge")) == 16
        assert manifest_of(out)["makers"]["pairs:on_policy"]["judge"] == {"judged": 8, "ties": 8, "flips": 8}
        assert {row["kind"] for row in rows_of(out / "failures.jsonl")} == {"tie"}
        assert not (out / "sets/on_policy/pairs.jsonl").exists()  # and the others' matched sets are not emptied
        anchorline("pairs", "clair", recipe, "--out", out)
        assert anchorline("pairs", "stronger", out).stdout.count("matched: 8 pairs in each of 2 sets") == 1


def test_an_unreadable_judge_is_an_error_and_never_a_tie(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Running(Actor(judge="I like them both.")) as fake:
        recipe = write_project(tmp_path, fake.url)
        anchorline("pairs", "on-policy", recipe, "--out", out, code=2)
    assert {row["kind"] for row in rows_of(out / "failures.jsonl")} == {"unreadable"}
    assert "judge" not in manifest_of(out)["makers"]["pairs:on_policy"]


def test_scores_and_verification(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url)
        anchorline("pairs", "on-policy", recipe, "--out", out, "--set", "pairs.judge_mode=score")
        first = rows_of(out / "sets/on_policy/pairs.jsonl")[0]
        assert first["details"]["points"] == [8.0, 7.0] and first["chosen"][0]["content"].count("!") == 2
    with Running(Actor(judge="VERDICT: B")) as fake:
        recipe = write_project(tmp_path / "two", fake.url, pairs__verify="llm")
        anchorline("pairs", "clair", recipe, "--out", out.with_name("two-run"), code=2)
    made = manifest_of(out.with_name("two-run"))["makers"]["pairs:clair"]
    assert made["failures"] == {"not_preferred": 8} and made["judge"] == {"judged": 8, "ties": 8, "flips": 8}


def test_the_rules_repairs_are_verified_too(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url, pairs__reviser="rules", pairs__verify="llm")
        pilot = anchorline("pairs", recipe, "--out", out, "--dry-run", "--pilot", "2", "--json")
        assert json.loads(pilot.stdout)["kept"]["share"] == 1 and len(fake.asked("judge")) == 4
        anchorline("pairs", recipe, "--out", out)
        assert len(fake.asked("judge")) == 16 and not fake.asked("reviser")
    rows = rows_of(out / "pairs.jsonl")
    assert len(rows) == 8 and {row["reviser"] for row in rows} == {"rules"}
    assert {row["details"]["verdict"]["winner"] for row in rows} == {"a"}
    with Running(Actor(judge="VERDICT: B")) as fake:
        recipe = write_project(tmp_path / "two", fake.url, pairs__reviser="rules", pairs__verify="llm")
        anchorline("pairs", recipe, "--out", out.with_name("two-run"), code=2)
    assert manifest_of(out.with_name("two-run"))["makers"]["pairs"]["failures"] == {"not_preferred": 8}


def test_failures_are_typed_and_retried_alone(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Running(plan=FaultPlan(seed=3, error=0.3, malformed=0.1)) as fake:
        recipe = write_project(tmp_path, fake.url, rows=24)
        words = ("pairs", "clair", recipe, "--out", out)
        anchorline(*words)
        failed = rows_of(out / "failures.jsonl")
        assert {row["kind"] for row in failed} == {"server", "bad_reply"}
        assert {row["stage"] for row in failed} == {"sample", "pairs:clair"}
        calls = fake.calls
        anchorline(*words)
        assert fake.calls == calls and rows_of(out / "failures.jsonl") == failed  # nothing is asked by itself
        for _ in range(8):
            anchorline(*words, "--retry-failed")
        assert rows_of(out / "failures.jsonl") == []
        assert len(rows_of(out / "sets/clair/pairs.jsonl")) == 24
        assert set(fake.server.answered.values()) == {1} and fake.calls == 48


def test_raising_max_tokens_asks_again_only_for_what_was_cut(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Running(plan=FaultPlan(script=("",), truncate=0.0)) as fake:
        recipe = write_project(tmp_path, fake.url)

        def long(body: dict) -> str:
            text = Actor()(body)
            return text.replace("It shouts.", "It shouts. " + "Well, " * 60) if "order 3" in str(body) else text

        fake.server._reply = long
        words = ("pairs", "clair", recipe, "--out", out, "--set", "pairs.gates.attempts=1")
        anchorline(*words, "--set", "llm.reviser.max_tokens=40")
        assert [(r["id"], r["kind"]) for r in rows_of(out / "failures.jsonl")] == [("p3", "truncated")]
        before = fake.calls
        anchorline(*words, "--set", "llm.reviser.max_tokens=100")
        assert fake.calls == before + 1 and rows_of(out / "failures.jsonl") == []
        anchorline(*words, "--set", "llm.reviser.max_tokens=50")
        assert fake.calls == before + 1


def test_a_pilot_says_what_it_will_cost_and_is_not_paid_twice(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url, rows=40)
        told = anchorline("pairs", "clair", recipe, "--out", out, "--dry-run", "--pilot", 20).stdout
        assert "pilot: 20 of 40 rows by clair; 100% became pairs" in told
        found = re.search(r"usd, all 40 rows: ([\d.]+) \(95 % interval ([\d.]+) to ([\d.]+)\)", told)
        assert found is not None and len(fake.asked("reviser")) == 20 and not (out / "sets").exists()
        assert len(fake.asked("answers")) == 20, "the policy's other answers are not in the pilot"
        assert sorted(path.name for path in out.glob("*pilot*")) == []
        anchorline("pairs", "clair", recipe, "--out", out)
        assert len(fake.asked("reviser")) == 40
        cost = manifest_of(out)["costs"]
        assert float(found[2]) - 1e-4 <= cost["usd"] <= float(found[3]) + 1e-4
        again = anchorline("pairs", "stronger", recipe, "--out", out, "--dry-run", "--pilot", 20, "--json").stdout
        # what the other set has cost is no part of it: an answer of the policy and one of the stronger model
        asked, said = 6.5, 11.5
        assert 2 * (asked + said) * 40 * 0.7 < json.loads(again)["tokens"]["mean"] < 2 * (asked + said) * 40 * 1.3
        pair = cost["kept_pair"]["pairs:clair"]
        assert pair["usd"] == pytest.approx(cost["usd"] / 40) and pair["tokens"] == cost["tokens"] / 40


def test_further_samples_are_told_apart_whatever_the_ids_of_prompts_look_like(tmp_path: Path) -> None:
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url)
        rows = [{"id": f"thread#{n}", "prompt": f"Where is order {n}?"} for n in (0, 1, 2)]
        (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        anchorline("pairs", "on-policy", recipe, "--out", tmp_path / "run")
    assert len(rows_of(tmp_path / "run/sets/on_policy/pairs.jsonl")) == 3


def test_a_pilot_counts_a_reply_that_rows_share_once(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    rows = [{"id": f"a{i}", "prompt": "Where is order 7?", "text": "It is on its way!"} for i in range(6)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url, pairs__answers=str(answers))
        words = ("pairs", "clair", recipe, "--out", tmp_path / "run")
        told = json.loads(anchorline(*words, "--dry-run", "--pilot", 6, "--json").stdout)
        assert fake.calls == 1
        anchorline(*words)
        assert fake.calls == 1
    cost = manifest_of(tmp_path / "run")["costs"]
    assert told["tokens"]["mean"] == cost["tokens"] > 0 and told["usd"]["mean"] == pytest.approx(cost["usd"])


def test_where_nothing_answers_nothing_is_estimated_and_the_way_on_is_told(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Running() as fake, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: a connection is refused
        wrong = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        recipe = write_project(tmp_path, fake.url, rows=3, llm__reviser__base_url=wrong, llm__reviser__attempts=1)
        told = anchorline("pairs", "clair", recipe, "--out", out, "--dry-run", "--pilot", 2).stdout
        assert "nothing can be estimated" in told and "tokens," not in told and "usd," not in told
        assert "2 connection (one of them: " in told and wrong in told and "--retry-failed" in told
        assert "--retry-failed" in anchorline("pairs", "clair", recipe, "--out", out, code=2).stderr
        right = ("--set", f"llm.reviser.base_url={fake.url}")
        assert "--retry-failed" in anchorline("pairs", "clair", recipe, "--out", out, *right, code=2).stderr
        words = ("pairs", "clair", recipe, "--out", out, *right, "--retry-failed")
        assert "100% became pairs" in anchorline(*words, "--dry-run", "--pilot", 2).stdout
        anchorline(*words)
    assert len(rows_of(out / "sets/clair/pairs.jsonl")) == 3


def test_an_unknown_price_stays_unknown(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url, llm__reviser__prices=None)
        told = anchorline("pairs", "clair", recipe, "--out", out, "--dry-run", "--pilot", 4).stdout
        assert "usd: unknown; give the price, such as --set llm.reviser.prices=" in told
        result = anchorline("pairs", "clair", recipe, "--out", out, "--max-usd", "1", code=2)
        assert "the price of 'reviser' is not known" in result.stderr
        assert "price unknown" in anchorline("pairs", "clair", recipe, "--out", out).stdout
    costs = manifest_of(out)["costs"]
    assert costs["usd"] is None and costs["stages"]["sample"]["usd"] > 0
    assert costs["kept_pair"]["pairs:clair"]["usd"] is None


def test_a_price_that_comes_late_is_that_of_the_replies_before_it_too(tmp_path: Path) -> None:
    out = tmp_path / "run"
    price = '--set=llm.reviser.prices={"input": 1.0, "output": 2.0}'
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url, llm__reviser__prices=None)
        words = ("pairs", "clair", recipe, "--out", out)
        told = anchorline(*words, "--dry-run", "--pilot", 4).stdout
        assert "give the price, such as --set llm.reviser.prices=" in told and "llm.policy" not in told
        told = json.loads(anchorline(*words, price, "--dry-run", "--pilot", 4, "--json").stdout)
        assert told["usd"]["mean"] > 0 and told["unpriced"] == [] and len(fake.asked("reviser")) == 4
        spent = told["usd"]["mean"] / 2  # of 8 rows, 4 are paid for
        stopped = anchorline(*words, price, "--max-usd", spent, code=1)
        assert "the run's budget is used up" in stopped.stderr and len(fake.asked("reviser")) == 4
        anchorline(*words, price)
        other = tmp_path / "other"
        anchorline("pairs", "clair", recipe, "--out", other, price)
    late, known = (manifest_of(folder)["costs"] for folder in (out, other))
    shares = [costs["kept_pair"]["pairs:clair"]["usd"] for costs in (late, known)]
    assert late["usd"] == pytest.approx(known["usd"]) and 0 < shares[0] == pytest.approx(shares[1])


def test_a_budget_stops_cleanly_and_counts_over_resumes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url, rows=20, llm__reviser__max_concurrency=2)
        words = ("pairs", "clair", recipe, "--out", out)
        spent = []
        for _ in range(2):
            result = anchorline(*words, "--max-tokens", 2500, code=1)
            assert (
                "the run's budget is used up: max_tokens is 2500" in result.stderr and "\n" not in result.stderr.strip()
            )
            spent.append(json.loads(anchorline("cache", "stats", out, "--json").stdout)["paid_by_stage"])
        assert spent[0] == spent[1] and 0 < spent[0]["revise"]["calls"] < 20
        tokens = sum(paid["prompt_tokens"] + paid["completion_tokens"] for paid in spent[0].values())
        assert 1500 < tokens <= 2500
        assert manifest_of(out)["costs"]["tokens"] == tokens  # also in the manifest of a run that was stopped
        anchorline(*words, "--max-tokens", 1_000_000)
        assert len(fake.asked("reviser")) == 20 and len(rows_of(out / "sets/clair/pairs.jsonl")) == 20


def test_a_batch_costs_half_and_its_replies_are_everybodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anchorline.llm.batch.FIRST_POLL", 0.01)
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url)
        anchorline("pairs", "clair", recipe, "--out", tmp_path / "direct")
        calls = fake.calls
        said = anchorline("pairs", "clair", recipe, "--out", tmp_path / "batch", "--batch").stdout
        assert "set clair: 8 pairs of 8 rows" in said and fake.calls == 2 * calls
        full, half = (manifest_of(tmp_path / name)["costs"] for name in ("direct", "batch"))
        assert half["usd"] == pytest.approx(full["usd"] / 2)
        assert half["kept_pair"]["pairs:clair"]["usd"] == pytest.approx(full["kept_pair"]["pairs:clair"]["usd"] / 2)
        anchorline("pairs", "clair", recipe, "--out", tmp_path / "batch")
        # made again of the same replies: what a pair cost stays what it was
        anchorline(
            "pairs", "clair", recipe, "--out", tmp_path / "batch", "--batch", "--set", "pairs.gates.max_change=0.8"
        )
        assert manifest_of(tmp_path / "batch")["costs"] == half
        assert fake.calls == 2 * calls and len(fake.server._batches._batches) == 2  # the samples, the revisions


def test_an_endpoint_that_is_down_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anchorline.llm.breaker.SECONDS", 0.5)
    out = tmp_path / "run"
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url, rows=60)
        anchorline("sample", recipe, "--out", out)
    result = anchorline("pairs", "clair", recipe, "--out", out, "--set", "llm.reviser.attempts=9", code=1)
    assert (
        "failures in a row" in result.stderr and "see to the endpoint, then run the same command again" in result.stderr
    )
    assert result.stderr.count("\n") == 1


def test_retry_after_is_honoured_and_a_limit_of_requests_holds(tmp_path: Path) -> None:
    with Running(plan=FaultPlan(script=("throttle",)), retry_after=0.7) as fake:
        recipe = write_project(tmp_path, fake.url, rows=4)
        anchorline("sample", recipe, "--out", tmp_path / "run")
        stages = manifest_of(tmp_path / "run")["stages"]
        assert fake.calls == 4 and set(fake.server._seen.values()) == {2}
        assert stages["sample"]["seconds"] >= 0.7
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url, rows=8, llm__policy__requests_per_minute=240)
        anchorline("sample", recipe, "--out", tmp_path / "slow")
        assert manifest_of(tmp_path / "slow")["stages"]["sample"]["seconds"] >= 1.0


def test_the_cache_commands(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url)
        anchorline("pairs", "clair", recipe, "--out", out)
    told = anchorline("cache", "stats", out).stdout
    assert "16 requests: 16 answered (0 of them cut), failed: none" in told and "for revise: 8 calls" in told
    request = tmp_path / "request.json"

    def explain(**changed: object) -> str:
        asked = {"messages": [{"role": "user", "content": "Where is order 3?"}], "max_tokens": 60, "temperature": 0.7}
        request.write_text(json.dumps(asked | changed))
        return anchorline("cache", "explain", out, request, "--model", "policy").stdout

    assert explain().startswith("hit: answered by policy")
    assert "temperature: asked 0.0, stored 0.7" in explain(temperature=0)
    assert "character 16" in explain(messages=[{"role": "user", "content": "Where is order 31?"}]).replace("17", "16")
    assert explain(max_tokens=4000).startswith("hit")  # it was not cut
    assert 'extra_body: asked {"top_k": 7}' in explain(extra_body={"top_k": 7})
    assert "--model" in anchorline("cache", "explain", out, request, code=2).stderr
    request.write_text(json.dumps({"messages": [], "max_tokens": 60, "top_k": 7}))
    assert "top_k: no setting" in anchorline("cache", "explain", out, request, "--model", "policy", code=2).stderr
    assert "is not JSON" in anchorline("cache", "explain", out, recipe, "--model", "policy", code=2).stderr
    assert "nothing says which" in anchorline("cache", "prune", out, code=2).stderr
    assert anchorline("cache", "prune", out, "--model", "policy").stdout == "8 requests deleted\n"
    assert "16 calls" not in (told := anchorline("cache", "stats", out).stdout) and "8 requests: 8" in told
    assert "for sample: 8 calls" in told  # what was paid stays counted
    assert "no such request cache" in anchorline("cache", "stats", tmp_path / "nowhere", code=2).stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("clair", "{recipe}", "--base-url", "http://127.0.0.1:1/v1"), "none is named"),
        (("clare", "{recipe}"), "expected a SOURCE, or one of clair"),
        (("clair", "{recipe}", "--pilot", "1", "--dry-run"), "greater than or equal to 2"),
        (("clair", "{recipe}", "--max-usd", "0"), "llm.budget.max_usd: got '0.0'"),
        (("clair", "{recipe}", "--base-url", "ftp://x", "--reviser", "m"), "http:// or https:// URL"),
        (("stronger", "{recipe}", "--set", "llm.stronger=null"), "llm.stronger.model="),
        (("off-policy", "{recipe}", "--set", "llm.others=[]"), "off_policy needs two models or more"),
        (("clair", "{recipe}", "--set", "pairs.prompt=nope.txt"), "cannot read the prompt template"),
        (("on-policy", "{recipe}", "--set", "pairs.judge_prompt={recipe}"), "the placeholder {{a}} is missing"),
        (("on-policy", "{recipe}", "--judge", "style", "--set", "style=null"), "`style` is lacking"),
    ],
)
def test_mistakes_cost_nothing(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with Running() as fake:
        recipe = write_project(tmp_path, fake.url)
        filled = [word.replace("{recipe}", str(recipe)) for word in words]
        result = anchorline("pairs", *filled, "--out", tmp_path / "run", code=2)
        assert says in " ".join(re.sub(r"[│╭╰─╮╯]", " ", result.stderr).split())
        assert fake.calls == 0 and not (tmp_path / "run").exists()
