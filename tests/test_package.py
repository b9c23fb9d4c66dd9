"""The shape of the package: public names, docstrings, signatures, who imports whom, size, version."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from numpydoc.docscrape import NumpyDocString

import histoweave as hw

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "histoweave"
FILES = sorted(SOURCE.rglob("*.py"))
ROOMS = ("io", "pp", "tl", "pl", "models", "metrics", "datasets")

# what each room may import besides itself; "_" stands for the private modules at the top
ALLOWED = {
    "_": set(),
    "metrics": {"_"},
    "io": {"_", "metrics"},
    "pp": {"_", "metrics"},
    "datasets": {"_", "metrics", "io", "pp"},
    "loaders": {"_", "metrics", "io", "pp", "datasets"},
    "models": {"_", "metrics", "io", "pp", "datasets", "loaders"},
    "tl": {"_", "metrics", "io", "pp", "datasets", "loaders", "models"},
    "pl": {"_", "metrics"},
}
ABOVE_ALL = {"__main__", "cli", "_commands", "_doctor", "_report", "report"}  # the command line may import everything
SLOW = {"scanpy", "squidpy", "spatialdata", "spatialdata_io", "skimage", "matplotlib.pyplot"}
TORCH = {"torch", "torchvision", "lightning", "timm"}


def names_in_stub(room: str) -> list[str]:
    """Public names of a room, read without importing it."""
    tree = ast.parse((SOURCE / room / "__init__.pyi").read_text())
    return [alias.asname or alias.name for node in tree.body for alias in getattr(node, "names", [])]


PUBLIC = [f"{room}.{name}" for room in ROOMS for name in names_in_stub(room)]


def relative(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


# ------------------------------------------------------------------ public names


def resolve(name: str):
    room, attribute = name.split(".")
    return getattr(importlib.import_module(f"histoweave.{room}"), attribute)


def callables(name: str) -> Iterator[tuple[str, object]]:
    """The function itself, or the class and its own public methods."""
    found = resolve(name)
    yield name, found
    if inspect.isclass(found):
        for attribute, member in inspect.getmembers(found, inspect.isroutine):
            ours = (getattr(member, "__module__", None) or "").startswith("histoweave")
            if ours and not attribute.startswith("_"):
                yield f"{name}.{attribute}", member


def parameters(found) -> list[inspect.Parameter]:
    signature = inspect.signature(found)
    return [p for p in signature.parameters.values() if p.name not in ("self", "cls")]


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_documents_every_parameter_and_what_comes_back(name):
    for label, found in callables(name):
        doc = NumpyDocString(inspect.getdoc(found) or "")
        assert doc["Summary"], f"{label} has no summary"
        documented = [n.strip(" *") for p in doc["Parameters"] for n in p.name.split(",")]
        assert documented == [p.name for p in parameters(found)], f"{label}: Parameters section and signature differ"
        typed = [p.name for p in doc["Parameters"] if p.type]
        assert not typed, f"{label}: types belong in the signature only: {typed}"
        if not inspect.isclass(found) and inspect.signature(found).return_annotation not in (None, "None"):
            one_line = label != name and doc["Summary"][0].startswith(("Return", "Yield"))  # enough for a method
            assert doc["Returns"] or doc["Yields"] or one_line, f"{label} has no Returns section"


@pytest.mark.parametrize("name", PUBLIC)
def test_signature_has_the_common_shape(name):
    for label, found in callables(name):
        args = {p.name: p for p in parameters(found)}
        untyped = [p.name for p in args.values() if p.annotation is p.empty]
        assert not untyped, f"{label}: no type for {untyped}"
        if next(iter(args), None) in ("data", "adata", "sdata", "table"):
            first, *rest = args.values()
            assert first.kind is first.POSITIONAL_OR_KEYWORD, f"{label}: data first"
            named = (first.KEYWORD_ONLY, first.VAR_KEYWORD)
            free = [p.name for p in rest if p.kind not in named and p.name not in ("path", "model")]
            assert not free, f"{label}: keyword-only, please: {free}"
        for argument, default in {"copy": False, "random_state": 0, "table_key": "table"}.items():
            if argument in args:
                assert args[argument].default == default, f"{label}: `{argument}` is {default} by default"


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_in_docstrings_run(name, few_trees, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hw.settings, "progress", False)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for label, found in callables(name):
        for example in doctest.DocTestFinder(recurse=False).find(found, label, globs={}):
            runner.run(example)
    plt.close("all")
    assert runner.failures == 0, capsys.readouterr().out


def test_every_room_offers_what_its_stub_names():
    for room in ROOMS:
        assert set(dir(getattr(hw, room))) >= set(names_in_stub(room))


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = hw.pp.nonesuch


# ------------------------------------------------------------------ imports


def imported(tree: ast.AST, package: str) -> Iterator[tuple[ast.stmt, str]]:
    """Every module that a file imports, absolute, with the statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from ((node, f"{module}.{alias.name}") for alias in node.names)


