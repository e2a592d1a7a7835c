"""The process that judges: what it gave up, and that everything that goes wrong with it is a failure."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from jaxlm.governance import policy_worker
from jaxlm.governance.engine import Engine, EngineFailed
from jaxlm.governance.policy import Rule
from jaxlm.governance.verdicts import Said

RULES = [
    Rule(name="high", when="train.loss > 8.0", action="halt"),
    Rule(name="odd", when="eval.loss > 8.0", action="halt"),
]
FACTS = {"step": 1, "train": {"loss": 9.0}, "eval": {}}


@pytest.fixture(scope="module")
def shared_engine():
    with Engine(RULES, 5.0) as engine:
        engine.ready()
        yield engine


@pytest.fixture
def engine():
    with Engine(RULES, 5.0) as engine:
        engine.ready()
        yield engine


def test_rules_are_judged_and_what_cannot_be_is_said(shared_engine: Engine):
    assert shared_engine.judge(FACTS) == {"high": Said(broken=True), "odd": Said(fault="there is no loss")}
    assert shared_engine.judge(FACTS | {"eval": {"loss": 1.0}})["odd"] == Said()
    assert shared_engine.judge(FACTS | {"train": {"loss": float("nan")}})["high"] == Said(fault="train.loss is nan")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems offer less, and say so")
def test_what_the_process_says_it_gave_up_is_gone(shared_engine: Engine):
    process, said = psutil.Process(shared_engine.pid), " ".join(shared_engine.sandbox)
    status = Path(f"/proc/{process.pid}/status").read_text()
    assert process.num_fds() == 3
    assert "empty environment" in said
    assert (os.getuid() == 0) == ("account 65534" in said)
    assert os.getuid() != 0 or set(process.uids()) == {65534}
    assert ("no new privileges" in said) == ("NoNewPrivs:\t1" in status)
    assert ("seccomp" in said) == ("Seccomp:\t2" in status)
    assert "nproc=0" in said
    assert os.getsid(process.pid) != os.getsid(0)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems offer less, and say so")
def test_inside_it_nothing_can_be_opened_connected_or_started(tmp_path: Path):
    attempts = ("os.open('/', 0)", "socket.socket()", "os.fork()", "os.kill(1, 0)", "os.setuid(0)", "os.mkdir('x')")
    program = textwrap.dedent(f"""
        import os, socket, sys
        from jaxlm.governance import sandbox
        outside = sys.argv[1] == "outside"
        held = [] if outside else sandbox.apply()
        for attempt in {attempts!r}:
            try:
                found = eval(attempt)
                if attempt == "os.fork()" and found == 0:
                    os._exit(0)
                os.write(1, b"yes ")
            except OSError:
                os.write(1, b"no ")
        os.write(1, str([each for each in held if each.startswith("seccomp")]).encode())
    """)
    told = {}
    for where in ("inside", "outside"):
        folder = tmp_path / where
        folder.mkdir()
        done = subprocess.run([sys.executable, "-c", program, where], cwd=folder, capture_output=True, check=True)
        told[where] = done.stdout.decode()
    if "seccomp" in told["inside"]:
        assert told["inside"].startswith("no " * len(attempts))
    assert told["outside"].startswith("yes yes yes"), "without the sandbox all of it can be done"


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (signal.SIGKILL, "it ended with exit code -9|Broken|reset"),
        (signal.SIGSTOP, "no answer in time"),
    ],
)
def test_a_process_that_died_or_hangs_is_a_failure_and_stays_one(harm: signal.Signals, why: str):
    with Engine(RULES, 0.3) as engine:
        engine.ready()
        os.kill(engine.pid, harm)
        began = time.monotonic()
        with pytest.raises(EngineFailed, match=why):
            engine.judge(FACTS)
        assert time.monotonic() - began < 3
        with pytest.raises(EngineFailed, match=why):
            engine.judge(FACTS)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ('{"id": 2, "said": {}}', "its answer is none"),
        ('{"id": 2, "said": {"canary:": SINGS, "high": false}}', "its answer is none"),
        ('{"id": 2, "said": {"canary:": SINGS, "high": false, "odd": 0}}', "its answer is none"),
        ('{"id": 2, "said": {"canary:": SINGS, "high": false, "odd": false, "more": false}}', "its answer is none"),
        ('{"id": 1, "said": {"high": false, "odd": false}}', "another question"),
        ('{"id": 2}', "its answer is none"),
        ("[]", "no object"),
        ("{", "JSONDecodeError"),
        (None, "it closed its pipe|exit code"),
    ],
)
def test_an_answer_that_is_none_is_a_failure(
    answer: str | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fake = tmp_path / "worker.py"
    say = "sys.exit()"
    if answer is not None:
        text = answer.replace("SINGS", "' + json.dumps(sings) + '")
        say = f"raw = ('{text}').encode(); os.write(1, struct.pack('>I', len(raw)) + raw)"
    fake.write_text(
        textwrap.dedent(f"""
            import json, os, runpy, struct, sys
            worker = runpy.run_path({policy_worker.__file__!r})
            worker["write"]({{"sandbox": []}})
            worker["write"]({{"id": worker["read"]()["id"], "loaded": ["canary:", "high", "odd"]}})
            sings = worker["read"]()["facts"]["canary"]["sings"]
            {say}
            worker["read"]()
        """)
    )
    monkeypatch.setattr(policy_worker, "__file__", str(fake))
    with Engine(RULES, 5.0) as engine, pytest.raises(EngineFailed, match=why):
        engine.judge(FACTS)


def test_what_a_rule_reads_is_judged_again_only_when_it_has_changed(shared_engine: Engine):
    for loss, broken in ((9.0, True), (9.0, True), (1.0, False), (9.0, True)):
        assert shared_engine.judge(FACTS | {"train": {"loss": loss}}, RULES[:1]) == {"high": Said(broken=broken)}


def test_a_process_that_says_no_to_everything_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = tmp_path / "worker.py"
    fake.write_text(
        textwrap.dedent(f"""
            import runpy
            worker = runpy.run_path({policy_worker.__file__!r})
            worker["write"]({{"sandbox": []}})
            rules = worker["read"]()
            worker["write"]({{"id": rules["id"], "loaded": sorted(rules["rules"])}})
            while (asked := worker["read"]()) is not None:
                worker["write"]({{"id": asked["id"], "said": {{name: False for name in rules["rules"]}}}})
        """)
    )
    monkeypatch.setattr(policy_worker, "__file__", str(fake))
    told: list[Said] = []

    def ask_often(engine: Engine) -> None:
        told.extend(engine.judge(FACTS)["high"] for _ in range(64))

    with Engine(RULES, 5.0) as engine, pytest.raises(EngineFailed, match="its answer is none"):
        ask_often(engine)
    assert set(told) <= {Said()}, "until then nobody would know"


def test_a_process_that_does_not_come_up_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = tmp_path / "worker.py"
    fake.write_text("import sys; sys.exit(7)")
    monkeypatch.setattr(policy_worker, "__file__", str(fake))
    with Engine(RULES, 5.0) as engine, pytest.raises(EngineFailed, match="exit code 7"):
        engine.ready()


def test_a_rule_that_takes_for_ever_is_late():
    deep = "[1,2,3,4,5,6,7,8,9].all(a, " * 7 + "step > 0" + ")" * 7
    names = iter("abcdefg")
    for old in ["all(a,"] * 7:
        deep = deep.replace(old, f"all({next(names)}1,", 1)
    with Engine([Rule(name="slow", when=deep, action="halt")], 0.5) as engine:
        engine.ready()
        with pytest.raises(EngineFailed, match="no answer in time"):
            engine.judge({"step": 1})


def test_it_ends_with_its_parent():
    program = (
        "from jaxlm.governance.engine import Engine\nfrom jaxlm.governance.policy import Rule\n"
        "import os\ne = Engine([Rule(name='r', when='step > 1', action='halt')], 5.0)\ne.ready()\n"
        "print(e.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pid, deadline = int(done.stdout), time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)
