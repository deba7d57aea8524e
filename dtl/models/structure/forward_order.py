"""The order in which a module's `forward` uses its children and parameters."""

from __future__ import annotations

import ast
import inspect
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def children_in_forward_order(module: nn.Module) -> list[str]:
    """Return the names of a module's own children and parameters, in the order of its `forward`.

    They are often registered in another order: OPT registers its last norm before its blocks, BART
    the norm of its embeddings after them. So the order is read from the source of `forward`. A
    child that `forward` does not name follows the one that was registered before it.
    """
    from torch import nn

    registered = [*module._parameters, *module._modules]
    if isinstance(module, (nn.ModuleList, nn.Sequential)):
        return registered
    used = {name: index for index, name in enumerate(_attributes_used_in_forward(type(module)))}  # type: ignore[arg-type]
    indices, index = {}, -1
    for name in registered:
        index = indices[name] = used.get(name, index)
    return sorted(registered, key=indices.__getitem__)


@cache
def _attributes_used_in_forward(kind: type) -> tuple[str, ...]:
    """Return the attributes of self in the order of their first use in `forward`, also in methods
    that it calls."""
    reader = _AttributeReader(kind)
    reader.read("forward")
    return tuple(reader.names)


class _AttributeReader(ast.NodeVisitor):
    """Collects each `self.x` in the order of evaluation."""

    def __init__(self, kind: type) -> None:
        self.kind = kind
        self.names: dict[str, None] = {}
        self.methods: set[str] = set()

    def read(self, method: str) -> None:
        self.methods.add(method)
        try:
            source = inspect.getsource(inspect.unwrap(getattr(self.kind, method)))
        except (OSError, TypeError):  # no source file: the order of registration is used
            return
        indented = source[0].isspace()
        self.visit(ast.parse(f"class Around:\n{source}" if indented else source))

    def visit_Call(self, node: ast.Call) -> None:
        for argument in (*node.args, *node.keywords):
            self.visit(argument)
        self.visit(node.func)

    def visit_For(self, node: ast.For) -> None:
        """Visit the body first: what a loop uses besides its blocks is below the last block."""
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
