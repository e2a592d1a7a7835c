"""What stands in logs and checkpoints for the digest of protected text: the digest itself would tell whoever knows all
documents but one whether that one is among them."""

import hashlib
import hmac
import os
from pathlib import Path


def committed(folder: Path, run: str, digest: str) -> str:
    """The digest under a salt of this run, which lies in `folder`, that of the private keys, readable by its owner; it
    is made when it is first needed. Without the salt the same text can no longer be told to be the same."""
    path = folder / "salts" / run
    path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    if not path.exists():
        fresh = path.with_name(f"{run}.new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.urandom(32))
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    return hmac.new(path.read_bytes(), digest.encode(), hashlib.sha256).hexdigest()
