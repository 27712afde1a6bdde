"""Collects names, kinds and first docstring sentences from the Python standard library that runs this script.

Writes ``demo/work/items.json``: {name: {"kind", "sentence", "signature"}}. The result depends on the Python version:
the model in the repository was trained on the 6 190 items and 18 aliases (os.path) of Python 3.11.
The sentences are taken from Python's own docstrings, which stand under the PSF licence.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

ITEMS_PATH = Path(__file__).resolve().parent / "work" / "items.json"

# Modules that open windows, print, need Windows or hold only tests.
SKIPPED = re.compile(
    r"^(test|idlelib|lib2to3|antigravity|this|turtledemo|ensurepip|__|_|tkinter|msilib|distutils|encodings|pydoc_data"
    r"|venv|sre_|nt|winreg|winsound|asyncio\.windows|multiprocessing\.popen_spawn_win32)"
)
MIN_SENTENCE, MAX_SENTENCE = 16, 220  # characters
MAX_SIGNATURE = 80


@dataclass(frozen=True, slots=True)
class Item:
    """What the model learns about one name."""

    kind: str  # module, class, function or method
    sentence: str
    signature: str  # "" when there is none worth showing


def first_sentence(doc: object) -> str:
    """The first sentence of a docstring on one line, without a leading signature; "" when there is none."""
    if not isinstance(doc, str):
        return ""
    paragraphs = [re.sub(r"\s+", " ", part).strip() for part in re.split(r"\n\s*\n", inspect.cleandoc(doc))]
    text = paragraphs[0]
    if re.match(r"^[\w.]+\(.*\)\s*(->.*)?$", text) and len(paragraphs) > 1:
        text = paragraphs[1]
    text = re.sub(r"^[\w.]+\([^)]*\)\s*(->\s*[\w\[\], .]+?)?\s*(--|:)?\s+(?=[A-Z])", "", text)
    sentence = re.match(r"(.{20,220}?[.!?])(\s|$)", text)
    return (sentence.group(1) if sentence else text[:MAX_SENTENCE]).strip()


# A class without a docstring shows its base class's; that says nothing about it.
INHERITED = frozenset(first_sentence(base.__doc__) for base in (dict, Exception, int))


def signature_of(function: object) -> str:
    """The signature as text, "" when Python does not know it or it is too long or names an address."""
    try:
        text = str(inspect.signature(function))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    return text if len(text) < MAX_SIGNATURE and " at 0x" not in text else ""


def import_quietly(name: str) -> ModuleType | None:
    """The module, or None when this machine cannot import it; what it prints is dropped."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return importlib.import_module(name)
    except (Exception, SystemExit):  # a module of another platform may raise anything
        return None


def modules() -> Iterator[tuple[str, ModuleType]]:
    """Every public module of the standard library that can be imported, and its public submodules."""
    for name in sorted(sys.stdlib_module_names):
        module = None if SKIPPED.match(name) else import_quietly(name)
        if module is None:
            continue
        yield name, module
        for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
            full = f"{name}.{info.name}"
            if info.name.startswith("_") or "test" in info.name or SKIPPED.match(full):
                continue
            if (child := import_quietly(full)) is not None:
                yield full, child


def kind_of(value: object) -> str | None:
    return "class" if inspect.isclass(value) else "function" if callable(value) else None


def belongs_to(value: object, module_name: str) -> bool:
    """False for a name that a module only imported from another public module."""
    origin = getattr(value, "__module__", module_name)
    return origin in (module_name, None) or str(origin or "").startswith("_")


def members(name: str, module: ModuleType) -> Iterator[tuple[str, Item]]:
    """Classes, functions and methods of one module."""
    prefix = "" if name == "builtins" else f"{name}."
    for key, value in sorted(vars(module).items()):
        kind = kind_of(value)
        if key.startswith("_") or kind is None or not belongs_to(value, name):
            continue
        sentence = first_sentence(value.__doc__)
        if sentence not in INHERITED:
            yield f"{prefix}{key}", Item(kind, sentence, signature_of(value) if kind == "function" else "")
        if kind == "class":
            for method, function in sorted(vars(value).items()):
                if not method.startswith("_") and callable(getattr(value, method, None)):
                    yield f"{prefix}{key}.{method}", Item("method", first_sentence(function.__doc__), "")


def collect() -> dict[str, Item]:
    """Name → item for the whole standard library; the first place that gives a name wins."""
    items: dict[str, Item] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules say so when they are imported
        for name, module in modules():
            for key, item in ((name, Item("module", first_sentence(module.__doc__), "")), *members(name, module)):
                if len(item.sentence) >= MIN_SENTENCE:
                    items.setdefault(key, item)
    aliases = {
        name.replace("posixpath", "os.path", 1): item for name, item in items.items() if name.startswith("posixpath.")
    }
    return items | aliases


def load() -> dict[str, Item]:
    """The items as this script wrote them. Raises FileNotFoundError when it has not run."""
    return {name: Item(**fields) for name, fields in json.loads(ITEMS_PATH.read_text("utf-8")).items()}


def main() -> None:
    items = collect()
    ITEMS_PATH.parent.mkdir(parents=True, exist_ok=True)
    ITEMS_PATH.write_text(json.dumps({name: asdict(item) for name, item in items.items()}, indent=0), "utf-8")
    print(f"{ITEMS_PATH}: {len(items)} items, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
