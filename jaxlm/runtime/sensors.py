"""What a host's hardware says of itself: temperature, power, clocks, memory errors, energy.

From NVIDIA's management library where there are GPUs and `pynvml` is installed (extra `monitor`), else from Linux'
own files: thermal zones, cpufreq, EDAC, RAPL. What a machine does not tell is left out, never guessed.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

Reading = dict[str, Any]
"""`temperature` in degrees Celsius (the hottest), `limit` at which the hardware slows down, `power` in watts (all
together), `clock` as a fraction of the highest (the slowest), `ecc` as uncorrected errors since the driver was loaded,
`energy` in joules since some fixed moment, `source`: who says so. Each only where it is known."""


class Sensors(Protocol):
    """Anything that can be read now and then."""

    def read(self) -> Reading: ...


DRIVER = Path("/proc/driver/nvidia")
"""Is there where NVIDIA's driver is loaded."""


class NoGpus(Exception):
    """The management library is there, but tells nothing of these GPUs, and why."""


def find(environment: dict[str, str] | None = None, library: Any = None, driver: Path = DRIVER) -> Sensors:
    """The best sensors of this host; `library` in place of `pynvml`. Never fails: what is not read is a note."""
    environment = dict(os.environ) if environment is None else environment
    if environment.get("JAX_PLATFORMS", "").split(",")[0] == "cpu" or not driver.is_dir():
        return Linux()
    visible = _visible(environment)
    if visible == []:
        return Linux(note="CUDA_VISIBLE_DEVICES names no GPU, so none is read")
    try:
        return Nvml(visible or (), library)
    except ImportError:
        return Linux(note="pynvml is not installed (uv sync --extra monitor), so the GPUs are not read")
    except NoGpus as error:
        return Linux(note=f"the GPUs are not read: {error}")


def _visible(environment: dict[str, str]) -> list[str] | None:
    """Those that CUDA shows, None for all; "-1" is a way to name none."""
    if (named := environment.get("CUDA_VISIBLE_DEVICES")) is None:
        return None
    return [name for each in named.split(",") if (name := each.strip()) and name != "-1"]


class Nvml:
    """NVIDIA GPUs; `visible` are the numbers or UUIDs of those that count, empty: all. Raises ImportError, NoGpus."""

    def __init__(self, visible: Sequence[str] = (), library: Any = None):
        if library is None:
            import pynvml as library  # pyright: ignore[reportMissingImports]
        self.nvml = library
        try:
            self.nvml.nvmlInit()
            self.devices = [self._device(name) for name in visible] or [
                self.nvml.nvmlDeviceGetHandleByIndex(i) for i in range(self.nvml.nvmlDeviceGetCount())
            ]
        except self.nvml.NVMLError as error:  # an old driver, a library that is not there, a GPU that is lost
            raise NoGpus(f"NVML says {error or type(error).__name__}") from error

    def _device(self, name: str) -> Any:
        if name.isdigit():
            return self.nvml.nvmlDeviceGetHandleByIndex(int(name))
        return self.nvml.nvmlDeviceGetHandleByUUID(name)

    def read(self) -> Reading:
        n = self.nvml
        each = {
            "temperature": [self._ask(n.nvmlDeviceGetTemperature, d, n.NVML_TEMPERATURE_GPU) for d in self.devices],
            "limit": [
                self._ask(n.nvmlDeviceGetTemperatureThreshold, d, n.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN)
                for d in self.devices
            ],
            "power": [self._ask(n.nvmlDeviceGetPowerUsage, d) for d in self.devices],
            "energy": [self._ask(n.nvmlDeviceGetTotalEnergyConsumption, d) for d in self.devices],
            "ecc": [
                self._ask(n.nvmlDeviceGetTotalEccErrors, d, n.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, n.NVML_VOLATILE_ECC)
                for d in self.devices
            ],
            "clock": [self._clock(d) for d in self.devices],
        }
        found: Reading = {"source": "nvml"}
        for name, how, scale in (
            ("temperature", max, 1.0),
            ("limit", min, 1.0),
            ("power", sum, 1e-3),  # milliwatts
            ("energy", sum, 1e-3),  # millijoules
            ("ecc", sum, 1),
            ("clock", min, 1.0),
        ):
            values = [value for value in each[name] if value is not None]
            if values and (how is not sum or len(values) == len(self.devices)):
                found[name] = how(values) * scale
        return found

    def _clock(self, device: Any) -> float | None:
        now = self._ask(self.nvml.nvmlDeviceGetClockInfo, device, self.nvml.NVML_CLOCK_SM)
        highest = self._ask(self.nvml.nvmlDeviceGetMaxClockInfo, device, self.nvml.NVML_CLOCK_SM)
        return now / highest if now is not None and highest else None

    def _ask(self, call: Any, *arguments: Any) -> Any:
        """None where this GPU does not know."""
        try:
            return call(*arguments)
        except self.nvml.NVMLError:
            return None


