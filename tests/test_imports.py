"""The house: a file imports only from files below it, so that reading from the top never jumps back up."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gptft"

# Top to bottom; a wing counts as one place. A file imports only from places below its own.
ROWS = [
    ["train.py", "__main__", "commands"],
    ["runner"],
    ["finetuning"],
    ["report"],
    ["run"],
    ["evaluation"],
    ["curation"],
    ["export"],
    ["generation"],
    ["fast"],
    ["training"],
    ["parallel"],
    ["decoding"],
    ["loading"],
    ["checkpoint"],
    ["formats"],
    ["adapters"],
    ["loss"],
    ["collate"],
    ["data"],
    ["tokenizer"],
    ["prompts"],
    ["text"],
    ["optim", "device"],
    ["model", "attention", "architecture"],
    ["config", "settings", "files", "errors"],
]
HOUSE = [place for row in ROWS for place in row]
EXTRAS = {
    "safetensors",
    "huggingface_hub",
    "tokenizers",
    "jinja2",
    "matplotlib",
    "transformers",
    "gguf",
    "pyarrow",
    "zstandard",
    "datasets",
    "datasketch",
    "ftfy",
    "sacrebleu",
    "lm_eval",
    "openai",
}  # optional: imported where they are used
CORE = {"torch", "tiktoken", "numpy", "tqdm"}


def files():
    """{path: its place in the house}; `gptft/__init__.py` resolves its names on first use and has none."""
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
            folder = ROOT.joinpath(*node.module.split("."))
            for alias in node.names:  # of a folder, a file is imported
                is_file = node.module == "gptft" or (folder / f"{alias.name}.py").exists()
                yield f"{node.module}.{alias.name}" if is_file else node.module, inside
        else:
            yield from imports(node, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imported(path):
    return list(imports(ast.parse(path.read_text(encoding="utf-8"))))


WINGS = sorted(path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py")))


def test_every_place_has_its_rank():
    """A file that is not in the list would be free to import from anywhere."""
    assert set(files().values()) == set(HOUSE)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_places_below_it(path):
    place = files()[path]
    for module, _ in imported(path):
        if module.split(".")[0] == "gptft" and module != "gptft":
            other = module.split(".")[1]
            if other == "__version__" or (other == place and place in WINGS):
                continue
            assert HOUSE.index(other) > HOUSE.index(place), f"{path.name} imports {module} from above"


@pytest.mark.parametrize("wing", WINGS)
def test_the_files_of_one_wing_import_each_other_in_no_circle(wing):
    """Inside a wing too: Python's own order of loading would hide it until somebody imports another file first."""
    graph = {}
    for path in (PACKAGE / wing).rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        graph[".".join(parts).removesuffix(".__init__")] = {module for module, _ in imported(path)}
    done = set()
    while ready := [name for name, others in graph.items() if name not in done and others & graph.keys() <= done]:
        done.update(ready)
    assert done == set(graph)


def test_this_test_sees_an_import_from_above(tmp_path):
    """It would pass on anything if it did not find imports inside functions and `from gptft import x`."""
    tree = ast.parse(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gptft.data import X\n"
        "def f():\n    from gptft import report\n    import gptft.run.folder\n    from gptft.data import sources\n"
        "try:\n    from gptft.files import y\nexcept ImportError:\n    pass\n"
    )
    assert list(imports(tree)) == [
        ("typing", False),
        ("gptft.report", True),
        ("gptft.run.folder", True),
        ("gptft.data.sources", True),
        ("gptft.files", False),
    ]


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_optional_packages_are_imported_where_they_are_used(path):
    """The core needs torch, tiktoken, numpy and tqdm, nothing else: with no extra installed everything else runs."""
    allowed = CORE | set(sys.stdlib_module_names) | {"gptft"}
    for module, inside in imported(path):
        top = module.split(".")[0]
        assert top in allowed or (inside and top in EXTRAS), f"{path.name} imports {module}"


LIGHT = [
    "architecture.py",
    "config.py",
    "curation/findings.py",
    "errors.py",
    "files.py",
    "prompts.py",
    "run/threads.py",
    "settings/checks.py",
    "settings/toml.py",
    "settings/values.py",
    "text/pace.py",
    "__main__.py",
]
COMMANDS = sorted(f"commands/{path.name}" for path in (PACKAGE / "commands").glob("*.py"))


@pytest.mark.parametrize("name", [*LIGHT, *COMMANDS, "../train.py"])
def test_what_answers_help_imports_no_torch(name):
    """Of our own files only those that hold to it themselves."""
    modules = {module for module, inside in imported(PACKAGE / name) if not inside}
    assert not {module.split(".")[0] for module in modules} & (CORE | EXTRAS)
    ours = {
        module.removeprefix("gptft.").replace(".", "/") + ".py" for module in modules if module.startswith("gptft.")
    }
    if name in COMMANDS or name in ("../train.py", "__main__.py"):
        assert ours <= {*LIGHT, *COMMANDS}
