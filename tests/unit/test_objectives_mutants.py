"""Every sign, every answer and every branch in an objective's source is exchanged in turn: the checks reject each one.

The checks are hand-worked losses and the paper's gradients. A mutant is the objective compiled from its own source
with one place changed; one that passes the checks is a test that would not notice a flipped sign.
"""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap

import pytest
import torch

from anchorline.objectives import apo, kto, logps, metrics, sft
from anchorline.objectives import dpo as dpo_module
from anchorline.objectives.logps import AnswerLogps, PairLogps

BETA = 0.5
# rewards (1, -1/2) and (-2, -3): policy minus reference, times BETA
POLICY_CHOSEN, POLICY_REJECTED = [-10.0, -24.0], [-31.0, -46.0]
REFERENCE_CHOSEN, REFERENCE_REJECTED = [-12.0, -20.0], [-30.0, -40.0]
CHOSEN_TOKENS, REJECTED_TOKENS = [4, 8], [5, 10]

# s(1) = 0.7310586, s(-1/2) = 0.3775407, s(-2) = 0.1192029, s(-3) = 0.0474259, s(3/2) = 0.8175745
# d(1) = 0.1966119, d(-1/2) = 0.2350037, d(-2) = 0.1049936, d(-3) = 0.0451767, d(3/2) = 0.1491465
PAIR_CHECKS = {  # losses; gradients on r_w; gradients on r_l
    "apo_zero": ([0.6464821, 0.9282230], [-0.1966119, -0.1049936], [0.2350037, 0.0451767]),
    "apo_down": ([0.9134841, 0.3881443], [0.0474654, -0.0916183], [0.1491465, 0.1966119]),
    "apo_up": ([0.8048848, 1.2215155], [-0.1491465, -0.1966119], [-0.0858572, 0.1514352]),
    "dpo": ([0.2014133, 0.3132617], [-0.1824255, -0.2689414], [0.1824255, 0.2689414]),
}
# the four answers as single ones, labels True, True, False, False; kto with z = 1, so r - BETA z = r - 1/2
ANSWER_CHECKS = {  # losses; gradients on r
    "apo_zero_unpaired": (
        [0.2689414, 0.8807971, 0.3775407, 0.0474259],
        [-0.1966119, -0.1049936, 0.2350037, 0.0451767],
    ),
    "kto": (  # weights 2 and 3
        [2 * 0.3775407, 2 * 0.9241418, 3 * 0.2689414, 3 * 0.0293122],
        [-2 * 0.2350037, -2 * 0.0701037, 3 * 0.1966119, 3 * 0.0284530],
    ),
    "sft": ([2.5, 3.0, 0.0, 0.0], [-0.25 / BETA, -0.125 / BETA, 0.0, 0.0]),
}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def passes_pair_checks(objective, name):
    policy = [tensor(values).requires_grad_() for values in (POLICY_CHOSEN, POLICY_REJECTED)]
    reference = tensor(REFERENCE_CHOSEN), tensor(REFERENCE_REJECTED)
    pairs = PairLogps(*policy, *reference, torch.tensor(CHOSEN_TOKENS), torch.tensor(REJECTED_TOKENS))
    loss = objective(pairs, beta=BETA)
    return close((loss, *slopes(loss, policy)), PAIR_CHECKS[name])


def passes_answer_checks(objective, name):
    settings = {
        "apo_zero_unpaired": {"beta": BETA},
        "kto": {"beta": BETA, "reference_point": tensor(1.0), "desirable_weight": 2.0, "undesirable_weight": 3.0},
        "sft": {},
    }[name]
    policy = tensor(POLICY_CHOSEN + POLICY_REJECTED).requires_grad_()
    reference = tensor(REFERENCE_CHOSEN + REFERENCE_REJECTED)
    label, tokens = torch.tensor([True, True, False, False]), torch.tensor(CHOSEN_TOKENS + REJECTED_TOKENS)
    loss = objective(AnswerLogps(policy, reference, label, tokens), **settings)
    return close((loss, *slopes(loss, [policy])), ANSWER_CHECKS[name])


