"""`jaxlm drill`: faults on purpose."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from jaxlm.cli.common import Common, Refused, report


@dataclass(kw_only=True)
class Drill(Common):
    """Disturb short runs on CPU processes of this machine, and see whether they come out as if undisturbed.

    Kills and stops hosts, cuts and throttles their links (root and network namespaces), fills the disk (a small tmpfs),
    flips a bit of the newest checkpoint, loses all of them, lets a wall clock jump, makes a device hot (an injected
    reading) and slow. Survived: every step once, on the same tokens, with the losses of an undisturbed run to 1e-5, and
    no complete checkpoint lost. Exit code 1 where one is not survived. All other overrides are those of `jaxlm train`.

    Example: jaxlm drill configs/quickstart.yaml --only kill,stop
    """

    config: Positional[Path]
    """YAML file of a run, a small one."""
    only: str | None = None
    """Which drills, as kill,stop; default all."""
    hosts: int = 2
    """Hosts of each run."""
    steps: int = 40
    """Steps of each run."""
    out: Path = Path("runs/drills")
    """Where the runs and their logs are kept; earlier ones of the same drills are removed."""
    json: bool = False
    """One JSON object as the last line."""

    def run(self) -> int:
        from jaxlm.decode import suggest
        from jaxlm.drills import drill as drills
        from jaxlm.drills.course import Setting
        from jaxlm.drills.faults import FAULTS
        from jaxlm.finetune import load

        names = list(FAULTS) if self.only is None else [name.strip() for name in self.only.split(",")]
        for name in names:
            if name not in FAULTS:
                raise Refused(f"--only {self.only}: there is no drill {name!r}{suggest(name, FAULTS)}")
        if self.hosts < 2 or self.steps < 20:
            raise Refused("--hosts must be at least 2 and --steps at least 20")
        setting = Setting(
            config=self.config, out=self.out, overrides=tuple(self.rest), hosts=self.hosts, steps=self.steps
        )
        load(self.config, setting.train())
        outcomes = drills.drill(setting, names, lambda text: print(text, flush=True))
        facts = drills.report(outcomes)
        print(f"{facts['survived']} survived, {len(facts['not_survived'])} not, {len(facts['skipped'])} skipped")
        report(self.json, facts)
        return 1 if facts["not_survived"] else 0
