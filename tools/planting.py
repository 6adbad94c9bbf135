"""The report of a run that plants faults: a line for each, and how many no test saw."""

from __future__ import annotations

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


def report(results: Iterable[tuple[Planted, bool]]) -> int:
    """Print each fault and whether it was caught, as soon as that is known.

    Returns:
        The status that the process ends with: 1 where a fault went unseen.
    """
    planted = unseen = 0
    for fault, caught in results:
        planted += 1
        unseen += not caught
        first = fault.old.strip().splitlines()[0][:70]
        verdict = "caught" if caught else "NOT SEEN"
        print(f"{verdict:9} {fault.file}: {fault.kind}: {first}", flush=True)
    print(f"{planted - unseen} of {planted} planted faults were caught")
    return 1 if unseen else 0
