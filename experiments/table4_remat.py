"""Table 4: what does rematerialisation cost, and what does it do to BLEU?

Question: the same translation model trained with equal seeds under each policy of `policies`: is its BLEU the same?
Cost:     one training of the model in `run` per policy, and one with another seed.
Run:      python -m experiments.table4_remat --parallel DIR --source en --target de
Needs:    pairs of sentences (none is shipped), as train.en and train.de, val.*, test*.* in DIR, or a .tsv or .jsonl
          file; and the extra `translate`.
Leaves:   the runs in runs/ and their translations in translations/, beside the report.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from experiments import remat_quality
from experiments.entry import main
from experiments.remat_quality import Policy, measure_quality, quality_details, quality_remarks, quality_rows
from experiments.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(remat_quality.Config):
    """Policies side by side.

    Attributes:
        policies: name -> policy; the first is what the others are compared with. The names `none`, `static` and
            `dynamic` stand beside the paper's.
    """

    policies: dict[str, Policy] = dataclasses.field(default_factory=dict)


def measure(config: Config, out: Path) -> Report:
    """Trains, translates and compares."""
    found = measure_quality(config, config.policies, out)
    return Report(
        title="Table 4: rematerialisation policies",
        rows=quality_rows(found, config.policies),
        remarks=quality_remarks(found),
        details=quality_details(found),
    )


if __name__ == "__main__":
    main("table4_remat", __doc__, Config, measure)
