"""What a host reports of itself, and what all reports say together."""

import json
import math
import time
from pathlib import Path

import pytest

from jaxlm.runtime.events import Judge
from jaxlm.runtime.histogram import Histogram
from jaxlm.runtime.monitor import HOST, Monitor, read_reports
from jaxlm.runtime.sensors import Injected, Linux, NoGpus, Nvml, find


class Fixed:
    """Sensors that say what they are told."""

    def __init__(self, **reading):
        self.reading = {"source": "test", **reading}

    def read(self):
        return dict(self.reading)


def test_a_histogram_is_small_and_good_to_7_percent():
    found = Histogram()
    values = [1.01**i for i in range(1000)]
    for value in values:
        found.add(value)
    for fraction in (0.1, 0.5, 0.99):
        quantile = found.quantile(fraction)
        assert quantile is not None
        assert math.isclose(quantile, values[round(fraction * 1000) - 1], rel_tol=0.08)
    facts = found.to_json()
    assert facts["count"] == 1000
    assert facts["largest"] == values[-1]
    assert sum(facts["bins"].values()) == 1000
    assert len(facts["bins"]) < 80
    assert len(found.recent) == 64
    assert Histogram().median() is Histogram().quantile(0.5) is None


def test_a_report_tells_steps_waits_and_phase(tmp_path):
    with Monitor(tmp_path, 0, 1, period=0.02, sensors=Fixed(temperature=40.0)) as monitor:
        monitor.accept()

        def slow():
            for number in range(3):
                time.sleep(0.05)
                yield number

        for step, _ in enumerate(monitor.batches(slow(), 10), 11):
            monitor.observe(step, 0.2)
        with monitor.phase("saving"):
            time.sleep(0.1)
            report = json.loads((tmp_path / "0.json").read_text())
    assert (report["phase"], report["step"], report["finished"]) == ("saving", 13, 13)
    assert report["step_seconds"]["median"] == 0.2
    assert 0.05 <= report["data_seconds"]["median"] < 0.5
    assert report["hardware"]["temperature"] == 40.0
    (last,) = read_reports(tmp_path)
    assert last["phase"] == "ended"
    assert last["beat"] > report["beat"] > 1


def test_a_monitor_that_is_switched_off_writes_nothing(tmp_path):
    with Monitor(tmp_path / "hosts", 0, 1, enabled=False) as monitor:
        assert list(monitor.batches(iter([1, 2]), 0)) == [1, 2]
        monitor.observe(1, 0.1)
        assert monitor.summary() == {}
    assert not (tmp_path / "hosts").exists()


@pytest.mark.parametrize("launched", [False, True])
def test_before_a_run_is_accepted_only_a_launcher_hears_of_it(tmp_path, monkeypatch, launched):
    if launched:
        monkeypatch.setenv(HOST, "0")
    with Monitor(tmp_path / "hosts", 0, 1, period=0.01, sensors=Fixed()) as monitor:
        wait_for(lambda: monitor.report()["beat"] > 2)
        assert (tmp_path / "hosts").exists() == launched
    assert (tmp_path / "hosts").exists() == launched


def test_files_that_are_no_reports_are_left_out(tmp_path):
    with Monitor(tmp_path, 7, 8, sensors=Fixed()) as monitor:
        monitor.accept()
    for host, content in enumerate((b"\xff\xfe", b"[1, 2]", b"3", b"{}", b'{"host": 4', b"")):
        (tmp_path / f"{host}.json").write_bytes(content)
    (tmp_path / "6.json").mkdir()
    assert [report["host"] for report in read_reports(tmp_path)] == [7]
    assert read_reports(tmp_path / "7.json") == read_reports(tmp_path / "nowhere") == []


