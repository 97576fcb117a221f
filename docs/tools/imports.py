"""Reads which file imports which, checks the order of the layers, and draws it.

    python docs/tools/imports.py              writes docs/pictures/imports.svg, prints what breaks the rules
    python docs/tools/imports.py ROOT --layers cli,data,codec --out old.svg      another state of the project

Source files are parsed, not imported. What counts as an import, wherever it stands in a file:

- `import` and `from … import`, at the top of a file, in a function, or below `if TYPE_CHECKING:`;
- a string that is the dotted name of one of our modules or of something in it: `"lit_moss.cli.fit"` for
  `importlib.import_module`, `"lit_moss.hub.codec:open_codec"`, `"callbacks.Checkpoint"` as a class path.

Two rules: an import points down the list of layers or stays in its layer, and no chain of imports leads back
to the file it began with. Imports for type checkers must point down too, but they may close a circle, since
they are never executed. A package's `__init__.py`, which Python runs before any of its modules, counts as
imported only where a name is taken from it.
"""

import argparse
import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "pictures" / "imports.svg"
TOP_LEVEL = ("lit_moss", "callbacks", "experiments")
# From top to bottom. A layer is a folder of lit_moss, a single file of it, or a top-level package; what is
# not listed belongs to the last layer.
LAYERS = (
    "experiments", "cli", "callbacks", "release", "evaluate", "serve", "sweep", "prepare", "modules", "data",
    "trainer_access", "contracts", "hub", "corpora", "codec", "llm", "runs", "audio", "base",
)  # fmt: skip
# Files of lit_moss: assets, cpu_attention, devices, errors, files, optimizer_groups, records, schedule.
BASE = LAYERS[-1]
# Neither may import the other, although one of them stands above.
SEPARATE = (("codec", "llm"),)


@dataclass(frozen=True, order=True)
class Import:
    """One file imports another.

    Args:
        source: Module that imports, by its dotted name.
        target: Module that is imported.
        kind: How: `import`, `type` (below `if TYPE_CHECKING:`) or `string`.
        line: Line of the source.
    """

    source: str
    target: str
    kind: str
    line: int


def modules_of(root: Path) -> dict[str, Path]:
    """Dotted name -> file, of all modules in the project's packages."""
    modules = {}
    for top in TOP_LEVEL:
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def imports_of(root: Path = ROOT) -> list[Import]:
    """Every import of one of our modules by another, each kind once for a pair of files."""
    modules = modules_of(root)
    first: dict[tuple[str, str, str], int] = {}
    for name, path in modules.items():
        for target, kind, line in references(path, name):
            module = _module(target, modules)
            if module is not None and module != name:
                first.setdefault((name, module, kind), line)
    return sorted(Import(source, target, kind, line) for (source, target, kind), line in first.items())


@lru_cache(maxsize=1000)
def references(path: Path, module: str) -> tuple[tuple[str, str, int], ...]:
    """(dotted name, kind, line) of whatever a file may import, ours or not."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return tuple(_references_of(tree, module, path.name == "__init__.py"))


def _references_of(tree: ast.Module, module: str, is_package: bool) -> Iterator[tuple[str, str, int]]:
    typing_only = _typing_only(tree)
    docstrings = _docstrings(tree)
    for node in ast.walk(tree):
        kind = "type" if id(node) in typing_only else "import"
        if isinstance(node, ast.Import):
            yield from ((alias.name, kind, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            yield from ((f"{base}.{alias.name}", kind, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            dotted = re.match(rf"({'|'.join(TOP_LEVEL)})(\.\w+)+(?=[.:]?\w*$)", node.value)
            if dotted is not None:
                yield dotted.group(), "string", node.lineno


def _typing_only(tree: ast.Module) -> set[int]:
    """Ids of the nodes below `if TYPE_CHECKING:`."""
    return {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }


def _docstrings(tree: ast.Module) -> set[int]:
    """Ids of the constants that are statements: docstrings, which may name what they like."""
    return {
        id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)
    }


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _module(name: str, modules: dict[str, Path]) -> str | None:
    """The module that a dotted name is, or is taken from; None if it is none of ours."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None


def layer_of(module: str, layers: tuple[str, ...] = LAYERS) -> str:
    """The layer of a module."""
    if module == "lit_moss.__main__":
        return "cli"
    top, *inner = module.split(".")
    name = (inner or [""])[0] if top == "lit_moss" else top
    return name if name in layers else layers[-1]


def upward(imports: Iterable[Import], layers: tuple[str, ...] = LAYERS) -> list[Import]:
    """Imports of a layer by one below it, or between two that must know nothing of each other."""
    wrong = []
    for item in imports:
        source, target = layer_of(item.source, layers), layer_of(item.target, layers)
        apart = (source, target) in SEPARATE or (target, source) in SEPARATE
        if layers.index(source) > layers.index(target) or apart:
            wrong.append(item)
    return wrong


def circles(imports: Iterable[Import]) -> list[list[str]]:
    """Groups of files, each of which reaches all others of its group by executed imports."""
    graph = _graph(imports)
    reached = {name: _reached(graph, name) for name in graph}
    groups = {frozenset(b for b in reached[a] if a in reached[b]) | {a} for a in graph if a in reached[a]}
    return sorted(sorted(group) for group in groups)


def _graph(imports: Iterable[Import]) -> dict[str, set[str]]:
    """Module -> modules that it imports when it runs."""
    graph: dict[str, set[str]] = {}
    for item in imports:
        graph.setdefault(item.target, set())
        if item.kind != "type":
            graph.setdefault(item.source, set()).add(item.target)
    return graph


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += graph[name]
    return reached


