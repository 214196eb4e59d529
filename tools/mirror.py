"""ms/ and pt/ are one program in two dialects; this module holds the dialect.

`python -m tools.mirror` writes the pt side of every twin from its ms side; the mirror test compares them as
syntax trees.
"""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FRAMEWORKS = {"mindspore", "mindone", "torch"}
SEAMS = {  # file -> why its bodies differ
    "kernels.py": "fused operators have different names, layouts and mask conventions",
    "parallel.py": "collective operations and how ranks meet",
    "fsdp.py": "PyTorch's FSDP2; MindSpore has nothing like it that holds",
    "ops.py": "the same functions under different names",
    "runtime.py": "devices, compilation, autograd and memory",
    "text.py": "text encoders come from transformers there and mindone.transformers here",
}
DIALECT = {"nn.CellList": "nn.ModuleList", "nn.Cell": "nn.Module", "construct": "forward"}


def to_pytorch(source: str) -> str:
    """The text of an ms/ twin in PyTorch's dialect."""
    for ours, theirs in DIALECT.items():
        source = re.sub(rf"(?<![\w.]){re.escape(ours)}\b", theirs, source)
    source = re.sub(r"^(from|import) mindspore\b", r"\1 torch", source, flags=re.MULTILINE)
    return source.replace("__init__(auto_prefix=False)", "__init__()").replace("-m ms.", "-m pt.")


class Skeleton(ast.NodeTransformer):
    """Keep public names, signatures and docstrings; drop bodies, private helpers and imports."""

    def visit_Module(self, node: ast.Module) -> ast.AST:
        kept = (ast.FunctionDef, ast.ClassDef)
        node.body = [n for n in node.body if isinstance(n, kept) and not n.name.startswith("_")]
        node.body.sort(key=lambda n: getattr(n, "name", ""))
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = [n for n in node.body if not (isinstance(n, ast.FunctionDef) and _private(n.name))]
        node.body = [n for n in node.body if isinstance(n, ast.FunctionDef) or _is_docstring(n)] or [
            ast.Pass()
        ]
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.body = node.body[:1] if ast.get_docstring(node) else [ast.Pass()]
        node.decorator_list = []
        return node


class DropFrameworks(ast.NodeTransformer):
    """Remove the framework's own import lines: they are the one thing twins must not share."""

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        return None if any(a.name.split(".")[0] in FRAMEWORKS for a in node.names) else node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        return None if node.level == 0 and (node.module or "").split(".")[0] in FRAMEWORKS else node


def canonical(tree: str, name: str) -> str:
    """The comparable form of ms/NAME or pt/NAME: all of a twin, only the public face of a seam."""
    source = (ROOT / tree / name).read_text()
    parsed = DropFrameworks().visit(ast.parse(to_pytorch(source) if tree == "ms" else source))
    return ast.unparse(Skeleton().visit(parsed) if name in SEAMS else parsed)


def files(tree: str) -> set[str]:
    """Python files of a tree, relative to it."""
    return {str(path.relative_to(ROOT / tree)) for path in (ROOT / tree).rglob("*.py")}


def _private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def formatted(text: str) -> str:
    """The text as `ruff format` leaves it; as it is without ruff."""
    ruff = shutil.which("ruff") or shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        return text
    call = [ruff, "format", "--stdin-filename", str(ROOT / "pt" / "twin.py"), "-"]
    return subprocess.run(call, input=text, capture_output=True, text=True, check=True).stdout


def main() -> None:
    if len(sys.argv) > 1:
        sys.exit(f"error: got {' '.join(sys.argv[1:])}; python -m tools.mirror takes no arguments")
    for name in sorted(files("ms") - set(SEAMS)):
        target = ROOT / "pt" / name
        text = formatted(to_pytorch((ROOT / "ms" / name).read_text()))
        if not target.exists() or target.read_text() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
            print(f"wrote pt/{name}", file=sys.stderr)


if __name__ == "__main__":
    main()
