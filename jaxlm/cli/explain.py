"""`jaxlm explain`: why a trained classifier says what it says."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from jaxlm.cli.common import Common, report


@dataclass(kw_only=True)
class Explain(Common):
    """Explain what a trained classifier says of texts: relevant words by several methods, and rules with bounds.

    Rules are mined on the run's own training texts and bounded on its validation texts, where data.path still holds
    them. Those with an identity term are flagged: they are a finding of bias, no explanation.

    Example: jaxlm explain runs/hatexplain --data posts.jsonl --html out.html
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run directory of a classifier."""
    text: str | None = None
    """A text to explain."""
    data: Path | None = None
    """Texts to explain: a .txt file with one per line, or a file of the format that the run was trained on."""
    html: Path | None = None
    """Where to write the page: one file that needs nothing else."""
    methods: list[str] = field(default_factory=list)
    """Methods to show; default: ours, attention, rollout, Grad-CAM, and gradients. A wrong name lists all."""
    template: str = "general"
    """How rules are worded: general, legal, medical."""
    limit: int = 200
    """Most texts of --data to explain."""
    study: Path | None = None
    """Folder for the forms of a user study over these texts (see README)."""
    step: int | None = None
    """Which checkpoint; default the newest good one."""
    allow_unverified: bool = False
    """Read a checkpoint whose signature cannot be verified."""
    json: bool = False
    """One JSON object as the last line."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.explaining import Request, explain_run

        text, facts = explain_run(
            Request(
                run=self.folder,
                text=self.text,
                data=self.data,
                html=self.html,
                methods=tuple(self.methods),
                template=self.template,
                limit=self.limit,
                study=self.study,
                step=self.step,
                allow_unverified=self.allow_unverified,
            )
        )
        print(text)
        report(self.json, facts)
        return 0
