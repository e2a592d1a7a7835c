"""The identity of a state: a Merkle root over its tensors that survives resharding and saving again.

A leaf is the canonical JSON of one tensor's name, dtype, shape and SHA-256 of its little-endian row-major bytes; leaves
are in the order of their names. So one layer can be proven to belong to a checkpoint without the others.
"""

from collections.abc import Mapping
from typing import Any

from jaxlm.governance import canonical, merkle
from jaxlm.governance.errors import Rejected
from jaxlm.governance.merkle import Tree


def leaf(name: str, tensor: Mapping[str, Any]) -> bytes:
    """The entry of one tensor, given as `{"shape": [...], "dtype": "float32", "sha256": "..."}`."""
    facts = {key: tensor[key] for key in ("dtype", "shape", "sha256")}
    return canonical.dump({"path": name, **facts})


def root(tensors: Mapping[str, Mapping[str, Any]]) -> bytes:
    """The root of all tensors of a state, 32 bytes."""
    return _tree(tensors).root()


def prove(tensors: Mapping[str, Mapping[str, Any]], name: str) -> dict[str, Any]:
    """That one tensor is part of the state, as JSON. Raises Rejected when there is none of this name."""
    if name not in tensors:
        raise Rejected(f"there is no tensor {name}")
    tree, index = _tree(tensors), sorted(tensors).index(name)
    path = [value.hex() for value in tree.inclusion(index, tree.size)]
    return {"entry": canonical.load(leaf(name, tensors[name])), "index": index, "size": tree.size, "path": path}


def verify(proof: Mapping[str, Any], root: bytes) -> None:
    """Raises Rejected unless what `prove` said leads to `root`."""
    try:
        path = [bytes.fromhex(value) for value in proof["path"]]
        entry, index, size = canonical.dump(proof["entry"]), proof["index"], proof["size"]
    except (KeyError, TypeError, ValueError) as error:
        raise Rejected(f"not a proof of a tensor: {error}") from None
    merkle.verify_inclusion(merkle.leaf_hash(entry), index, size, path, root)


def _tree(tensors: Mapping[str, Mapping[str, Any]]) -> Tree:
    return Tree(merkle.leaf_hash(leaf(name, tensors[name])) for name in sorted(tensors))
