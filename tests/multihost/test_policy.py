"""Policy drills on two real processes over gloo: what process 0 judges, both do, after the same step."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from experiments.processes import free_port
from jaxlm.auditor import verify_run
from jaxlm.cli import main
from jaxlm.governance.audit import read_log
from jaxlm.governance.entries import Entry
from jaxlm.governance.keys import Keys, private_key
from jaxlm.governance.notes import LogKey
from jaxlm.governance.trust import Trust
from tests.cli.programs import finish, losses, start, write_config

KEYS = ["--train.steps", "40", "--checkpoint.every_steps", "1000", "--plan.mesh.fsdp", "2", "--train.log_every", "1"]
PEOPLE = 'approvers: ["{}"]\nrules:\n'


def launch(config: Path, run: Path, policy: Path) -> list[subprocess.Popen[str]]:
    job = ["--coordinator", f"localhost:{free_port()}", "--processes", "2", "--governance.policy", policy]
    return [
        start(["train", config, "--run-dir", run, *KEYS, *job, "--process", str(i)], home=config.parent) for i in (0, 1)
    ]


def entries(run: Path, *kinds: str) -> list[Entry]:
    log = read_log(run / "audit", keys=None, full=True)
    return [entry for entry in log.entries if entry.kind in kinds]


def wait_for(run: Path, processes: list[subprocess.Popen[str]], verdicts: int) -> None:
    deadline = time.monotonic() + 120
    while not (run / "audit/log/checkpoint").exists() or len(entries(run, "policy.verdict")) < verdicts:
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1.5)  # until both wait


def approve(run: Path, key: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["audit", "approve", str(run), "--key", str(key), "--reason", "drill"])
    assert ended.value.code == 0


@pytest.mark.slow
def test_both_processes_pause_go_on_and_halt_together(tmp_path: Path):
    config, run, policy, key = (
        write_config(tmp_path),
        tmp_path / "run",
        tmp_path / "policy.yaml",
        tmp_path / "alice.pem",
    )
    alice = LogKey("alice", private_key(key, make=True)).verifier
    policy.write_text(
        PEOPLE.format(alice) + "  - {name: look, when: step == 3, action: review}\n"
        "  - {name: late, when: step == 6, action: halt}\n"
    )

    both = launch(config, run, policy)
    wait_for(run, both, 1)
    both[1].send_signal(signal.SIGTERM)  # to the one that does not judge, while both wait
    assert "stopped by signal 15; state after step 4 saved" in finish(both[0], 143)
    finish(both[1], 143)
    assert losses(run)[-1][0] == 4

    both = launch(config, run, policy)  # waits again, before any step
    time.sleep(6)
    assert [process.poll() for process in both] == [None, None]
    assert losses(run)[-1][0] == 4
    approve(run, key)
    said = [finish(process, 4) for process in both]
    assert "alice says approve on verdict" in said[0]
    assert "halted by its policy (rule late, step 6" in said[0]
    assert "state after step 7 saved and verified" in said[0]
    assert losses(run)[-1][0] == 7, "step 6 broke the rule while step 7 was under way, and nobody took step 8"
    assert [e.body["step"] for e in entries(run, "ckpt.commit")] == [4, 7]
    report = verify_run(run, Trust(key=LogKey("n", Keys().log()).verifier), pins=False)
    assert not report.faults

    said = [finish(process, 4) for process in launch(config, run, policy)]
    assert all("jaxlm audit approve" in each for each in said), "a halted run is not started again by just starting it"
    assert losses(run)[-1][0] == 7

    approve(run, key)
    policy.write_text(PEOPLE.format(alice) + "  - {name: odd, when: step > 8 && eval.loss > 1.0, action: alert}\n")
    said = [finish(process, 4) for process in launch(config, run, policy)]
    assert "halted by its policy (rule odd, step 9: step > 8 && eval.loss > 1.0: there is no loss" in said[0]
    assert losses(run)[-1][0] == 10
    assert [e.body["step"] for e in entries(run, "ckpt.commit")] == [4, 7, 10]
    verdicts = [(e.body["rule"], e.body["action"], e.body.get("failed")) for e in entries(run, "policy.verdict")]
    assert verdicts == [("look", "review", None), ("late", "halt", None), ("odd", "halt", True)]
    report = verify_run(run, Trust(key=LogKey("n", Keys().log()).verifier), pins=False)
    assert not report.faults
    assert any("verdict" in alert and "waits for a decision" in alert for alert in report.alerts)
