"""A process that spends from a ledger: `python spender.py LEDGER EPSILON THREADS QUERIES RAN`. Each query is charged,
then runs, which leaves a line in RAN, then is settled."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxlm.privacy.errors import BudgetSpent
from jaxlm.privacy.ledger import Ledger
from jaxlm.privacy.mechanisms import Mechanism


def spend(path: Path, epsilon: float, ran: int) -> bool:
    ledger = Ledger(path)
    try:
        charge = ledger.reserve(Mechanism("pure", epsilon), who={"process": os.getpid()})
    except BudgetSpent:
        return False
    os.write(ran, f"{charge.id}\n".encode())
    ledger.settle(charge)
    return True


def main() -> None:
    path, epsilon, threads, queries = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    ran = os.open(sys.argv[5], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with ThreadPoolExecutor(threads) as pool:
        print(sum(pool.map(lambda _: spend(path, epsilon, ran), range(queries))), flush=True)


if __name__ == "__main__":
    main()
