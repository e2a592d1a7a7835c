"""Rules as they are read, judged and tried on a run that has been."""

import sys
from pathlib import Path

import pytest

from jaxlm.decode import ConfigError
from jaxlm.governance import cel
from jaxlm.governance.policy import Loaded, facts_of, load, loads
from jaxlm.governance.rehearsal import rehearse
from jaxlm.governance.verdicts import Said, Standing, gravest


def policy(*rules: str, **keys: str) -> Loaded:
    """Of rules such as `halt: train.loss > 8.0`, named r0, r1, ..."""
    lines = [f"{key}: {value}" for key, value in keys.items()] + ["rules:"]
    for number, (action, when) in enumerate(rule.split(": ", 1) for rule in rules):
        lines += [f"  - name: r{number}", f"    action: {action}", f"    when: >-\n      {when}"]
    return loads("\n".join(lines).encode(), "p.yaml")


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("train.los > 2.0", "column 1: there is no train.los, did you mean 'loss'?"),
        ("1.0 < trian.loss", "column 7: there is no trian, did you mean 'train'?"),
        ("train.loss > 2.0 &&", "column 18: is no CEL from here on"),
        ("step", "gives a whole number, not true or false"),
        ("step > 1 && near(train.loss)", "column 13: there is no function near"),
        ("train.loss > 'high'", "cannot be computed with a number and text"),
        ("step > 9 && train.loss > 'high'", "cannot be computed with a number and text"),
        ("step > 9 && (step > 8 || step)", "gives a whole number"),
        ("train.loss / (step + 1) > 1.0", "double(x) makes a number of a whole one"),
        ("1 < 2", "reads nothing"),
        ("step.x > 1", "has no fields"),
        ("log.siz > 1", "did you mean 'size'?"),
        ("(" * 900 + "train.loss" + ")" * 900 + " > 1.0", "cannot be read"),
        ("train.loss > 1.0" + " " * 2000, "at most 2,000"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_with_its_name_and_column(when: str, said: str):
    with pytest.raises(ConfigError) as error:
        loads(f'rules: [{{name: r, action: halt, when: "{when}"}}]'.encode(), "p.yaml")
    assert str(error.value).startswith("p.yaml: rule r, column ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: []", "allows everything"),
        ("rules: [{name: r, when: step > 1, action: stop}]", "'stop' is not one of alert, review, halt, deny"),
        ("rules: [{name: r, wen: step > 1, action: halt}]", "did you mean 'when'?"),
        ("rules: [{name: r, when: step > 1, action: review}]", "nobody is listed who may approve"),
        ("fail: review\nrules: [{name: r, when: step > 1, action: alert}]", "nobody is listed who may approve"),
        ("approvers: [me]\nrules: [{name: r, when: step > 1, action: review}]", "is no public key"),
        ("rules: [{name: r, when: step > 1, action: deny}]", "only a rule over request can deny"),
        ("rules: [{name: r, when: request.tokens > 1, action: halt}]", "can deny or alert, not halt"),
        ("rules: [{name: r, when: request.tokens > step, action: deny}]", "never there at once"),
        (
            "rules: [{name: r, when: step > 1, action: halt}, {name: r, when: step > 2, action: halt}]",
            "the name of two rules",
        ),
        ("rules: [{name: r, when: step > 1, action: halt}]\nevery: 0", "every=0 must be positive"),
        ("- a", "must hold a mapping"),
        ("rules: [", "not valid YAML"),
    ],
)
def test_a_policy_that_cannot_work_is_refused(text: str, said: str):
    with pytest.raises(ConfigError, match=r"p\.yaml") as error:
        loads(text.encode(), "p.yaml")
    assert said in str(error.value)


def test_a_missing_policy_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"governance\.policy: .*gone\.yaml cannot be read"):
        load(tmp_path / "gone.yaml")


