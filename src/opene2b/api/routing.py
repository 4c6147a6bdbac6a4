"""Raw path -> endpoint. `team%2Fname` is one segment: the path is split first and decoded afterwards.

A tree of segments, because a parameter and a word may stand at the same place (`/templates/{id}`, `/templates/tags`)
and the word goes first.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import unquote

T = TypeVar("T")


@dataclass(slots=True)
class Branch(Generic[T]):
    words: dict[str, "Branch[T]"] = field(default_factory=dict)
    parameter: "Branch[T] | None" = None
    methods: dict[str, tuple[T, tuple[str, ...]]] = field(default_factory=dict)
    """Method -> (what it leads to, names of the parameters on the way)."""


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    methods: dict[str, tuple[T, tuple[str, ...]]]
    values: tuple[str, ...]
    """Of the parameters, still percent-encoded."""

    def pick(self, method: str) -> tuple[T, dict[str, str]] | None:
        chosen = self.methods.get(method)
        if chosen is None:
            return None
        target, names = chosen
        return target, {
            name: unquote(value, errors="strict")
            for name, value in zip(names, self.values, strict=True)
        }


class Router(Generic[T]):
    def __init__(self, table: Iterable[tuple[str, str, T]]) -> None:
        """`table`: (method, path, target)."""
        self.root: Branch[T] = Branch()
        for method, path, target in table:
            self.add(method, path, target)

    def add(self, method: str, path: str, target: T) -> None:
        branch = self.root
        names = []
        for segment in path.split("/")[1:]:
            if segment.startswith("{"):
                names.append(segment[1:-1])
                branch.parameter = branch.parameter or Branch()
                branch = branch.parameter
            else:
                branch = branch.words.setdefault(segment, Branch())
        if method in branch.methods:
            raise ValueError(f"{method} {path} is there twice")
        branch.methods[method] = (target, tuple(names))

    def find(self, raw_path: str) -> list[Found[T]]:
        """Everything that the path may mean, words before parameters; empty: no such path."""
        open_ends: list[tuple[Branch[T], tuple[str, ...]]] = [(self.root, ())]
        for segment in raw_path.split("/")[1:]:
            further = []
            for branch, values in open_ends:
                if segment in branch.words:
                    further.append((branch.words[segment], values))
                if branch.parameter is not None and segment:
                    further.append((branch.parameter, (*values, segment)))
            open_ends = further
        return [Found(branch.methods, values) for branch, values in open_ends if branch.methods]
