"""The floor table: a module imports only from lower floors, and the three packages meet only in named modules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

# Each row is a floor, counted from 0. An entry holds for the module and for all modules below it; one that ends in
# "." holds for the package's own __init__ alone, so that a new file beside it has to be given its floor here.
# A module imports from lower floors, and on its own floor from the entries to its left.
FLOORS = {
    "runner": (
        ("runner.", "runner.protocol", "runner.lifeline", "runner.sim_ledger", "runner.ggml_types",
         "runner.cache_types", "runner.gguf_cursor", "runner.gguf_strings", "runner.gguf_header", "runner.gguf",
         "runner.cache.", "runner.cache.cells", "runner.engine.", "runner.engine.batching", "runner.engine.work",
         "runner.engine.durations", "runner.engine.stats"),
        ("runner.model.", "runner.model.spec", "runner.tensor_storage", "runner.footprint", "runner.kernels",
         "runner.devices", "runner.tokenizer", "runner.sequence", "runner.cache.prefixes", "runner.cache.moves"),
        ("runner.model.ops", "runner.model.step", "runner.cache.layer"),
        ("runner.model.weights", "runner.cache.kind", "runner.cache.kv_cache", "runner.random", "runner.sampling",
         "runner.stop", "runner.output"),
        ("runner.cache.storage", "runner.model.stage", "runner.model.attention", "runner.model.ffn"),
        ("runner.allocation", "runner.model.transformer"),
        ("runner.load", "runner.engine.completion", "runner.stream", "runner.engine.embedding",
         "runner.engine.admission", "runner.engine.completion_lane", "runner.engine.embedding_lane",
         "runner.engine.engine"),
        ("runner.auth", "runner.app"),
        ("runner.__main__",),
    ),
    "scheduler": (
        ("scheduler.", "scheduler.sizes", "scheduler.clock", "scheduler.events", "scheduler.errors",
         "scheduler.crashes", "scheduler.settings", "scheduler.stream", "scheduler.environment", "scheduler.last_words",
         "scheduler.keep_alive", "scheduler.kv_cache_type", "scheduler.device_choice", "scheduler.tasks"),
        ("scheduler.gpu", "scheduler.system_memory", "scheduler.oom_kills", "scheduler.sim", "scheduler.nvml",
         "scheduler.visible_gpus", "scheduler.cuda_child", "scheduler.cuda_probe", "scheduler.devices",
         "scheduler.lookout", "scheduler.reservations", "scheduler.eviction", "scheduler.freed_memory",
         "scheduler.hypothetical", "scheduler.options", "scheduler.report", "scheduler.estimate"),
        ("scheduler.layout", "scheduler.process", "scheduler.client", "scheduler.spawn"),
        ("scheduler.load", "scheduler.resident", "scheduler.stats", "scheduler.bring_up", "scheduler.rehearsal",
         "scheduler.plan", "scheduler.placement", "scheduler.loading", "scheduler.unloading",
         "scheduler.reloading"),
        ("scheduler.scheduler",),
    ),
    "server": (
        (),
        (),
        (),
        (),
        (),
        ("server.", "server.settings", "server.schemas", "server.errors", "server.catalog", "server.chat_template",
         "server.metrics", "server.engine_metrics", "server.gauges"),
        ("server.routes",),
        ("server.app",),
        ("server.cli", "server.__main__"),
    ),
}  # fmt: skip

PLACES = {
    entry: (floor, place)
    for floors in FLOORS.values()
    for floor, row in enumerate(floors)
    for place, entry in enumerate(row)
}

PACKAGES = tuple(FLOORS)

# What scheduler and server may import of the runner: the wire, the readers of a file's header, and (for where it lies)
# the empty package itself.
OPEN_TO_ALL = frozenset(
    {
        "runner",
        "runner.protocol",
        "runner.gguf",
        "runner.ggml_types",
        "runner.cache_types",
        "runner.footprint",
        "runner.sim_ledger",
    }
)

# package → the other packages it may import from
NEIGHBOURS: dict[str, tuple[str, ...]] = {"runner": (), "scheduler": ("runner",), "server": ("runner", "scheduler")}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(root: Path) -> dict[str, Path]:
    """Every module of the three packages by its dotted name."""
    return {module_name(path, root): path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))}


def entry_of(module: str) -> str | None:
    """The entry of FLOORS that holds for ``module``, the longest one; None for a file that nobody gave a floor."""
    if f"{module}." in PLACES:
        return f"{module}."
    while module and module not in PLACES:
        module = module.rpartition(".")[0]
    return module or None


def imports(path: Path, module: str, known: frozenset[str]) -> Iterator[str]:
    """The modules of the three packages that the file imports, also inside functions and type-checking blocks."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, (_parent(package, node.level), node.module)))
            if base.split(".")[0] in PACKAGES:
                names = (f"{base}.{alias.name}" for alias in node.names)
                yield from (name if name in known else base for name in names)


