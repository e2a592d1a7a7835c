"""Every variant of the comparison is one that can be trained, and the unsafe ones are not made safe by a fallback."""

import pytest

from experiments.compression_quality import Config
from experiments.entry import CONFIGS
from experiments.runs import run_of, sections
from jaxlm.collectives.schemes import check, scheme
from jaxlm.decode import decode, read
from planners.plan import Communication

CONFIG = decode(read(CONFIGS / "compression_quality.yaml"), Config)


@pytest.mark.parametrize("name", [name for name in CONFIG.variants if name != "exact"])
def test_a_variant_is_a_scheme_that_its_optimizer_takes(name):
    run = run_of(sections(CONFIG.run, "run"), CONFIG.variants[name], name, name)
    ((axis, travel),) = run.plan.communication.items()
    assert travel.scheme != "auto"
    said = Communication(axis=axis, scheme=travel.scheme, parameters=travel.parameters, every=travel.every)
    made = scheme(said, 2)
    check(made, run.optim.kind, 2, allow_unsafe=run.plan.allow_unsafe)
    if run.plan.allow_unsafe:
        assert (made.limit, made.spike) == (0, 0), "a fallback would make it a dense run"
    if made.kind == "local_sgd":
        assert made.every < run.train.steps
    if name == "frozen":
        assert made.momentum
        assert 0 < made.spike < 1e-3, "every step after the warm-up is dense"


def test_intervals_need_seeds():
    assert CONFIG.seeds == 5
