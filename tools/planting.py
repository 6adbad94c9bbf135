"""The report of a run that plants faults: a line for each, and how many no test saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Protocol


class Planted(Protocol):
    """A fault: its kind, the file that it is planted in, and the text that it replaces."""

    @property
    def kind(self) -> str:
        """Description of the fault."""

    @property
    def file(self) -> str:
        """File in which it is planted."""

    @property
    def old(self) -> str:
        """The text that it replaces."""


def report(results: Iterable[tuple[Planted, bool | None]]) -> int:
    """Print each fault and whether it was caught, as soon as that is known; None: not planted.

    Returns:
        The status that the process ends with: 1 where a fault went unseen.
    """
    verdicts = {True: "caught", False: "NOT SEEN", None: "left out"}
    counts: Counter[bool | None] = Counter()
    for fault, caught in results:
        counts[caught] += 1
        first = fault.old.strip().splitlines()[0][:70]
        print(f"{verdicts[caught]:9} {fault.file}: {fault.kind}: {first}", flush=True)
    left_out = f"; {counts[None]} are of code that this machine cannot run" if counts[None] else ""
    print(f"{counts[True]} of {counts[True] + counts[False]} planted faults were caught{left_out}")
    return 1 if counts[False] else 0