def test_a_disk_that_fails_for_a_moment_is_no_report_and_no_error(tmp_path, monkeypatch):
    with Monitor(tmp_path, 0, 1, sensors=Fixed()) as monitor:
        monitor.accept()
    before, fails = Path.read_text, True

    def read_text(path, *arguments, **more):
        if fails:
            raise OSError(5, "Input/output error")
        return before(path, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert read_reports(tmp_path) == []
    fails = False
    assert [report["host"] for report in read_reports(tmp_path)] == [0]


@pytest.mark.parametrize("what", ["sensors", "judge", "say"])
def test_a_monitor_that_fails_goes_on_giving_signs_of_life_and_says_how_often(tmp_path, monkeypatch, what):
    sensors, said = Fixed(temperature=40.0), []

    def fail(*_):
        raise KeyError("broken")

    with Monitor(tmp_path, 0, 1, period=0.01, sensors=sensors, say=said.append) as monitor:
        monitor.accept()
        wait_for(lambda: read_reports(tmp_path))
        assert read_reports(tmp_path)[0]["failures"] == 0
        if what == "sensors":
            monkeypatch.setattr(sensors, "read", fail)
        elif what == "judge":
            monkeypatch.setattr(monitor, "judge", fail)
        else:
            monkeypatch.setattr(monitor, "say", fail)
            sensors.reading["temperature"] = 99.0
        wait_for(lambda: read_reports(tmp_path)[0]["failures"] > 0)
        beat = read_reports(tmp_path)[0]["beat"]
        wait_for(lambda: read_reports(tmp_path)[0]["beat"] > beat + 2)
        monkeypatch.undo()
        monitor.judge = Judge()
        wait_for(lambda: monitor.summary()["hosts"]["0"].get("monitor_failures"))
    (last,) = read_reports(tmp_path)
    assert (last["phase"], last["failure"]) == ("ended", "KeyError: 'broken'")


def test_energy_is_that_of_all_hosts_or_none(tmp_path):
    sensors = [Fixed(energy=100.0), Fixed(energy=1000.0)]
    with (
        Monitor(tmp_path, 0, 2, period=0.01, sensors=sensors[0]) as first,
        Monitor(tmp_path, 1, 2, period=0.01, sensors=sensors[1]) as second,
    ):
        first.accept()
        second.accept()
        wait_for(lambda: first.joules() == 0.0)
        first.complete(record := {"step": 10})
        assert "joules_per_step" not in record
        sensors[0].reading["energy"], sensors[1].reading["energy"] = 130.0, 1010.0
        wait_for(lambda: first.joules() == 40.0)
        first.complete(record := {"step": 20})
        assert record["joules_per_step"] == 4.0
    with Monitor(tmp_path / "other", 0, 1, period=0.01, sensors=Fixed()) as alone:
        alone.accept()
        wait_for(lambda: (tmp_path / "other" / "0.json").exists())
        assert alone.joules() is None


def test_energy_of_an_epoch_is_that_of_the_measured_steps_times_its_steps(tmp_path):
    sensors = Fixed(energy=1000.0)
    with Monitor(tmp_path, 0, 1, period=0.01, sensors=sensors) as monitor:
        monitor.accept()
        wait_for(lambda: monitor.joules() == 0.0)
        monitor.steps_per_epoch = 12.5
        monitor.complete({"step": 100})
        assert "joules_per_epoch" not in monitor.summary()
        for step, joules in ((110, 20.0), (140, 80.0)):  # 2 J a step each
            sensors.reading["energy"] = 1000.0 + joules
            wait_for(lambda joules=joules: monitor.joules() == joules)
            monitor.complete({"step": step})
        assert monitor.summary()["joules_per_epoch"] == 25.0


def test_what_an_earlier_attempt_left_is_neither_energy_nor_a_host_of_this_one(tmp_path):
    def left(beat: int, energy: float, pid: int = 12345):
        facts = Monitor(tmp_path, 1, 2, sensors=Fixed()).report()
        facts |= {"beat": beat, "pid": pid, "hardware": {"source": "test", "energy": energy}}
        (tmp_path / "1.json").write_text(json.dumps(facts))

    left(500, energy=7.0)
    sensors = Fixed(energy=100.0)
    with Monitor(tmp_path, 0, 2, period=0.01, sensors=sensors) as monitor:
        monitor.accept()
        wait_for(lambda: "0" in monitor.summary()["hosts"])
        seen = monitor.report()["beat"]
        wait_for(lambda: monitor.report()["beat"] > seen + 2)
        assert monitor.joules() is None, "host 1 of this attempt has said nothing"
        assert list(monitor.summary()["hosts"]) == ["0"]
        left(501, energy=8.0)  # the last word of a process that is about to end
        wait_for(lambda: monitor.joules() == 0.0)
        left(502, energy=38.0)
        wait_for(lambda: monitor.joules() == 30.0)
        monitor.complete({"step": 1})
        left(1, energy=5000.0, pid=23456)
        wait_for(lambda: monitor.joules() == 0.0)
        monitor.complete(record := {"step": 2})
        assert "joules_per_step" not in record
        left(2, energy=5030.0, pid=23456)
        sensors.reading["energy"] = 110.0
        wait_for(lambda: monitor.joules() == 40.0)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def report(host: int, beat: int, *, data=0.01, cpu=0.5, hardware=None, replicas=(), count=20, latest=1.0):
    return {
        "host": host,
        "process": host,
        "beat": beat,
        "phase": "step",
        "finished": 20,
        "step_seconds": {"median": 1.0, "count": count, "latest": latest, "p50": 1.0},
        "data_seconds": {"median": data, "count": count, "latest": data, "p50": 0.01},
        "cpu_seconds": {"median": cpu, "count": count, "latest": cpu, "p50": 0.5},
        "replica_seconds": list(replicas),
        "hardware": {"source": "test", **(hardware or {})},
    }


def judged(rounds: int, judge: Judge, **second) -> list[str]:
    """Sentences of so many rounds of two hosts, of which the second is as said."""
    said = []
    for _ in range(rounds):
        beat = judge._beats.get(0, 0) + 1
        said += [event.sentence for event in judge([report(0, beat), report(1, beat, **second)])]
    return said


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ({"hardware": {"temperature": 95.0}}, "host 1 is hot: 95 C, its limit is 85 (test)"),
        ({"hardware": {"temperature": 88.0, "limit": 87.0}}, "host 1 is hot: 88 C, its limit is 87 (test)"),
        ({"hardware": {"clock": 0.5}}, "host 1 is held back: its clock is at 50% (test)"),
        ({"data": 0.4, "cpu": 0.3}, "host 1 waits for data 0.4 s of each step of 1 s"),
        ({"cpu": 1.2}, "host 1 is behind the others: 1.21 s of its own in each step, they 0.51 s"),
    ],
)
def test_a_finding_is_said_once_when_it_lasts_and_once_when_it_is_over(second, sentence):
    judge = Judge()
    assert judged(4, judge, **second) == []
    assert judged(1, judge, **second) == [sentence]
    assert judged(20, judge, **second) == []
    assert judged(4, judge) == []
    (over,) = judged(1, judge)
    assert over.endswith("no longer")
    assert judged(20, judge) == []


