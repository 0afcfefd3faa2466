"""The rules that `check_form` applies, each a function from a parsed file to its findings."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

import attrs

FILE_LINES_MAX = {"source": 400, "tests": 600}
FUNCTION_LINES_MAX = {"source": 50, "tests": 80}

VAGUE_NAMES = frozenset({"utils", "util", "helpers", "helper", "common", "misc", "abc", "base", "stuff"})
"""Module names that say nothing about what is inside."""

# A bracket stands in each word, so that the rules do not find themselves.
UNFINISHED = re.compile(r"\b(TOD[O]|FIXM[E]|XX[X]|NotImplementedErro[r])\b")
MACHINE_PATHS = re.compile(r"/wor[k]/(main|shared)|/roo[t]/|/hom[e]/\w|\.\./share[d]")
REGISTRY_HOSTS = re.compile(r"pyp[i]\.org|pythonhoste[d]|registr[y]\.npmjs|de[b]\.debian")

ASSERTING_CALLS = re.compile(r"^(assert|check|expect|verify|raises|RaisesGroup|warns|fail$)")
ISOLATES = re.compile(r"#\s*boundary:", re.IGNORECASE)
REAL_TIME = re.compile(r"#\s*real time:", re.IGNORECASE)

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@attrs.frozen
class Finding:
    """One thing a rule found: `where` is stable (path, or path::function), `measure` is what a ratchet compares."""

    rule: str
    where: str
    text: str
    measure: int = 1


@attrs.frozen
class Source:
    """A parsed Python file; `path` is relative to the checkout."""

    path: str
    text: str
    tree: ast.Module

    @property
    def kind(self) -> str:
        """`tests` or `source`."""
        return "tests" if self.path.startswith("tests/") else "source"

    @property
    def line_count(self) -> int:
        """Lines, blank ones and comments included."""
        return self.text.count("\n")

    def functions(self) -> Iterator[tuple[str, FunctionNode]]:
        """Every function with its dotted name."""
        yield from _functions_in(self.tree, "")

    def function_lengths(self) -> list[int]:
        """Lines of every function, signature and docstring included."""
        return [_length(node) for _, node in self.functions()]

    def documented(self) -> tuple[int, int]:
        """How many public functions and classes have a docstring, of how many."""
        public = [
            node
            for node in ast.walk(self.tree)
            if isinstance(node, FunctionNode | ast.ClassDef) and not node.name.startswith("_")
        ]
        return sum(ast.get_docstring(node) is not None for node in public), len(public)


def _functions_in(parent: ast.AST, prefix: str) -> Iterator[tuple[str, FunctionNode]]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, FunctionNode):
            yield prefix + node.name, node
        inner = f"{prefix}{node.name}." if isinstance(node, FunctionNode | ast.ClassDef) else prefix
        yield from _functions_in(node, inner)


def _length(node: FunctionNode) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _called_name(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def sizes(source: Source) -> Iterator[Finding]:
    """Files and functions that are too long to hold one subject."""
    limit = FILE_LINES_MAX[source.kind]
    if source.line_count > limit:
        yield Finding("file_lines", source.path, f"{source.line_count} lines, over {limit}", source.line_count)
    limit = FUNCTION_LINES_MAX[source.kind]
    for name, node in source.functions():
        if _length(node) > limit:
            where = f"{source.path}::{name}"
            yield Finding("function_lines", where, f"{_length(node)} lines, over {limit}", _length(node))


def vague_names(source: Source) -> Iterator[Finding]:
    """Modules and packages whose name does not say what they are about."""
    vague = [part for part in PurePosixPath(source.path).with_suffix("").parts if part in VAGUE_NAMES]
    if vague:
        yield Finding("vague_name", source.path, f"{vague[0]!r} does not say what is inside")


def broad_handlers(source: Source) -> Iterator[Finding]:
    """Handlers that catch everything, raise nothing, and do not name the boundary they stand at."""
    lines = source.text.splitlines()
    count = 0
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.ExceptHandler) or not _is_broad(node.type):
            continue
        # The comment may stand on the line, above it, or first in the body.
        near = lines[max(0, node.lineno - 2) : node.body[0].lineno]
        if any(isinstance(inner, ast.Raise) for inner in ast.walk(node)) or any(map(ISOLATES.search, near)):
            continue
        count += 1
        text = "catches everything and raises nothing; re-raise, or say `# boundary: what it isolates`"
        yield Finding("broad_handler", f"{source.path}::handler {count}", f"line {node.lineno} {text}")


def _is_broad(kind: ast.expr | None) -> bool:
    match kind:
        case None:
            return True
        case ast.Tuple(elts=elements):
            return any(map(_is_broad, elements))
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in ("Exception", "BaseException")
    return False


def real_sleeps(source: Source) -> Iterator[Finding]:
    """Sleeps in tests that take real time: neither under a clock that jumps, nor marked with a reason."""
    if source.kind != "tests":
        return
    lines = source.text.splitlines()
    jumps_somewhere = "autojump" in source.text
    for top in source.tree.body:
        segment = "\n".join(lines[top.lineno - 1 : top.end_lineno])
        # A helper has the clock of the test that calls it; a test must ask for the clock itself.
        is_test = isinstance(top, FunctionNode) and top.name.startswith("test")
        if "autojump" in segment or (not is_test and jumps_somewhere):
            continue
        for node in ast.walk(top):
            if isinstance(node, ast.Call) and _sleeps(node) and not REAL_TIME.search(lines[node.lineno - 1]):
                text = f"line {node.lineno} really sleeps: use the autojump clock, or say `# real time: why`"
                yield Finding("real_sleep", f"{source.path}::{node.lineno}", text)


def _sleeps(call: ast.Call) -> bool:
    match call:
        case ast.Call(
            func=ast.Attribute(value=ast.Name(id="trio" | "time"), attr="sleep" | "sleep_until"), args=arguments
        ):
            return [ast.unparse(argument) for argument in arguments] != ["0"]
    return False


def idle_tests(source: Source) -> Iterator[Finding]:
    """Tests that assert nothing, neither themselves nor through a function of their own file."""
    if source.kind != "tests":
        return
    functions = list(source.functions())
    asserting: set[str] = set()
    while True:
        found = {node.name for _, node in functions if any(_asserts(inner, asserting) for inner in ast.walk(node))}
        if found == asserting:
            break
        asserting = found
    for name, node in functions:
        if node.name.startswith("test_") and node.name not in asserting:
            yield Finding("idle_test", f"{source.path}::{name}", "asserts nothing")


def _asserts(node: ast.AST, asserting: set[str]) -> bool:
    if isinstance(node, ast.Assert):
        return True
    if not isinstance(node, ast.Call):
        return False
    called = _called_name(node)
    return called in asserting or ASSERTING_CALLS.match(called.lstrip("_")) is not None


RULES: tuple[Callable[[Source], Iterator[Finding]], ...] = (
    sizes,
    vague_names,
    broad_handlers,
    real_sleeps,
    idle_tests,
)


def findings_of_source(source: Source) -> Iterator[Finding]:
    """Everything the rules find in one Python file."""
    for rule in RULES:
        yield from rule(source)


def findings_of_text(path: str, text: str) -> Iterator[Finding]:
    """Words and places that do not belong into anything committed, Python or not."""
    for number, line in enumerate(text.splitlines(), 1):
        for rule, pattern, meaning in (
            ("unfinished", UNFINISHED, "is unfinished"),
            ("machine_path", MACHINE_PATHS, "names a place of one machine"),
            ("registry_host", REGISTRY_HOSTS, "names a package registry's host"),
        ):
            match = pattern.search(line)
            if match:
                yield Finding(rule, f"{path}::{number}", f"{match[0]!r} {meaning}")


def untested_protocols(sources: list[Source]) -> Iterator[Finding]:
    """Modules of `protocols` that no test imports by name."""
    imported = {name for source in sources if source.kind == "tests" for name in _imports(source.tree)}
    for source in sources:
        path = PurePosixPath(source.path)
        if path.parts[0] == "protocols" and path.name != "__init__.py":
            module = ".".join(path.with_suffix("").parts)
            if module not in imported:
                yield Finding("untested", source.path, "no test imports it")


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