def outside_functions(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run on import: not in a function, not for type checkers only."""
    pending = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def room_of(module: str) -> str:
    """The room of a module named relative to the package."""
    first = module.split(".")[0]
    return first if first in ALLOWED or first in ABOVE_ALL else "_"


def package_of(path: Path) -> str:
    return ".".join(["histoweave", *path.relative_to(SOURCE).parts[:-1]])


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_go_one_way(path):
    room = room_of(relative(path).removesuffix(".py").replace("/", "."))
    if room in ABOVE_ALL or path == SOURCE / "__init__.py":
        return
    for node, module in imported(ast.parse(path.read_text()), package_of(path)):
        package, _, inner = module.partition(".")
        if package != "histoweave" or inner == "":
            continue
        target = room_of(inner)
        allowed = ALLOWED[room] | {room}
        assert target in allowed, f"line {node.lineno}: {room} may import {sorted(allowed)}, not {target}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_slow_packages_are_imported_where_they_are_used(path):
    room = relative(path).removesuffix(".py").split("/")[0]
    if room in ABOVE_ALL - {"cli"}:  # loaded by the command that needs them
        return
    slow = SLOW if room in ("loaders", "models") else SLOW | TORCH
    tree = ast.parse(path.read_text())
    on_import = set(outside_functions(tree))
    for node, module in imported(tree, package_of(path)):
        if node in on_import:
            found = {name for name in slow if module == name or module.startswith(f"{name}.")}
            assert not found, f"line {node.lineno} imports {found} when the module is loaded"


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_package_is_cheap():
    loaded = loaded_after("import histoweave")
    assert not (SLOW | TORCH | {"anndata", "pandas", "dask", "matplotlib"}) & loaded


@pytest.mark.slow
def test_naming_every_function_outside_models_stays_light():
    names = [name for name in PUBLIC if name.split(".")[0] in ("io", "pp", "pl", "metrics", "datasets")]
    loaded = loaded_after("import histoweave as hw\n" + "\n".join(f"hw.{name}" for name in names))
    assert not (SLOW | TORCH) & loaded


# ------------------------------------------------------------------ files, version, documents


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_hold_one_thing(path):
    assert len(path.read_text().splitlines()) <= 350


def test_version_has_one_source():
    assert metadata.version("histoweave") == hw.__version__
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE).group(1) == hw.__version__


@pytest.mark.parametrize("name", [n for n in PUBLIC if n.split(".")[0] in ("io", "pp", "tl")])
def test_outputs_page_says_where_results_land(name):
    assert f"`{name}`" in (ROOT / "docs" / "outputs.md").read_text()


def test_ci_runs_the_commands_of_the_readme():
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 2
    steps = [step for line in commands for step in line.split(" && ")]
    script = (ROOT / ".ci" / "run").read_text()
    assert [step for step in steps if step not in script and ".venv" not in step] == []


TEXTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "tutorials").glob("*.md")),
]


@pytest.mark.parametrize("path", [*FILES, *TEXTS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_named_in_text_exist(path):
    named = re.findall(rf"\bhw\.((?:{'|'.join(ROOMS)})\.[A-Za-z]\w*)", path.read_text())
    assert set(named) <= set(PUBLIC)