def passes_sft_pair_checks(objective, name):
    policy = [tensor(values).requires_grad_() for values in (POLICY_CHOSEN, POLICY_REJECTED)]
    reference = tensor(REFERENCE_CHOSEN), tensor(REFERENCE_REJECTED)
    loss = objective(PairLogps(*policy, *reference, torch.tensor(CHOSEN_TOKENS), torch.tensor(REJECTED_TOKENS)))
    return close((loss, *slopes(loss, policy)), ([2.5, 3.0], [-0.25 / BETA, -0.125 / BETA], [0.0, 0.0]))


def slopes(loss, leaves):
    """Gradients on the rewards; zeros where a leaf plays no part."""
    found = torch.autograd.grad(loss.sum(), leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if g is None else g / BETA for g, leaf in zip(found, leaves, strict=True)]


def close(got, expected):
    """Each list against its own, so that neither losses nor gradients can stand in for the other."""
    return all(torch.allclose(a, tensor(b), rtol=0, atol=2e-6) for a, b in zip(got, expected, strict=True))


# the function; the functions whose source is mutated, with their modules; the checks
CASES = {
    "apo_zero": (apo, ["apo_zero"], passes_pair_checks),
    "apo_down": (apo, ["apo_down"], passes_pair_checks),
    "apo_up": (apo, ["apo_up"], passes_pair_checks),
    "dpo": (dpo_module, ["dpo"], passes_pair_checks),
    "apo_zero_unpaired": (apo, ["apo_zero_unpaired"], passes_answer_checks),
    "kto": (kto, ["kto"], passes_answer_checks),
    "sft": (sft, ["sft", "_per_token"], lambda f, n: passes_answer_checks(f, n) and passes_sft_pair_checks(f, n)),
}
EXCHANGES = {
    "chosen": "rejected",
    "policy_chosen": "policy_rejected",
    "reference_chosen": "reference_rejected",
    "chosen_tokens": "rejected_tokens",
    "desirable_weight": "undesirable_weight",
}
EXCHANGES |= {value: key for key, value in EXCHANGES.items()}


def flip(node):
    """The node with its sign, answer or branch exchanged; None where it has none."""
    match node:
        case ast.BinOp(left, ast.Add(), right):
            return ast.BinOp(left, ast.Sub(), right)
        case ast.BinOp(left, ast.Sub(), right):
            return ast.BinOp(left, ast.Add(), right)
        case ast.UnaryOp(ast.USub(), operand):
            return operand
        case ast.Call(ast.Attribute(attr="where"), [condition, yes, no]):
            return ast.Call(node.func, [condition, no, yes], [])
        case ast.Call(ast.Attribute(attr="sigmoid"), [argument]):
            return ast.Call(node.func, [ast.UnaryOp(ast.USub(), argument)], [])
        case ast.Attribute(attr=name) if name in EXCHANGES:
            return ast.Attribute(node.value, EXCHANGES[name], node.ctx)
        case ast.Name(id=name, ctx=ast.Load()) if name in EXCHANGES:
            return ast.Name(EXCHANGES[name], node.ctx)
    return None


def mutants(function):
    """(what was changed, source tree) for each place in the function that can be flipped."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    places = [i for i, node in enumerate(ast.walk(tree)) if flip(node)]
    for place in places:
        mutant = copy.deepcopy(tree)
        target = list(ast.walk(mutant))[place]
        before, after = ast.unparse(target), flip(target)
        for parent in ast.walk(mutant):
            for field, value in ast.iter_fields(parent):
                if value is target:
                    setattr(parent, field, after)
                elif isinstance(value, list) and target in value:
                    value[value.index(target)] = after
        yield f"{function.__name__}: {before} -> {ast.unparse(after)}", ast.fix_missing_locations(mutant)


def rebuild(module, *trees):
    """The module's namespace with those functions defined anew: functions of the module see the new ones."""
    namespace = dict(vars(module))
    for tree in trees:
        exec(compile(tree, module.__name__, "exec"), namespace)
    return namespace