def test_one_bad_report_is_no_event_nor_is_the_same_report_read_twice():
    judge = Judge()
    for _ in range(10):
        assert judged(4, judge, hardware={"temperature": 99.0}) == judged(1, judge) == []
    hot = [report(0, 99), report(1, 99, hardware={"temperature": 99.0})]
    assert [judge(hot) for _ in range(20)] == [[]] * 20


def test_hosts_that_are_alike_and_ones_that_have_just_begun_are_left_alone():
    assert judged(20, Judge(), cpu=0.6, data=0.05, hardware={"temperature": 70.0, "clock": 0.9}) == []
    assert judged(20, Judge(), cpu=5.0, count=3) == []


def test_new_memory_errors_are_said_each_time():
    judge = Judge()
    assert judged(3, judge, hardware={"ecc": 4}) == []
    assert judged(3, judge, hardware={"ecc": 6}) == ["host 1 has 2 new uncorrected memory errors"]
    assert judged(1, judge, hardware={"ecc": 7}) == ["host 1 has 1 new uncorrected memory errors"]


def test_a_replica_that_measured_itself_slower_is_traced_to_its_host():
    judge, said = Judge(), []
    for beat in range(1, 7):
        said += judge([report(host, beat, replicas=(0.1, 0.1, 0.1, 0.3)) for host in range(2)])
    (event,) = said
    assert (event.kind, event.host, event.slows) == ("replica", 1, True)
    assert event.value == 0.3


