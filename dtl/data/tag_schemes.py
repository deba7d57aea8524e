"""Schemes of entity tags: IOB1, IOB2, BIOES, BILOU and BMES; their conversion to IOB2."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dtl.core.errors import Fault

SCHEME_TAG = re.compile(r"O|([BIESLUM])-(.+)")
# In IOB2, B- is the first word of an entity and I- each further one.
TO_IOB2 = {"B": "B", "S": "B", "U": "B", "I": "I", "M": "I", "E": "I", "L": "I"}
MAX_LOCATIONS = 3
STATS_KEY = "tag_scheme"


@dataclass(frozen=True)
class TagScheme:
    """A scheme that is converted to IOB2.

    `irregular`: entities that begin with I- although others begin with B-; `locations`: the first
    rows of such.
    """

    name: str
    irregular: int = 0
    locations: tuple[str, ...] = ()

    def to_stats(self) -> dict[str, Any]:
        """Return the scheme as JSON values."""
        return {
            "name": self.name,
            "irregular": self.irregular,
            "locations": list(self.locations),
        }

    def find_fault(self) -> Fault | None:
        """Return the fault of irregular entities, or None."""
        if not self.irregular:
            return None
        also = ", ".join(self.locations[1:])
        return Fault(
            self.locations[0],
            f"{self.irregular} entities begin with I-, although others begin with B-; they are "
            "read as B-" + (f" (also {also}, ...)" if also else ""),
            "begin each entity with B-",
        )

    def describe(self) -> str:
        """Return what is done with the tags, in words."""
        return f"tags are {self.name}, converted to IOB2 (B-, I-, O)"


def scheme_of_stats(dataset_stats: dict[str, Any]) -> TagScheme | None:
    """Return the scheme in a task's statistics; None: the tags are not converted."""
    stored = dataset_stats.get(STATS_KEY)
    if stored is None:
        return None
    return TagScheme(stored["name"], stored["irregular"], tuple(stored["locations"]))


@dataclass
class SchemeDetector:
    """Finds the scheme of all tags of the training rows. `converted`: the tags in IOB2."""

    prefixes: set[str] = field(default_factory=set)
    has_other_tags: bool = False
    begins_with_b: bool = False
    inside_begins: int = 0
    locations: list[str] = field(default_factory=list)
    converted: set[str] = field(default_factory=set)

    def add(self, tags: Sequence[str], location: str) -> None:
        """Add the tags of a row."""
        previous = "O"
        self.converted.update(_to_iob2(tags))
        for tag in tags:
            match = SCHEME_TAG.fullmatch(tag)
            if match is None:
                self.has_other_tags = True
                return
            prefix, name = match.groups()
            if prefix is not None:
                self.prefixes.add(prefix)
                begins = previous[2:] != name
                self.begins_with_b |= begins and prefix == "B"
                if begins and prefix == "I":
                    self.inside_begins += 1
                    if len(self.locations) < MAX_LOCATIONS and location not in self.locations:
                        self.locations.append(location)
            previous = tag

    def find(self) -> TagScheme | None:
        """Return the scheme; None for IOB2, and for tags that are no entities."""
        if self.has_other_tags or not self.prefixes:
            return None
        if self.prefixes & {"U", "L"}:
            return TagScheme("BILOU")
        if self.prefixes & {"S", "E", "M"}:
            return TagScheme("BMES" if "M" in self.prefixes else "BIOES")
        if not self.inside_begins:
            return None
        if not self.begins_with_b:
            return TagScheme("IOB1")
        return TagScheme("IOB2 with some IOB1", self.inside_begins, tuple(self.locations))


def convert_tags(tags: Sequence[str], scheme: TagScheme | None) -> list[str]:
    """Return the tags of a row in IOB2. `scheme`: None: they are not converted."""
    return list(tags) if scheme is None else _to_iob2(tags)


def _to_iob2(tags: Sequence[str]) -> list[str]:
    converted: list[str] = []
    previous = ""  # the name of the entity that the last word belongs to
    for tag in tags:
        new = convert_tag(tag)
        name = new[2:]
        if new.startswith("I-") and name != previous:
            new = f"B-{name}"
        converted.append(new)
        # After S-, U-, E- and L- the entity is complete.
        previous = "" if tag[:2] in ("S-", "U-", "E-", "L-") else name
    return converted


def convert_tag(tag: str) -> str:
    """Return a tag of any scheme with the prefix of IOB2; other tags are unchanged."""
    match = SCHEME_TAG.fullmatch(tag)
    if match is None or match[1] is None:
        return tag
    return f"{TO_IOB2[match[1]]}-{match[2]}"
