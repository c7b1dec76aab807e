"""`anchorline advise` with the policy and the judge behind HTTP: fair, always first, and taken up again for nothing."""

from __future__ import annotations

import json

from chat import Actor, Running, anchorline, rows_of, write_project

from anchorline.recipe import load_recipe, run
from anchorline.recipe.advising import same_model


def advised(folder, fake, *words, own=None):
    result = asked_for_advice(folder, fake, "--json", *words, own=own)
    return json.loads(result.stdout)


def asked_for_advice(folder, fake, *words, own=None, judge_url=None, code=0):
    rows = [{"prompt": f"Where is order {n}?", "chosen": "Left!!!!!!", "rejected": "Left!!!!!!!!!"} for n in range(20)]
    rows += [{**row, "prompt": row["prompt"] + " Hm?", "details": {"turned": True}} for row in rows]
    rows = [row | ({"objective": own} if own and n % 4 == 0 else {}) for n, row in enumerate(rows)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["advise", "--policy", "talker", "--policy-url", fake.url, "--judge", "judge"]
    asked += ["--base-url", judge_url or fake.url, "--pairs", folder / "pairs.jsonl", "--out", folder / "run"]
    return anchorline(*asked, *words, code=code)


def test_a_fair_judge_places_it_and_what_was_asked_is_not_asked_again(tmp_path):
    with Running() as fake:
        found = advised(tmp_path, fake)
        assert (found["place"], found["objective"], found["settled"]) == ("above", "apo_down", True)
        assert found["chosen"]["n"] == found["judged"] > 12 and found["hidden"]["skipped"]
        assert found["pairs"] == 36 and found["judged"] < 24  # turned pairs are not judged
        calls = fake.calls
        assert len(fake.asked("judge")) == 4 * found["judged"]
        assert advised(tmp_path, fake, "--set", "advise.level=0.9")["level"] == 0.9
        assert fake.calls == calls


def test_a_judge_and_a_number_that_a_setting_names_hold(tmp_path):
    """Where no option says otherwise: an option's default is no word of the user's."""
    with Running() as fake:
        asked_for_advice(tmp_path, fake)  # writes the pairs
        words = ["advise", "--policy", "talker", "--policy-url", fake.url, "--pairs", tmp_path / "pairs.jsonl"]
        words += ["--set", "advise.judge=llm", "--set", "llm.judge.model=judge"]
        words += ["--set", f"llm.judge.base_url={fake.url}", "--set", "advise.prompts=5"]
        found = json.loads(anchorline(*words, "--json", "--out", tmp_path / "set").stdout)
    assert found["judge"] == "judge" and found["sampled"] == 5


def test_an_objective_that_a_pair_has_stays(tmp_path):
    with Running() as fake:
        found = advised(tmp_path, fake, "--per-pair", tmp_path / "own.jsonl", own="dpo")
    assert found["per_pair"]["kept"] == 10 and found["per_pair"]["counts"] == {"dpo": 10, "apo_down": 30}
    written = [row["objective"] for row in rows_of(tmp_path / "own.jsonl")]
    assert [n for n, name in enumerate(written) if name == "dpo"] == list(range(0, 40, 4))


def test_a_judge_that_always_says_first_settles_nothing(tmp_path):
    with Running(Actor(judge="VERDICT: A")) as fake:
        found = advised(tmp_path, fake)
    assert (found["place"], found["objective"], found["needed"]) == ("not settled", "apo_zero", None)
    for side in ("chosen", "rejected"):
        rate = found[side]
        assert rate["share"] == 0.5 and rate["flips"] == rate["ties"] == rate["n"] > 12


def test_what_a_judge_said_that_cannot_be_read_is_counted_under_its_name(tmp_path):
    with Running(Actor(judge="I cannot tell.")) as fake:
        found = advised(tmp_path, fake)
        said = " ".join(asked_for_advice(tmp_path, fake).stdout.split())
    n = found["sampled"]
    assert (found["judge"], found["judged"], found["unjudged"]) == ("judge", 0, {"unreadable": n})
    assert f"Judge judge: 0 of {n} asked; left out, see failures.jsonl: {n} unreadable; 36 pairs in all" in said


def test_a_judge_that_is_away_is_an_error_and_is_asked_again_when_it_is_back(tmp_path):
    with Running() as fake:
        once, nowhere = ("--set", "llm.judge.attempts=1"), "http://127.0.0.1:1/v1"
        away = asked_for_advice(tmp_path, fake, *once, judge_url=nowhere, code=1)
        assert "the judge judge answered none of" in away.stderr
        assert not (tmp_path / "run" / "advise.json").exists()
        assert advised(tmp_path, fake)["objective"] == "apo_down"


def test_a_served_policy_answers_anew_though_the_cache_knows_its_samples(tmp_path):
    with Running() as fake:
        file = write_project(tmp_path, fake.url)
        run(load_recipe(file, ["train.objective=auto"]), tmp_path / "run", upto="advise")
    sampled, fresh = (
        {row["id"]: row["text"] for row in rows_of(tmp_path / "run" / name)}
        for name in ("answers.jsonl", "advise/answers.jsonl")
    )
    assert len(fresh) == 8 and {id: text.count("!") for id, text in fresh.items()} == dict.fromkeys(sampled, 3)
    assert {text.count("!") for text in sampled.values()} == {2}


def test_a_score_judges_template_is_not_the_one_for_two_answers(tmp_path):
    template = tmp_path / "score.txt"
    template.write_text("=== user ===\n{{rubric}} {{conversation}} {{answer}}\n")
    with Running() as fake:
        found = advised(tmp_path, fake, "--set", "pairs.judge_mode=score", "--set", f"pairs.judge_prompt={template}")
    assert found["judged"] > 12


def test_a_folder_is_one_model_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "m").mkdir()
    (tmp_path / "n").mkdir()
    monkeypatch.chdir(tmp_path)
    assert same_model("m", str(tmp_path / "m")) and same_model("owner/name", "owner/name")
    assert not same_model("m", "n") and not same_model("owner/name", "owner/other")
