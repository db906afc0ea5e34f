"""Take uncompiled functions of `shm` and make each visible step of them a yield point.

The source is read from the file, optionally mutated, and rewritten: every call that reaches shared
memory or the kernel becomes `yield from`. What makes the checker's merging of states sound: no
result of a visible step is on the evaluation stack alone while the next one is waited for.
"""

import ast
import importlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from shm.jit import ROOT

REWRITTEN = ("shm.ring", "shm.wait", "shm.doorbell", "shm.channel", "shm.solicited")
# Records in shared memory whose fields are written in place, without `atomics`.
SHARED_OPENERS = ("wqe_at", "cqe_at")

# What comes from here reaches shared memory or the kernel, so it has a model or is not called.
VISIBLE = ("shm.atomics", "shm.libc", "shm.memory")

Namespace = dict[str, Any]


def _not_modelled(name: str) -> Callable[..., Any]:
    def refuse(*_arguments: Any) -> Any:
        raise NotImplementedError(f"{name} has no model: add it to tests/shm/model/steps.py")

    return refuse


class Mutation:
    """One deliberate fault: `edit` changes a function's tree and returns how many places it hit."""

    def __init__(
        self, module: str, function: str, edit: Callable[[ast.FunctionDef], int], sites: int = 1
    ) -> None:
        self.module, self.function, self.edit, self.sites = module, function, edit, sites

    def apply(self, tree: ast.Module) -> None:
        """Edit the function in `tree`. Raises LookupError where the site is gone."""
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name == self.function:
                found = self.edit(node)
                if found == self.sites:
                    ast.fix_missing_locations(tree)
                    return
                raise LookupError(f"{self.module}.{self.function}: {found} sites of the mutation")
        raise LookupError(f"{self.module} has no function {self.function}")


