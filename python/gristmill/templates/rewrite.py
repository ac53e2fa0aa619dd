"""The pass over a parsed template that puts the guards in."""

from __future__ import annotations

from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

# Everything a template may consist of. Inheritance, inclusion and imports have nothing to load from, and
# autoescape would bring in a second kind of string.
_ALLOWED = frozenset(
    """
    Template Output TemplateData Name NSRef Const For If Assign AssignBlock Macro CallBlock FilterBlock With
    Scope Continue Break Call Keyword Filter Test Getattr Getitem Slice Compare Operand Concat CondExpr And Or
    Not Neg Pos Add Sub Mul Div FloorDiv Mod Pow List Tuple Dict Pair
    """.split()  # noqa: SIM905
)


class GenerationTag(Extension):
    """``{% generation %}...{% endgeneration %}``, which marks the model's part for training: its body."""

    tags = {"generation"}  # noqa: RUF012 - the name and type are Jinja's

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


# ruff: noqa: N802 - visitors are named after Jinja's node classes


class Guards(NodeTransformer):
    """Replaces what can grow or take long by calls of the environment's methods of that purpose."""

    def __init__(self, max_nodes: int) -> None:
        self._nodes_left = max_nodes

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if type(node).__name__ not in _ALLOWED:
            raise TemplateSyntaxError(f"{type(node).__name__.lower()} is not supported", node.lineno)
        self._nodes_left -= 1
        if self._nodes_left < 0:
            raise TemplateSyntaxError("the template is too large", node.lineno)
        return super().visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _call("iterate", node, [node.iter])
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _call("comparable", node, [node.expr])
        for operand in node.ops:
            operand.expr = _call("comparable", node, [operand.expr])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("joined", node, node.nodes)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _call("new_list", node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return node if node.ctx != "load" else _call("new_tuple", node, node.items)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _call("new_dict", node, [part for pair in node.items for part in (pair.key, pair.value)])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        bounds = (node.arg.start, node.arg.stop, node.arg.step)
        none = nodes.Const(None, lineno=node.lineno)
        return _call("sliced", node, [node.node, *(none if bound is None else bound for bound in bounds)])


def _call(name: str, node: nodes.Node, args: list[Any]) -> nodes.Call:
    # Only this pass makes EnvironmentAttribute nodes: no template text parses to one.
    guard = nodes.EnvironmentAttribute(name, lineno=node.lineno)
    return nodes.Call(guard, args, [], None, None, lineno=node.lineno)


class GuardedCode(CodeGenerator):
    """Calls guards directly; all other calls go through ``environment.call``."""

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        if not isinstance(node.node, nodes.EnvironmentAttribute):
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        self.write(f"environment.{node.node.name}(")
        for arg in node.args:
            self.visit(arg, frame)
            self.write(", ")
        self.write(")")
