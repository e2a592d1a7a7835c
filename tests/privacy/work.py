"""Documents, a tiny model, and a private step under any mesh."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from jaxlm.collectives.sync import Implicit
from jaxlm.data.packing import Truncated
from jaxlm.data.stream import TokenStream
from jaxlm.model.config import ModelConfig
from jaxlm.model.loss import next_token
from jaxlm.model.transformer import Execution, Transformer
from jaxlm.privacy.config import PrivacyConfig
from jaxlm.privacy.feed import PoissonFeed
from jaxlm.privacy.sampling import Secret
from jaxlm.sharding import Rules, make_mesh, shardings
from jaxlm.trainer.private import Noise, make_private_programs
from jaxlm.trainer.state import init_state
from planners.layout import rules
from planners.plan import BATCH_AXES, MESH_AXES, Batch, Plan, Segment

LENGTH, DOCUMENTS, RATE = 16, 60, 0.2
MODEL = ModelConfig(layers=1, embed=16, heads=4, kv_heads=2, mlp=32, vocab=64, vocab_multiple=32, dropout=0.1)
TX = optax.adam(1e-2)
CONFIG = PrivacyConfig(enabled=True, clip_norm=0.5)
SECRET = Secret(bytes(range(32)))


def documents(count: int = DOCUMENTS) -> Truncated:
    random = np.random.default_rng(0)
    texts = [[1, *random.integers(3, 64, random.integers(3, 20)).tolist(), 2] for _ in range(count)]
    return Truncated(TokenStream.of(texts), LENGTH)


class Private:
    """A private step of the tiny model on a mesh; use inside `with jax.set_mesh(private.mesh)`."""

    def __init__(self, mesh: Mapping[str, int], *, rows: int, multiplier: float = 1.0, config: PrivacyConfig = CONFIG):
        sizes = dict.fromkeys(MESH_AXES, 1) | dict(mesh)
        batch = Batch(sequences=8, microbatch=8, accumulation=1)
        plan = Plan(mesh=sizes, rules=rules(sizes), batch=batch, remat=(Segment(layers=MODEL.layers),))
        self.mesh = make_mesh(plan, jax.devices()[: plan.devices])
        table = tuple((name, to) for name, to in plan.rules.activations if name != "batch")
        self.execution = Execution(shard=Rules(table))
        self.feed = PoissonFeed(documents(), SECRET, RATE, self.mesh, rows=rows, sequence=LENGTH, pad=0)
        self.noise = Noise(config, multiplier, RATE * DOCUMENTS, 100.0)
        self.parameters = plan.rules.parameters

    def state(self) -> Any:
        fresh = lambda: init_state(Transformer(MODEL, self.execution, key=jax.random.key(3)), TX, Implicit())
        places = shardings(jax.eval_shape(fresh), self.mesh, self.parameters)
        return jax.jit(fresh, out_shardings=places)()

    def programs(self, state: Any) -> tuple[Any, Any]:
        places = jax.tree.map(lambda leaf: leaf.sharding, state.model)
        place = lambda gradients: jax.lax.with_sharding_constraint(gradients, places)
        compute, finish = make_private_programs(next_token, TX, self.noise, axes=BATCH_AXES, place=place)
        return jax.jit(compute), jax.jit(finish)