class Linux:
    """The files below `root` that the kernel keeps for its processors. RAPL is mostly for root alone."""

    def __init__(self, root: Path = Path("/"), note: str | None = None):
        self.sys, self.note = root / "sys", note
        self._energy: dict[Path, tuple[float, float]] = {}

    def read(self) -> Reading:
        found: Reading = {"source": "linux"} | ({"note": self.note} if self.note else {})
        zones = _numbers(self.sys.glob("class/thermal/thermal_zone*/temp"))
        zones += _numbers(self.sys.glob("class/hwmon/hwmon*/temp*_input"))
        if zones:
            found["temperature"] = max(zones) / 1000  # millidegrees
        clocks = []
        for folder in self.sys.glob("devices/system/cpu/cpu[0-9]*/cpufreq"):
            now, highest = _numbers([folder / "scaling_cur_freq"]), _numbers([folder / "cpuinfo_max_freq"])
            if now and highest:
                clocks.append(now[0] / highest[0])
        if clocks:
            found["clock"] = max(clocks)  # idle cores clock down: the fastest shows whether the processor is held back
        errors = _numbers(self.sys.glob("devices/system/edac/mc/mc*/ue_count"))
        if errors:
            found["ecc"] = int(sum(errors))
        if (energy := self._joules()) is not None:
            found["energy"] = energy
        return found

    def _joules(self) -> float | None:
        """Of all processor packages since the first reading; their counters begin again at a known number."""
        total = None
        for domain in self.sys.glob("class/powercap/intel-rapl:[0-9]*"):
            if domain.name.count(":") > 1:
                continue  # a part of a package, counted there
            now, wraps = _numbers([domain / "energy_uj"]), _numbers([domain / "max_energy_range_uj"])
            if not now:
                continue
            before, used = self._energy.get(domain, (now[0], 0.0))
            used += now[0] - before + (wraps[0] if now[0] < before and wraps else 0.0)
            self._energy[domain] = (now[0], used)
            total = (total or 0.0) + used / 1e6
        return total


class Injected:
    """Other sensors, with what a file says instead where there is one: how a drill makes a device hot."""

    def __init__(self, sensors: Sensors, file: Path):
        self.sensors, self.file = sensors, file

    def read(self) -> Reading:
        reading = self.sensors.read()
        try:
            said = json.loads(self.file.read_text())
        except FileNotFoundError:
            return reading
        except (OSError, ValueError) as error:
            return {**reading, "note": f"{self.file.name} cannot be read: {error}"}
        if not isinstance(said, dict):
            return {**reading, "note": f"{self.file.name} is no JSON object"}
        return {**reading, **said, "source": f"injected by {self.file.name}"}


def _numbers(files: Iterable[Path]) -> list[float]:
    """Of those files that hold a number and may be read."""
    found = []
    for file in files:
        try:
            found.append(float(file.read_text()))
        except (OSError, ValueError):
            continue
    return found