def _blocks(function: ast.FunctionDef) -> Iterator[list[ast.stmt]]:
    for node in ast.walk(function):
        for name in ("body", "orelse"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                yield block


def _find(function: ast.FunctionDef, start: str) -> list[tuple[list[ast.stmt], int]]:
    return [
        (block, index)
        for block in _blocks(function)
        for index, statement in enumerate(block)
        if ast.unparse(statement).startswith(start)
    ]


def drop(module: str, function: str, statement: str) -> Mutation:
    """Leave out the one statement that begins with `statement`."""

    def edit(tree: ast.FunctionDef) -> int:
        found = _find(tree, statement)
        for block, index in found:
            block[index] = ast.Pass()
        return len(found)

    return Mutation(module, function, edit)


def move_after(module: str, function: str, statement: str, anchor: str) -> Mutation:
    """Move the one statement that begins with `statement` behind the one that begins `anchor`."""

    def edit(tree: ast.FunctionDef) -> int:
        moved, target = _find(tree, statement), _find(tree, anchor)
        if len(moved) != 1 or len(target) != 1 or moved[0][0] is not target[0][0]:
            return 0
        (block, source), (_, destination) = moved[0], target[0]
        if source >= destination:
            return 0
        block.insert(destination, block.pop(source))
        return 1

    return Mutation(module, function, edit)


def replace(module: str, function: str, old: str, new: str, sites: int = 1) -> Mutation:
    """Put the expression `new` in the place of each of the `sites` that read `old`."""
    wanted = ast.unparse(ast.parse(old, mode="eval").body)

    class Replacer(ast.NodeTransformer):
        found = 0

        def visit(self, node: ast.AST) -> Any:
            if isinstance(node, ast.expr) and ast.unparse(node) == wanted:
                self.found += 1
                return ast.parse(new, mode="eval").body
            return super().visit(node)

    def edit(tree: ast.FunctionDef) -> int:
        replacer = Replacer()
        replacer.visit(tree)
        return replacer.found

    return Mutation(module, function, edit, sites)


def _called(node: ast.AST) -> str | None:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None


def _is_shared_record(node: ast.AST, names: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in names
    return isinstance(node, ast.Subscript) and _called(node.value) in SHARED_OPENERS


class _Rewriter(ast.NodeTransformer):
    """Wrap the visible calls of one function, and its in-place accesses to shared records."""

    def __init__(self, yielding: set[str], function: ast.FunctionDef) -> None:
        self.yielding = yielding
        self.shared: set[str] = set()
        for node in ast.walk(function):
            if not isinstance(node, ast.Assign):
                continue
            target, value = node.targets[0], node.value
            pairs = [(target, value)]
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = list(zip(target.elts, value.elts, strict=True))
            for left, right in pairs:
                if isinstance(left, ast.Name) and _is_shared_record(right, set()):
                    self.shared.add(left.id)

    def _visible(self, name: str, *arguments: ast.expr) -> ast.expr:
        return ast.YieldFrom(ast.Call(ast.Name(name, ast.Load()), list(arguments), []))

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        return ast.YieldFrom(node) if _called(node) in self.yielding else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        shared = _is_shared_record(node.value, self.shared)
        self.generic_visit(node)
        if shared and isinstance(node.slice, ast.Constant) and isinstance(node.ctx, ast.Load):
            if node.slice.value == 0:
                return node
            return self._visible("get_field", node.value, node.slice)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        target = node.targets[0]
        if isinstance(target, ast.Subscript) and _is_shared_record(target.value, self.shared):
            value = self.visit(node.value)
            return ast.Expr(self._visible("set_field", target.value, target.slice, value))
        self.generic_visit(node)
        return node


def _reaches(function: ast.FunctionDef, yielding: set[str]) -> bool:
    return any(
        _called(node) in yielding or _called(node) in SHARED_OPENERS for node in ast.walk(function)
    )


def _yields(node: ast.AST) -> bool:
    return any(isinstance(part, ast.YieldFrom) for part in ast.walk(node))


class _Keeper(ast.NodeTransformer):
    """Give results of visible steps a name where one expression waits for several.

    A state is compared by frames and locals; what only the evaluation stack holds is not seen.
    """

    def __init__(self) -> None:
        self.count = 0

    def visit(self, node: ast.AST) -> Any:
        self.generic_visit(node)
        if isinstance(node, ast.expr) and not isinstance(node, ast.BoolOp | ast.IfExp):
            children = [child for child in ast.iter_child_nodes(node) if _yields(child)]
            if len(children) > 1:
                _Namer(self).generic_visit(node)
        return node


class _Namer(ast.NodeTransformer):
    """Wrap each visible step below a node in an assignment."""

    def __init__(self, keeper: _Keeper) -> None:
        self.keeper = keeper

    def visit_NamedExpr(self, node: ast.NamedExpr) -> ast.expr:
        return node

    def visit_YieldFrom(self, node: ast.YieldFrom) -> ast.expr:
        self.keeper.count += 1
        return ast.NamedExpr(ast.Name(f"step_{self.keeper.count}", ast.Store()), node)


class Source:
    """The rewritten modules, over one set of model primitives."""

    def __init__(
        self,
        primitives: Namespace,
        plain: Namespace,
        mutations: Iterable[Mutation] = (),
    ) -> None:
        self._primitives = primitives  # generator functions, by the names of the real ones
        self._replaced = {**primitives, **plain}
        self._mutations = list(mutations)
        self._modules: dict[str, tuple[Namespace, set[str]]] = {}

    def __getitem__(self, name: str) -> Any:
        """The rewritten function `module.function`, for example "ring.post"."""
        module, _, function = name.rpartition(".")
        return self._load(f"shm.{module}")[0][function]

    def _load(self, module: str) -> tuple[Namespace, set[str]]:
        if module not in self._modules:
            self._modules[module] = self._rewrite(module)
        return self._modules[module]

    def _import(self, node: ast.ImportFrom, names: Namespace, yielding: set[str]) -> None:
        assert node.module is not None
        for alias in node.names:
            name = alias.asname or alias.name
            if alias.name in self._replaced and node.module.startswith("shm."):
                names[name] = self._replaced[alias.name]
                if alias.name in self._primitives:
                    yielding.add(name)
            elif node.module in REWRITTEN:
                other, visible = self._load(node.module)
                names[name] = other[alias.name]
                if alias.name in visible:
                    yielding.add(name)
            else:
                value = getattr(importlib.import_module(node.module), alias.name)
                visible = node.module in VISIBLE and callable(value)
                names[name] = _not_modelled(f"{node.module}.{alias.name}") if visible else value

    def _rewrite(self, module: str) -> tuple[Namespace, set[str]]:
        path = Path(ROOT, *module.split(".")).with_suffix(".py")
        tree = ast.parse(path.read_text(), str(path))
        for mutation in self._mutations:
            if mutation.module == module:
                mutation.apply(tree)
        names: Namespace = {
            "get_field": self._primitives["get_field"],
            "set_field": self._primitives["set_field"],
            "__name__": module,
        }
        yielding: set[str] = set()
        body: list[ast.stmt] = []
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                self._import(node, names, yielding)
            else:
                body.append(node)
        functions = [node for node in body if isinstance(node, ast.FunctionDef)]
        hot = [f for f in functions if any(ast.unparse(d) == "nopython" for d in f.decorator_list)]
        while grown := {f.name for f in hot if _reaches(f, yielding)} - yielding:
            yielding |= grown
        for function in hot:
            function.decorator_list = []
            _Rewriter(yielding, function).visit(function)
            _Keeper().visit(function)
        tree.body = [node for node in body if node not in functions or node in hot]
        exec(compile(ast.fix_missing_locations(tree), str(path), "exec"), names)
        return names, yielding
