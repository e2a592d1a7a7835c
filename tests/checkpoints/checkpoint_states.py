"""Small states for the checkpoint tests."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

FACTS = {"config": "c0ffee", "plan": "beef", "data": {"step": 7, "shard": [1, 2]}, "alpha": 0.5, "note": None}


def mesh(*shape: int) -> Mesh:
    return Mesh(np.asarray(jax.devices()).reshape(shape), ("data", "tensor")[: len(shape)])


def state(seed: int = 0, on: Mesh | None = None) -> dict[str, jax.Array]:
    """Float, bfloat16 and integer leaves and scalars, under the names of a real run; sharded over `on`."""
    random = np.random.default_rng(seed)
    embed = random.standard_normal((64, 16), np.float32)
    values = {
        "model/embed/table": jnp.asarray(embed),
        "model/blocks/attn/q": jnp.asarray(random.standard_normal((8, 16, 8), np.float32), jnp.bfloat16),
        "opt/0/mu/blocks/attn/q": jnp.asarray(random.standard_normal((8, 16, 8), np.float32)),
        "opt/0/count": jnp.int32(seed),
        "rng": jnp.asarray(random.integers(0, 2**32, 4, np.uint32)),
        "step": jnp.int32(seed + 7),
    }
    return {name: jax.device_put(leaf, sharding(on, leaf.ndim)) for name, leaf in values.items()}


def sharding(on: Mesh | None, dims: int) -> jax.sharding.Sharding:
    if on is None:
        return jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return NamedSharding(on, P(*on.axis_names) if dims > 1 else P())


def like(values: dict[str, jax.Array], on: Mesh | None = None) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(on, leaf.ndim))
        for name, leaf in values.items()
    }


def assert_same_bits(got: dict[str, jax.Array], want: dict[str, jax.Array]) -> None:
    assert list(got) == list(want)
    for name in want:
        a, b = np.asarray(got[name]), np.asarray(want[name])
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert a.tobytes() == b.tobytes(), name