def outside_imports(root: Path = ROOT, below: bool = False) -> dict[str, set[str]]:
    """Module -> top-level names of everything that it imports and that is not ours.

    Args:
        root: Folder that holds lit_moss/.
        below: Whether to add what the modules import that it imports, and those that these import.
    """
    own = {}
    for name, path in modules_of(root).items():
        imported = (dotted for dotted, kind, _ in references(path, name) if kind == "import")
        own[name] = {dotted.partition(".")[0] for dotted in imported} - set(TOP_LEVEL)
    if not below:
        return own
    graph = _graph(imports_of(root))
    return {
        name: own[name].union(*(own[other] for other in _reached(graph, name)))
        if name in graph
        else own[name]
        for name in own
    }


# The drawing: layers on the diagonal, from the highest to the lowest. A line leaves a layer to the right and
# bends down into the layer that it imports; the number at the bend counts the imports. What points up runs to
# the left and is red.

BOX_WIDTH, BOX_HEIGHT, STEP_X, STEP_Y, MARGIN = 96, 30, 66, 46, 24
DOWN, UP, INK = "#4a6fa5", "#c0392b", "#222"


def draw(imports: Iterable[Import], layers: tuple[str, ...] = LAYERS, title: str = "") -> str:
    """The drawing as SVG; the same imports give the same text."""
    imports = list(imports)
    names = {name for i in imports for name in (i.source, i.target)}
    counts = Counter((layer_of(i.source, layers), layer_of(i.target, layers)) for i in imports)
    shown = [layer for layer in layers if any(layer in pair for pair in counts)]
    place = {layer: (MARGIN + n * STEP_X, 2 * MARGIN + n * STEP_Y) for n, layer in enumerate(shown)}
    lines, labels = [], []
    for (source, target), count in sorted(counts.items()):
        if source == target:
            continue
        points_up = shown.index(source) > shown.index(target)
        (x, y), (x2, y2) = place[source], place[target]
        column = x2 + BOX_WIDTH / 2
        row = y + BOX_HEIGHT / 2
        start = x if points_up else x + BOX_WIDTH
        end = y2 + BOX_HEIGHT + 2 if points_up else y2 - 2
        colour, arrow = (UP, "up") if points_up else (DOWN, "down")
        lines.append(
            f'<path d="M{start} {row:g}H{column:g}V{end}" fill="none" stroke="{colour}" '
            f'stroke-opacity="0.35" marker-end="url(#{arrow})"/>'
        )
        labels.append(_badge(column, row, str(count), colour))
    boxes = [_box(*place[layer], _label(layer, names), counts[layer, layer]) for layer in shown]
    width = MARGIN * 2 + (len(shown) - 1) * STEP_X + BOX_WIDTH
    height = MARGIN * 3 + (len(shown) - 1) * STEP_Y + BOX_HEIGHT
    body = "\n".join([*lines, *boxes, *labels])
    size = f'viewBox="0 0 {width} {height}" font-family="sans-serif"'
    return f"""<svg xmlns="http://www.w3.org/2000/svg" {size}>
<defs>{_arrow("down", DOWN)}{_arrow("up", UP)}</defs>
<rect width="{width}" height="{height}" fill="#fff"/>
<text x="{MARGIN}" y="{MARGIN}" font-size="13" fill="{INK}">{escape(title)}</text>
{body}
</svg>
"""


def _arrow(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
    )


def _label(layer: str, modules: set[str]) -> str:
    """`data/` for a folder, `contracts.py` for a file."""
    if layer == BASE:
        return layer
    is_folder = layer in TOP_LEVEL or any(name.startswith(f"lit_moss.{layer}.") for name in modules)
    return f"{layer}/" if is_folder else f"{layer}.py"


def _box(x: float, y: float, label: str, within: int) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="4" fill="#eef2f8" '
        f'stroke="{INK}"/>'
        f'<text x="{x + BOX_WIDTH / 2:g}" y="{y + BOX_HEIGHT / 2 + 4:g}" font-size="12" text-anchor="middle" '
        f'fill="{INK}">{escape(label)}<title>{within} imports within the layer</title></text>'
    )


def _badge(x: float, y: float, text: str, colour: str) -> str:
    return (
        f'<circle cx="{x:g}" cy="{y:g}" r="9" fill="#fff" stroke="{colour}"/>'
        f'<text x="{x:g}" y="{y + 3.5:g}" font-size="10" text-anchor="middle" fill="{INK}">{text}</text>'
    )


def title_of(imports: list[Import], layers: tuple[str, ...] = LAYERS) -> str:
    """One line with the numbers of the drawing."""
    files = len({i.source for i in imports} | {i.target for i in imports})
    return (
        f"{len(imports)} imports between {files} files; {len(upward(imports, layers))} point up (red), "
        f"{len(circles(imports))} circles"
    )


def main(arguments: list[str] | None = None) -> int:
    """Draws, and prints each import that breaks a rule; 1 if there is any."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="?", type=Path, default=ROOT, help="folder that holds lit_moss/")
    parser.add_argument("--layers", default=",".join(LAYERS), help="from top to bottom, with commas")
    parser.add_argument("--out", type=Path, default=PICTURE, help="SVG to write")
    args = parser.parse_args(arguments)
    layers = tuple(args.layers.split(","))
    imports = imports_of(args.root)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(draw(imports, layers, title_of(imports, layers)), encoding="utf-8")
    wrong = upward(imports, layers)
    for item in wrong:
        print(f"upward ({item.kind}): {item.source}:{item.line} imports {item.target}")
    groups = circles(imports)
    for group in groups:
        print(f"circle: {', '.join(group)}")
    print(f"{args.out}: {title_of(imports, layers)}")
    return 1 if wrong or groups else 0


if __name__ == "__main__":
    sys.exit(main())
