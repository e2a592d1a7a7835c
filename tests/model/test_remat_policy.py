"""The `jax.checkpoint` policy of a segment, by what a traced backward pass keeps, moves and makes again."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxlm.model.stack import policy_of
from planners.plan import Segment


def traced(segment: Segment) -> str:
    def block(x: Any) -> Any:
        q = checkpoint_name(jnp.sin(x), "q")
        return jnp.sin(checkpoint_name(jnp.sin(q), "mlp_gate"))

    rematerialised = jax.checkpoint(block, policy=policy_of(segment), prevent_cse=False)
    return str(jax.make_jaxpr(jax.grad(lambda x: rematerialised(x).sum()))(jnp.ones(4)))


def test_values_go_to_the_host_and_come_back_also_where_the_kernels_results_are_kept():
    kept, away = traced(Segment(layers=1, save=("q",))), traced(Segment(layers=1, save=(), offload=("q",)))
    both = traced(Segment(layers=1, save=("context", "statistics"), offload=("q",)))
    assert "pinned_host" not in kept
    assert away.count("device_put") == 2, "out and back"
    assert both.count("device_put") == 2
    assert traced(Segment(layers=1, save=())).count("sin") > kept.count("sin"), "what is not kept is made again"
