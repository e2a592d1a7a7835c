"""The faults, each a function that disturbs a run, waits for it to recover, and says what was seen."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxlm.drills.course import Course, NotSurvived, Setting, Skipped
from jaxlm.drills.network import Network, NoNetworks, network
from jaxlm.runtime.monitor import read_reports

DISK = "32m"
"""Size of the disk that is filled up."""

SLOW_STEP = 2.0
"""Seconds that the bytes of one step take over the throttled link."""

CUT = 15.0
"""Seconds for which a link is down: longer than the launcher's patience, shorter than that of TCP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen of one disturbance.

    Attributes:
        seconds: from the fault, or from the moment its cause was removed, until the run was beyond where it had been.
        lost: steps that were computed twice.
        how: what brought it back.
    """

    seconds: float
    lost: int
    how: str


Fault = Callable[[Setting], tuple[Seen, Course]]


def _after_retry(course: Course, began: float, floor: int, attempts: int = 1) -> Seen:
    """Waits for the next attempt to pass the step that was reached. `floor`: the newest checkpoint at the fault, from
    which the run must go on at least."""
    course.until(lambda: course.attempts > attempts, "second attempt")
    reached = course.step
    course.beyond(reached)
    seconds = time.monotonic() - began
    if course.resumed < floor:
        raise NotSurvived(f"went on from step {course.resumed}, though the checkpoint of step {floor} was complete")
    return Seen(seconds=seconds, lost=reached - course.resumed, how="ended and retried from the last checkpoint")


def kill(setting: Setting) -> tuple[Seen, Course]:
    """Host 1 is killed."""
    return _killed(setting, "kill", 1)


def kill_first(setting: Setting) -> tuple[Seen, Course]:
    """Host 0, which holds the coordination service, is killed."""
    return _killed(setting, "kill_first", 0)


def _killed(setting: Setting, name: str, host: int) -> tuple[Seen, Course]:
    with Course(setting, name) as course:
        course.reach(setting.at)
        floor, began = course.newest(), time.monotonic()
        course.send(host, signal.SIGKILL)
        seen = _after_retry(course, began, floor)
        course.finish()
    return seen, course


def stop(setting: Setting) -> tuple[Seen, Course]:
    """Host 1 is stopped (SIGSTOP) and never continues."""
    with Course(setting, "stop") as course:
        course.reach(setting.at)
        floor, began = course.newest(), time.monotonic()
        course.send(1, signal.SIGSTOP)
        seen = _after_retry(course, began, floor)
        course.finish()
        if "host 1" not in (said := course.output.read_text()) or "no sign of life" not in said:
            raise NotSurvived(f"nobody said that host 1 was the one that hung; see {course.output}")
    return seen, course


def corrupt(setting: Setting) -> tuple[Seen, Course]:
    """One bit of the newest checkpoint flips, and a host dies: an older one must be taken."""
    with Course(setting, "corrupt") as course:
        course.reach(setting.at)
        course.until(lambda: len(course.checkpoints()) > 1, "second checkpoint")
        _freeze(course)
        newest, older = course.checkpoints()[:2]
        folder = course.run / "checkpoints" / str(newest) / "state"
        victim = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
        seen = _lose_host(course, older)
        course.finish()
        if course.resumed >= newest:
            raise NotSurvived(f"went on from step {course.resumed}, whose checkpoint is damaged")
    return seen, course


def zone(setting: Setting) -> tuple[Seen, Course]:
    """All checkpoints in the run directory are lost with a host: the copies in a second directory must be taken."""
    copies = setting.out / "zone-copies"
    shutil.rmtree(copies, ignore_errors=True)
    setting_with_zone = _with(setting, "--checkpoint.path", f"file://{copies.absolute()}")
    with Course(setting_with_zone, "zone") as course:
        course.reach(setting.at)
        course.until(lambda: any(copies.glob("*/manifest.json")), "copy of a checkpoint")
        _freeze(course)
        floor = max(int(p.parent.name) for p in copies.glob("*/manifest.json"))
        shutil.rmtree(course.run / "checkpoints")
        seen = _lose_host(course, floor)
        course.finish()
    return seen, course


def _freeze(course: Course) -> None:
    """So that nothing is written while something is changed; the launcher's patience is longer than that."""
    for host in range(course.setting.hosts):
        course.send(host, signal.SIGSTOP)