def _parent(package: str, level: int) -> str:
    return ".".join(package.split(".")[: len(package.split(".")) - (level - 1)]) if level else ""


def broken_rules(importer: str, imported: str) -> Iterator[str]:
    """Sentences for what is wrong with one import; none when it is allowed."""
    here, there = importer.split(".")[0], imported.split(".")[0]
    if here == there:
        from_entry, to_entry = entry_of(importer), entry_of(imported)
        if from_entry is None or to_entry is None or from_entry == to_entry:
            return
        if PLACES[to_entry] >= PLACES[from_entry]:
            yield f"{importer} (floor, place {PLACES[from_entry]}) imports {imported} ({PLACES[to_entry]})"
    elif there not in NEIGHBOURS[here]:
        yield f"{importer} imports {imported}: {here} may import nothing of {there}"
    elif there == "runner" and imported not in OPEN_TO_ALL:
        yield f"{importer} imports {imported}: of the runner only {', '.join(sorted(OPEN_TO_ALL))} are open to {here}"


def test_every_module_has_a_floor(repository_root: Path) -> None:
    without = [name for name in modules(repository_root) if entry_of(name) is None]
    assert not without, f"add to FLOORS in {Path(__file__).name} (and to docs/ARCHITECTURE.md): {without}"


def test_every_import_goes_down(repository_root: Path) -> None:
    found = modules(repository_root)
    known = frozenset(found)
    broken = [
        sentence
        for name, path in found.items()
        for imported in imports(path, name, known)
        for sentence in broken_rules(name, imported)
    ]
    assert not broken, "\n".join(broken)


def test_every_entry_of_the_table_is_there(repository_root: Path) -> None:
    found = modules(repository_root)
    assert not [entry for entry in PLACES if entry.removesuffix(".") not in found]


def test_the_document_has_the_same_table(repository_root: Path) -> None:
    text = (repository_root / "docs" / "ARCHITECTURE.md").read_text("utf-8")
    (head,) = re.findall(r"^\| floor \| (.+) \|$", text, re.MULTILINE)
    rows = re.findall(r"^\| (\d) \|(.*)\|$", text, re.MULTILINE)
    for column, package in enumerate(head.split(" | ")):
        for floor, cells in rows:
            expected = [entry.partition(".")[2] for entry in _row(package, int(floor)) if not entry.endswith(".")]
            assert re.findall(r"`(.+?)`", cells.split("|")[column]) == expected, f"floor {floor} of {package}"


def _row(package: str, floor: int) -> tuple[str, ...]:
    return FLOORS[package][floor] if floor < len(FLOORS[package]) else ()


def test_the_package_that_others_may_import_has_no_code(repository_root: Path) -> None:
    body = ast.parse((repository_root / "runner" / "__init__.py").read_text("utf-8")).body
    assert all(isinstance(node, ast.Expr) for node in body)  # its docstring


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("runner.cache.kv_cache", "runner.engine.engine"),  # upwards
        ("runner.load", "runner.engine.engine"),  # to the right
        ("runner.app", "scheduler.errors"),  # the runner knows nobody
        ("runner.gguf", "server"),
        ("scheduler.client", "server.errors"),
        ("scheduler.estimate", "runner.engine.engine"),  # not one of the open modules
        ("server.catalog", "runner.tokenizer"),
        ("server.settings", "server.app"),
    ],
)
def test_a_forbidden_import_is_found(importer: str, imported: str) -> None:
    assert list(broken_rules(importer, imported))


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("runner.engine.engine", "runner.cache.kv_cache"),
        ("runner.gguf", "runner.ggml_types"),  # to the left
        ("runner.tokenizer.bpe", "runner.tokenizer.special"),  # inside one entry
        ("scheduler.estimate", "runner.footprint"),
        ("server.routes.openai", "scheduler.scheduler"),
        ("server.catalog", "runner.gguf"),
    ],
)
def test_an_allowed_import_passes(importer: str, imported: str) -> None:
    assert not list(broken_rules(importer, imported))


def test_relative_and_nested_imports_are_seen(tmp_path: Path) -> None:
    source = "from . import sequence\nfrom ..scheduler import errors\ndef f():\n    import runner.stream\n"
    path = tmp_path / "load.py"
    path.write_text(source)
    known = frozenset({"runner.sequence", "runner.stream"})
    assert list(imports(path, "runner.load", known)) == ["runner.sequence", "scheduler", "runner.stream"]