def test_longer_steps_at_the_same_work_are_blamed_on_links():
    def said(rounds: int, **both) -> list[str]:
        judge, found = Judge(), []
        for beat in range(1, rounds + 1):
            found += judge([report(host, beat, **both) for host in range(2)])
        return [event.kind for event in found if event.slows or event.kind == "link"]

    assert said(10, latest=2.0) == ["link"]
    assert said(10, latest=1.4) == []
    assert said(10, latest=2.0, cpu=1.5) == [], "the hosts work more"
    assert said(10, latest=2.0, data=0.9) == [], "the hosts wait for data"
    assert said(10, latest=2.0, count=8) == [], "too early to say"
    alone = Judge()
    assert [alone([report(0, beat, latest=2.0)]) for beat in range(10)] == [[]] * 10


@pytest.mark.parametrize(
    ("link", "rate", "clause"),
    [
        (100e6, 20e6, "; it carries at most 40 MB/s, the plan counts on 100 for each device"),
        (30e6, 20e6, ""),  # half of the time at 40 MB/s is possible
        (None, 20e6, ""),
        (100e6, None, ""),
    ],
)
def test_a_slow_link_is_held_against_the_bandwidth_of_the_plan_where_both_are_known(link, rate, clause):
    judge, said = Judge(link=link), []
    for beat in range(1, 9):
        sent = None if rate is None else int(rate * beat)
        more = {"seconds": 50.0 + beat, "network_bytes_sent": sent}
        said += judge([report(host, beat, latest=2.0) | more for host in range(2)])
    (event,) = said
    assert event.kind == "link"
    assert event.sentence.endswith(f"a link or the network is slower{clause}")


def test_bytes_are_not_counted_where_some_go_past_the_kernel(tmp_path, monkeypatch):
    assert Monitor(tmp_path, 0, 1, sensors=Fixed()).report()["network_bytes_sent"] is not None
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr("jaxlm.runtime.monitor.RDMA", tmp_path)
    assert Monitor(tmp_path, 0, 1, sensors=Fixed()).report()["network_bytes_sent"] is None


def test_linux_files_are_read_and_what_is_not_there_is_left_out(tmp_path):
    assert Linux(tmp_path).read() == {"source": "linux"}

    def write(path, value):
        (tmp_path / "sys" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / path).write_text(f"{value}\n")

    write("class/thermal/thermal_zone0/temp", 45000)
    write("class/hwmon/hwmon1/temp1_input", 61500)
    write("devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", 1000)
    write("devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", 4000)
    write("devices/system/cpu/cpu1/cpufreq/scaling_cur_freq", 3000)
    write("devices/system/cpu/cpu1/cpufreq/cpuinfo_max_freq", 4000)
    write("devices/system/edac/mc/mc0/ue_count", 2)
    write("class/powercap/intel-rapl:0/energy_uj", 900_000_000)
    write("class/powercap/intel-rapl:0/max_energy_range_uj", 1_000_000_000)
    write("class/powercap/intel-rapl:0:0/energy_uj", 5)
    sensors = Linux(tmp_path)
    found = sensors.read()
    assert found == {"source": "linux", "temperature": 61.5, "clock": 0.75, "ecc": 2, "energy": 0.0}
    write("class/powercap/intel-rapl:0/energy_uj", 100_000_000)  # the counter began again
    assert sensors.read()["energy"] == 200.0