def test_without_the_package_of_cel_who_may_approve_is_known_and_nothing_else(monkeypatch: pytest.MonkeyPatch):
    content = b"rules: [{name: r, when: step > 1, action: halt}]"
    monkeypatch.setitem(sys.modules, "celpy", None)
    with pytest.raises(ConfigError, match=r"uv sync --extra policy"):
        loads(content, "p.yaml")
    assert loads(content, "p.yaml", compiled=False).policy.rules[0].name == "r"


def test_the_sample_policy_can_be_followed():
    loaded = load(Path(__file__).parents[2] / "configs/policies/sample.yaml")
    assert loaded.requests == {"too-long", "card-numbers"}
    assert {rule.action for rule in loaded.policy.rules} == {"alert", "halt", "deny"}


def test_what_an_expression_reads_leaves_out_the_variables_of_macros():
    program = cel.compile('has(a.b) && c["d/e"].f > 1.0 && layers.all(n, layers[n].update < n.x + g.h)')
    assert program.reads == {("a", "b"), ("c", "d/e", "f"), ("layers",), ("g", "h")}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_a_fault_and_never_a_silent_no(bad: float):
    for when in ("train.loss > 8.0", "has(train.loss) && train.loss > 8.0", "train.exists(n, train[n] > 8.0)"):
        with pytest.raises(cel.Fault, match=r"train\.loss is"):
            cel.compile(when)({"train": {"loss": bad}})


def test_names_with_a_slash_lie_in_their_own_namespace():
    assert facts_of({"loss": 2, "fairness/auc_gap": 0.25, "name": "x", "ok": True}, "train") == {
        "train": {"loss": 2.0},
        "fairness": {"auc_gap": 0.25},
    }


def test_a_rule_that_stays_broken_is_told_once_until_it_has_held():
    loaded, standing = policy("alert: train.loss > 8.0", "halt: train.loss > 9.0"), Standing()
    told = []
    for answers in ("00", "10", "11", "11", "00", "1?", "10"):
        said = {f"r{i}": Said(each == "1", "x" if each == "?" else None) for i, each in enumerate(answers)}
        told.append([(v.rule, v.action, v.failed) for v in standing.verdicts(loaded.policy.rules, said, "halt", {})])
    alert, halt, failed = ("r0", "alert", False), ("r1", "halt", False), ("r1", "halt", True)
    assert told == [[], [alert], [halt], [], [], [alert, failed], []]


def test_the_gravest_verdict_is_what_is_done():
    loaded = policy("alert: step > 0", "halt: step > 0", "halt: step > 0")
    said = {f"r{i}": Said(broken=True) for i in range(3)}
    found = gravest(Standing().verdicts(loaded.policy.rules, said, "halt", {"step": 1}))
    assert found is not None
    assert (found.rule, found.values) == ("r1", {"step": 1})
    assert gravest([]) is None


def test_a_dry_run_says_what_each_rule_would_have_done():
    loaded = policy(
        "halt: step > 2 && train.loss > 5.0",
        "alert: has(eval.loss) && eval.loss < 4.0",
        "halt: eval.loss < 4.0",
        "alert: dp.spent > 1.0",
        "deny: request.tokens > 5",
        "alert: train.loss < 0.0",
    )
    records = [{"step": step, "loss": loss} for step, loss in enumerate([9, 4, 4, 6, 6, 3, 7], 1)]
    done = rehearse(loaded, records, [{"step": 3, "loss": 3.5}])
    assert [(step, v.rule, v.failed) for acts in done.acts.values() for step, v in acts] == [
        (4, "r0", False),
        (7, "r0", False),
        (4, "r1", False),
        (1, "r2", True),
    ]
    text = "\n".join(done.lines(loaded))
    assert "r0  halt    acts after step 4, 7 (step=4, train.loss=6 at the first)" in text
    assert "r2  halt    cannot be judged, which is halt, from step 1: eval.loss < 4.0: there is no loss" in text
    assert "r3  alert   not judged: metrics.jsonl holds no dp" in text
    assert "r5  alert   never acts" in text
    assert "the first halt would come after step 1" in text