def _lose_host(course: Course, floor: int) -> Seen:
    began = time.monotonic()
    course.send(1, signal.SIGKILL)
    course.continue_all()
    return _after_retry(course, began, floor)


def disk(setting: Setting) -> tuple[Seen, Course]:
    """The disk of the run fills up; when there is room again, the same command goes on."""
    with _small_disk(setting.out / "small-disk") as folder:
        course = Course(setting, "disk")
        course.run = folder / "run"
        with course:
            course.reach(setting.at)
            floor = course.newest()
            filler = folder / "filler"
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
            course.finish(3)
            said = course.output.read_text()
            if "the disk is full" not in said:
                raise NotSurvived(f"it stopped without saying that the disk is full; see {course.output}")
            reached = course.step
            filler.unlink()
            began = time.monotonic()
            course.start()
            course.beyond(reached)
            seconds = time.monotonic() - began
            if course.resumed < floor:
                raise NotSurvived(f"went on from step {course.resumed}, though that of step {floor} was complete")
            lost = reached - course.resumed
            course.finish()
            shutil.copytree(course.run, setting.out / "disk", dirs_exist_ok=True)
        course.run = setting.out / "disk"
    return Seen(seconds=seconds, lost=lost, how="stopped with exit code 3, started again with room"), course


@contextlib.contextmanager
def _small_disk(path: Path) -> Iterator[Path]:
    path.mkdir(parents=True, exist_ok=True)
    mount = shutil.which("mount")
    if mount is None:
        raise Skipped("this machine has no mount command")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={DISK}", "none", path], capture_output=True, text=True)
    if done.returncode:
        raise Skipped(f"mounting a tmpfs is not allowed here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def cut(setting: Setting) -> tuple[Seen, Course]:
    """The link to host 1 is down for 15 s, longer than the launcher waits."""
    with _networked(setting, "cut") as (course, net), course:
        course.reach(setting.at)
        floor = course.newest()
        net.cut(1)
        down = time.monotonic()
        mended = False

        def again() -> bool:
            nonlocal mended
            if not mended and time.monotonic() - down > CUT:
                net.mend(1)
                mended = True
            return mended and course.attempts > 1

        course.until(again, "retry")
        seen = _after_retry(course, down + CUT, floor)
        course.finish()
        if "a link is down" not in course.output.read_text():
            raise NotSurvived(f"nobody said that a collective hung or a link was down; see {course.output}")
    return seen, course


def throttle(setting: Setting) -> tuple[Seen, Course]:
    """All links become so slow that a step takes two seconds: slow is not dead, so nothing may be killed."""
    with _networked(setting, "throttle", "--stall-seconds", "30") as (course, net), course:
        course.reach(3)
        sent, first = net.sent(1), course.step
        course.reach(setting.at)
        bits = 8 * (net.sent(1) - sent) / max(course.step - first, 1)
        rate = f"{max(bits / SLOW_STEP, 64_000):.0f}bit"
        net.shape(rate)
        began, reached = time.monotonic(), course.step
        told = lambda: any(event["kind"] == "link" for event in course.events())
        course.until(lambda: (course.step >= reached + 5 and told()) or course.ended, "word of the slow link")
        if not told():
            raise NotSurvived("the run ended before anybody was told that a link is slow; take more --steps")
        slowed = (time.monotonic() - began) / max(course.step - reached, 1)
        net.shape(None)
        began, reached = time.monotonic(), course.step
        course.beyond(reached)
        seconds = time.monotonic() - began
        course.finish(unbroken="though its link was only slow")
    how = (
        f"said so, went on at {slowed:.1f} s a step over {float(rate[:-3]) / 1e6:.2f} Mbit/s, at full speed afterwards"
    )
    return Seen(seconds=seconds, lost=0, how=how), course


@contextlib.contextmanager
def _networked(setting: Setting, name: str, *more: str) -> Iterator[tuple[Course, Network]]:
    """Hosts with a network of their own each."""
    try:
        with network(setting.hosts) as net:
            more = ("--wrap", net.wrap, "--address", net.address(0), *more)
            yield Course(setting, name, more), net
    except NoNetworks as error:
        raise Skipped(str(error)) from None


def clock(setting: Setting) -> tuple[Seen, Course]:
    """The wall clock of host 1 jumps an hour ahead in the middle of the run."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Skipped("there is no C compiler here to build a clock that jumps")
    setting.out.mkdir(parents=True, exist_ok=True)
    library = setting.out.absolute() / "clock.so"
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    jump = f"DRILL_CLOCK_FILE={setting.out.absolute()}/jump.{{host}} LD_PRELOAD={library}"
    signal_to_jump = setting.out / "jump.1"
    signal_to_jump.unlink(missing_ok=True)
    with Course(setting, "clock", ["--wrap", f"sh -c '{jump} exec \"$@\"' sh"]) as course:
        course.reach(setting.at)
        signal_to_jump.touch()
        times = lambda: {r["host"]: r["time"] for r in read_reports(course.run / "hosts")}
        course.until(lambda: times()[1] - times()[0] > 3000 or course.ended, "jump of the clock")
        if times()[1] - times()[0] < 3000:
            raise NotSurvived("the run ended before the clock jumped; take more --steps")
        began, reached = time.monotonic(), course.step
        course.beyond(reached)
        seconds = time.monotonic() - began
        course.finish(unbroken="because of a clock")
    return Seen(seconds=seconds, lost=0, how="went on: nothing depends on the clocks of two hosts"), course


def heat(setting: Setting) -> tuple[Seen, Course]:
    """The sensors of host 1 say 104 C and 40 % of the clock (injected): somebody must be told, and the run goes on."""
    injected = setting.out / "heat" / "hosts" / "1.injected.json"
    injected.parent.mkdir(parents=True, exist_ok=True)
    injected.write_text(json.dumps({"temperature": 104.0, "clock": 0.4}))
    with Course(setting, "heat") as course:
        course.until(lambda: (injected.parent / "1.json").exists(), "report of host 1")
        began = time.monotonic()
        hot = lambda: any(e["kind"] == "hot" and e["host"] == 1 and not e["over"] for e in course.events())
        course.until(lambda: hot() or course.ended, "event")
        if not hot():
            raise NotSurvived("the run ended before anybody was told; take more --steps")
        seconds = time.monotonic() - began
        injected.unlink()
        course.finish(unbroken="because of a hot device")
    return Seen(seconds=seconds, lost=0, how="said so, with the host and the temperature, and went on"), course


def slow(setting: Setting) -> tuple[Seen, Course]:
    """Host 1 runs half of the time only, for 10 s: slow is not dead, so nothing may be killed."""
    with Course(setting, "slow") as course:
        course.reach(setting.at)
        victim, began = course.pid(1), time.monotonic()
        while time.monotonic() - began < 10 and not course.ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGSTOP)
                time.sleep(0.2)
                os.kill(victim, signal.SIGCONT)
            time.sleep(0.2)
        began, reached = time.monotonic(), course.step
        course.beyond(reached)
        seconds = time.monotonic() - began
        course.finish(unbroken="though host 1 was only slow")
    return Seen(seconds=seconds, lost=0, how="went on, as slow as its slowest host"), course


def _with(setting: Setting, *more: str) -> Setting:
    return dataclasses.replace(setting, overrides=(*setting.overrides, *more))


FAULTS: dict[str, Fault] = {
    "kill": kill,
    "kill_first": kill_first,
    "stop": stop,
    "cut": cut,
    "throttle": throttle,
    "disk": disk,
    "corrupt": corrupt,
    "zone": zone,
    "clock": clock,
    "heat": heat,
    "slow": slow,
}