class Library:
    """As much of pynvml as is used, with two GPUs of which the second knows neither energy nor ECC."""

    NVML_TEMPERATURE_GPU = NVML_CLOCK_SM = NVML_MEMORY_ERROR_TYPE_UNCORRECTED = NVML_VOLATILE_ECC = 0
    NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 1

    class NVMLError(Exception):
        pass

    def nvmlInit(self): ...
    def nvmlDeviceGetCount(self):
        return 2

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetHandleByUUID(self, name):
        return {"GPU-b": 1}[name]

    def nvmlDeviceGetTemperature(self, device, kind):
        return (50, 70)[device]

    def nvmlDeviceGetTemperatureThreshold(self, device, kind):
        return 87

    def nvmlDeviceGetPowerUsage(self, device):
        return (300_000, 400_000)[device]

    def nvmlDeviceGetTotalEnergyConsumption(self, device):
        if device:
            raise self.NVMLError
        return 5000

    def nvmlDeviceGetTotalEccErrors(self, device, kind, counter):
        raise self.NVMLError

    def nvmlDeviceGetClockInfo(self, device, kind):
        return (1500, 900)[device]

    def nvmlDeviceGetMaxClockInfo(self, device, kind):
        return 1800


def test_gpus_are_read_through_their_library_and_a_sum_that_lacks_one_is_left_out():
    both = Nvml(library=Library()).read()
    assert both == {"source": "nvml", "temperature": 70, "limit": 87, "power": 700.0, "clock": 0.5}
    assert Nvml(["0"], Library()).read()["energy"] == 5.0
    assert Nvml(["GPU-b"], Library()).read()["temperature"] == 70


class Broken(Library):
    """pynvml as it is where the driver is too old, or a GPU has fallen off the bus."""

    def nvmlInit(self):
        raise self.NVMLError("Driver/library version mismatch")


class Lost(Library):
    def nvmlDeviceGetHandleByIndex(self, index):
        if index == 1:
            raise self.NVMLError("GPU is lost")
        return index


@pytest.mark.parametrize(
    ("library", "environment", "reading"),
    [
        (Library(), {}, {"source": "nvml"}),
        (Library(), {"CUDA_VISIBLE_DEVICES": "0,-1"}, {"source": "nvml", "energy": 5.0}),
        (Library(), {"JAX_PLATFORMS": "cpu"}, {"source": "linux"}),
        (Broken(), {}, {"source": "linux", "note": "the GPUs are not read: NVML says Driver/library version mismatch"}),
        (Lost(), {}, {"source": "linux", "note": "the GPUs are not read: NVML says GPU is lost"}),
        (Lost(), {"CUDA_VISIBLE_DEVICES": "1"}, {"note": "the GPUs are not read: NVML says GPU is lost"}),
        *(
            (Broken(), {"CUDA_VISIBLE_DEVICES": none}, {"note": "CUDA_VISIBLE_DEVICES names no GPU, so none is read"})
            for none in ("-1", "")
        ),
    ],
)
def test_gpus_that_cannot_be_read_or_are_hidden_are_a_note_and_no_error(tmp_path, library, environment, reading):
    found = find(environment, library, driver=tmp_path).read()
    assert {name: found.get(name) for name in reading} == reading


def test_what_the_library_says_is_kept():
    with pytest.raises(NoGpus, match="version mismatch"):
        Nvml(library=Broken())


def test_sensors_are_not_looked_for_where_nothing_is_monitored(tmp_path, monkeypatch):
    def refuse():
        raise AssertionError("the driver was asked")

    monkeypatch.setattr("jaxlm.runtime.monitor.find", refuse)
    with Monitor(tmp_path, 0, 1, enabled=False) as monitor:
        assert monitor.joules() is None
    with pytest.raises(AssertionError, match="was asked"):
        Monitor(tmp_path, 0, 1)


def test_an_injected_reading_says_so(tmp_path):
    sensors = Injected(Fixed(temperature=40.0, clock=1.0), tmp_path / "0.injected.json")
    assert sensors.read()["source"] == "test"
    (tmp_path / "0.injected.json").write_text('{"temperature": 104}')
    assert sensors.read() == {"source": "injected by 0.injected.json", "temperature": 104, "clock": 1.0}
    for content in (b"\xff", b"{", b"[104]"):
        (tmp_path / "0.injected.json").write_bytes(content)
        reading = sensors.read()
        assert (reading["source"], reading["temperature"]) == ("test", 40.0)
        assert reading["note"].startswith("0.injected.json ")


def test_this_host_says_something_or_nothing_but_never_fails():
    assert Linux().read()["source"] == "linux"
