"""The order in which a module's forward uses what it is made of."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def children_in_forward_order(module: nn.Module) -> list[str]:
    """Names of its own children and parameters, as its forward uses them.

    They are often registered in another order: OPT registers its last norm before its blocks, BART
    the norm of its embeddings after them. So the order is read in the source of forward. What
    forward does not name stays behind the one that was registered before it.
    """
    from torch import nn

    registered = [*module._parameters, *module._modules]
    if isinstance(module, (nn.ModuleList, nn.Sequential)):
        return registered
    used = {name: place for place, name in enumerate(_attributes_used_in_forward(type(module)))}  # type: ignore[arg-type]
    places, place = {}, -1
    for name in registered:
        place = places[name] = used.get(name, place)
    return sorted(registered, key=places.__getitem__)


@cache
def _attributes_used_in_forward(kind: type) -> tuple[str, ...]:
    """Attributes of self in the order of their first use in forward, through its own methods."""
    reader = _AttributeReader(kind)
    reader.read("forward")
    return tuple(reader.names)


class _AttributeReader(ast.NodeVisitor):
    """Collects `self.x` in the order of evaluation."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.names: dict[str, None] = {}
        self.methods: set[str] = set()

    def read(self, method: str) -> None:
        self.methods.add(method)
        try:
            source = inspect.getsource(inspect.unwrap(getattr(self.kind, method)))
        except (OSError, TypeError):  # made without a file: the order of registration remains
            return
        indented = source[0].isspace()
        self.visit(ast.parse(f"class Around:\n{source}" if indented else source))

    def visit_Call(self, node: ast.Call) -> None:
        for argument in (*node.args, *node.keywords):
            self.visit(argument)
        self.visit(node.func)

    def visit_For(self, node: ast.For) -> None:
        """What a loop over blocks uses beside them comes between them, so below the last one."""
        for statement in node.body:
            self.visit(statement)
        self.visit(node.iter)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.visit(node.value)
        if not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            return
        if not inspect.isfunction(getattr(self.kind, node.attr, None)):
            self.names.setdefault(node.attr)
        elif node.attr not in self.methods:
            self.read(node.attr)