def source(module, name):
    return ast.parse(textwrap.dedent(inspect.getsource(vars(module)[name])))


def all_mutants():
    for name, (module, functions, _) in CASES.items():
        for function in functions:
            for change, tree in mutants(vars(module)[function]):
                yield pytest.param(name, function, tree, id=f"{name}-{change}")


MUTANTS = list(all_mutants())


@pytest.mark.parametrize("name", CASES)
def test_the_real_objective_passes(name):
    module, functions, check = CASES[name]
    assert check(vars(module)[name], name)
    # and so does the same source compiled here, so that a mutant can only fail by its change
    assert check(rebuild(module, *(source(module, function) for function in functions))[name], name)


@pytest.mark.parametrize(("name", "function", "tree"), MUTANTS)
def test_mutant_is_rejected(name, function, tree):
    module, functions, check = CASES[name]
    trees = [tree if other == function else source(module, other) for other in functions]
    assert not check(rebuild(module, *trees)[name], name)


def test_there_are_mutants_of_every_objective():
    found = [param.values[0] for param in MUTANTS]
    assert min(found.count(name) for name in CASES) >= 3


@pytest.mark.parametrize("name", ["apo_zero", "apo_down", "apo_up", "dpo", "apo_zero_unpaired", "kto"])
def test_a_flipped_reward_is_rejected(name):
    """The sign inside `rewards`, and chosen and rejected exchanged inside `pair_rewards`."""
    module, _, check = CASES[name]
    helpers = ["rewards", "pair_rewards" if check is passes_pair_checks else "answer_rewards"]
    for helper in helpers:
        changes = list(mutants(vars(logps)[helper]))
        for change, tree in changes:
            broken = rebuild(logps, *(tree if other == helper else source(logps, other) for other in helpers))
            namespace = dict(vars(module)) | {other: broken[other] for other in helpers}
            exec(compile(source(module, name), module.__name__, "exec"), namespace)
            assert not check(namespace[name], name), change
        assert changes or helper == "answer_rewards"


@pytest.mark.parametrize("name", ["apo_zero", "apo_down", "apo_up", "dpo"])
def test_policy_and_reference_exchanged_are_rejected(name):
    module, _, check = CASES[name]

    def exchanged(pairs, *, beta):
        return vars(module)[name](PairLogps(*pairs[2:4], *pairs[:2], *pairs[4:]), beta=beta)

    assert not check(exchanged, name)


def test_the_wrong_apo_down_in_circulation_is_rejected():
    """It has a term in r_l alone in place of the margin's, and would raise the rejected answer."""

    def wrong(pairs, *, beta):
        chosen, rejected = logps.pair_rewards(pairs, beta=beta)
        return torch.sigmoid(chosen) + 1 - torch.sigmoid(rejected)

    assert not passes_pair_checks(wrong, "apo_down")


def test_flipped_metrics_are_rejected():
    """The same for `pair_metrics`: its margin, and both directions of every comparison."""
    reference = torch.zeros(3, dtype=torch.float64)
    policy = tensor([1.0, -9.0, -1.0]), tensor([-2.0, 9.0, -4.0])
    tokens = torch.tensor([1, 1, 1])
    pairs = PairLogps(*policy, reference, reference, tokens, tokens)
    expected = [column.tolist() for column in metrics.pair_metrics(pairs, beta=1.0)]
    changes = list(mutants(metrics.pair_metrics))
    for change, tree in changes:
        mutant = rebuild(metrics, tree)["pair_metrics"](pairs, beta=1.0)
        assert [column.tolist() for column in mutant] != expected, change
    assert len(changes) > 8
