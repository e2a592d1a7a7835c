"""The host that hangs is named, by what the hosts themselves wrote, and no host that works is."""

import json
from pathlib import Path
from typing import Any

from jaxlm.runtime.watchdog import Patience, Watchdog

PATIENCE = Patience(silent=20, factor=10, least=30, other=600)


class Job:
    """Reports of three hosts, and a clock."""

    def __init__(self, folder: Path, hosts: int = 3):
        self.folder, self.now = folder, 0.0
        self.reports = {
            host: {
                "host": host,
                "beat": 0,
                "phase": "step",
                "step": 5,
                "finished": 4,
                "step_seconds": {"median": 1.0, "count": 4},
                "processes": hosts,
            }
            for host in range(hosts)
        }
        self.watchdog = Watchdog(folder, list(self.reports), PATIENCE, lambda: self.now)

    def after(self, seconds: float, silent: tuple[int, ...] = (), **changes: Any) -> Any:
        """What the watchdog says after so many seconds, in which all but the silent ones gave signs of life."""
        for _ in range(int(seconds)):
            self.now += 1
            for host, report in self.reports.items():
                if host not in silent:
                    report["beat"] += 1
                    report.update(changes)
                (self.folder / f"{host}.json").write_text(json.dumps(report))
            said = self.watchdog()
            if said is not None:
                return said
        return None


def test_hosts_that_take_steps_are_left_alone(tmp_path):
    job = Job(tmp_path)
    for step in range(6, 20):
        assert job.after(25, step=step, finished=step - 1) is None


def test_a_host_that_is_stopped_is_named_after_its_silence(tmp_path):
    job = Job(tmp_path)
    assert job.after(5) is None
    host, why = job.after(40, silent=(1,))
    assert host == 1
    assert "it has given no sign of life for 21 s" in why
    assert job.now == 26


def test_a_host_that_waits_for_data_while_the_others_wait_for_it_is_named(tmp_path):
    job = Job(tmp_path)
    assert job.after(1) is None
    job.reports[2]["phase"], job.reports[2]["step"] = "waits for data", 4
    host, why = job.after(60)
    assert host == 2
    assert "it waits for data in step 4" in why
    assert "the others wait for it in step 5" in why


def test_when_all_wait_inside_a_step_a_collective_hangs_and_nobody_is_blamed(tmp_path):
    host, why = Job(tmp_path).after(60)
    assert host is None
    assert "all 3 hosts wait inside step 5, so a collective hangs or a link is down" in why


def test_the_patience_is_that_of_the_slowest_host_and_longer_before_the_first_steps(tmp_path):
    slow = Job(tmp_path)
    slow.reports[0]["step_seconds"] = {"median": 9.0, "count": 4}
    assert slow.after(89) is None
    assert slow.after(4) is not None
    early = Job(tmp_path)
    for report in early.reports.values():
        report["step_seconds"] = {"median": None, "count": 0}
    assert early.after(89) is None
    assert early.after(4) is not None


def test_an_evaluation_may_take_its_time_but_not_for_ever(tmp_path):
    job = Job(tmp_path)
    assert job.after(590, phase="evaluating") is None
    host, why = job.after(20)
    assert host is None
    assert "nothing has changed for 601 s (host 0: evaluating" in why


def test_a_file_that_is_no_report_does_not_end_the_launcher(tmp_path):
    job = Job(tmp_path)
    assert job.after(5) is None
    for content in (b"\xff\xfe", b"[]", b"{}"):
        (tmp_path / "1.json").write_bytes(content)
        assert job.watchdog() is None
    assert job.after(5) is None


def test_a_host_that_has_not_begun_and_reports_from_before_are_no_reason(tmp_path):
    (tmp_path / "0.json").write_text("{}")
    job = Job(tmp_path)
    assert not (tmp_path / "0.json").exists()
    job.reports.pop(2)
    assert job.after(300) is None


def test_hosts_that_wait_for_a_person_are_left_alone(tmp_path):
    job = Job(tmp_path)
    assert job.after(2000, phase="waits for a review") is None
    assert job.after(700, phase="evaluates") is not None
