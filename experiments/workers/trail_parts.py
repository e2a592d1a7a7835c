"""Runs `jaxlm` with what the audit trail does in each thread timed: processor seconds by part, as JSON.

    python -m experiments.workers.trail_parts OUT.json train CONFIG ...

Each part is timed by the clock of the thread that does it, without the parts inside it. Not seen is what works in other
threads for it: the readers of tensorstore, and the norms inside the compiled step.
"""

import functools
import json
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from jaxlm.auditing import Auditing
from jaxlm.checkpoints import arrays
from jaxlm.cli import main
from jaxlm.copies import Copying
from jaxlm.governance.entries import Chain
from jaxlm.governance.keys import Keys
from jaxlm.governance.log import Log
from jaxlm.governance.notary import Notary
from jaxlm.governance.trail import Trail
from jaxlm.governance.witnessing import Witnessing

PARTS: tuple[tuple[Any, str, str], ...] = (
    (Auditing, "__init__", "start: keys, log, history"),
    (Auditing, "started", "start: entries"),
    (Auditing, "observe", "each step, in the training thread"),
    (Trail, "record", "each step, in the training thread"),
    (Chain, "entry", "entries as canonical JSON"),
    (Log, "append", "the log: tiles, head, flushes"),
    (Keys, "pin", "heads remembered beside the keys"),
    (arrays, "sha256_of", "digests of tensors"),
    (Notary, "sign", "signatures of checkpoints"),
    (Notary, "saved", "signatures of checkpoints"),
    (Copying, "__call__", "encrypted copies"),
    (Witnessing, "_ask", "witnesses"),
    (Auditing, "__exit__", "end"),
)
"""Whose method, its name, and what it is part of."""


class Clock:
    """Processor seconds by part, over all threads."""

    def __init__(self):
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._here = threading.local()
        self._lock = threading.Lock()

    def watch(self, owner: Any, name: str, part: str) -> None:
        """From now on the function `name` of `owner` is timed."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            inside, self._here.inside = getattr(self._here, "inside", 0.0), 0.0
            began = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.thread_time() - began
                with self._lock:
                    self.seconds[part] += whole - self._here.inside
                self._here.inside = inside + whole

        setattr(owner, name, timed)


if __name__ == "__main__":
    clock = Clock()
    for watched in PARTS:
        clock.watch(*watched)
    try:
        main(sys.argv[2:])
    finally:
        Path(sys.argv[1]).write_text(json.dumps(clock.seconds | {"whole process": time.process_time()}))
