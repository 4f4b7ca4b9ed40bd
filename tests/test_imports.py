"""The house: a file imports only from files below it, so that reading from the top never jumps back up."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gptft"

# Top to bottom.
HOUSE = [
    "train.py",
    "__main__",
    "cli",
    "export",
    "runner",
    "viewer",
    "finetuning",
    "runs",
    "report",
    "training",
    "evaluation",
    "decoding",
    "checkpoint",
    "peft_format",
    "pretrained",
    "families",
    "collate",
    "data",
    "records",
    "loss",
    "lora",
    "model",
    "attention",
    "optim",
    "hf_tokenizer",
    "tokenizer",
    "engines",
    "chat",
    "sandbox",
    "prompts",
    "architecture",
    "config",
    "files",
]
EXTRAS = {
    "safetensors",
    "huggingface_hub",
    "tokenizers",
    "jinja2",
    "matplotlib",
    "transformers",
    "gguf",
}  # optional: imported where they are used
FOLDERS = ("evaluation", "export", "families")  # floors of several files
CORE = {"torch", "tiktoken", "numpy", "tqdm"}


def files():
    """{path: its floor in the house}; `gptft/__init__.py` resolves its names on first use and has none."""
    found = {ROOT / "train.py": "train.py"}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != PACKAGE / "__init__.py":
            found[path] = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return found


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def imports(tree, inside=False):
    """(module, inside a function) of every import, those for type checkers left out."""
    for node in ast.iter_child_nodes(tree):
        if is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out in full"
            if node.module == "gptft":
                yield from ((f"gptft.{alias.name}", inside) for alias in node.names)
            else:
                yield node.module, inside
        else:
            yield from imports(node, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imported(path):
    return list(imports(ast.parse(path.read_text(encoding="utf-8"))))


def test_every_file_has_its_floor():
    """A file that is not in the list would be free to import from anywhere."""
    assert set(files().values()) == set(HOUSE)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_files_below_it(path):
    floor = files()[path]
    for module, _ in imported(path):
        if module.split(".")[0] == "gptft" and module != "gptft":
            other = module.split(".")[1]
            if other == "__version__":
                continue
            if other == floor and floor in FOLDERS:
                continue
            assert HOUSE.index(other) > HOUSE.index(floor), f"{path.name} imports {module} from above"


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_files_of_one_floor_import_each_other_in_no_circle(folder):
    """Inside a folder too: Python's own order of loading would hide it until somebody imports another file first."""
    graph = {}
    for path in (PACKAGE / folder).glob("*.py"):
        name = f"gptft.{folder}" + ("" if path.stem == "__init__" else f".{path.stem}")
        graph[name] = [module for module, _ in imported(path) if module.startswith(f"gptft.{folder}")]
    done = set()
    while ready := [name for name, others in graph.items() if name not in done and set(others) <= done]:
        done.update(ready)
    assert done == set(graph)


def test_this_test_sees_an_import_from_above(tmp_path):
    """It would pass on anything if it did not find imports inside functions and `from gptft import x`."""
    tree = ast.parse(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gptft.data import X\n"
        "def f():\n    from gptft import report\n    import gptft.runs\n"
        "try:\n    from gptft.files import y\nexcept ImportError:\n    pass\n"
    )
    assert list(imports(tree)) == [
        ("typing", False), ("gptft.report", True), ("gptft.runs", True), ("gptft.files", False)
    ]  # fmt: skip


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_optional_packages_are_imported_where_they_are_used(path):
    """The core needs torch, tiktoken, numpy and tqdm, nothing else: with no extra installed everything else runs."""
    allowed = CORE | set(sys.stdlib_module_names) | {"gptft"}
    for module, inside in imported(path):
        top = module.split(".")[0]
        assert top in allowed or (inside and top in EXTRAS), f"{path.name} imports {module}"


@pytest.mark.parametrize("name", ["architecture", "config", "files", "prompts", "__main__"])
def test_what_answers_help_imports_no_torch(name):
    modules = {module.split(".")[0] for module, inside in imported(PACKAGE / f"{name}.py") if not inside}
    assert not modules & (CORE | EXTRAS)
