"""The code base stays small, flat and free of private words."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import dtl
from dtl.config import registry
from dtl.config.schema import RunConfig

PACKAGE = Path(dtl.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    ".".join((PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): file
    for file in FILES
}
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 400, 60, 6
# Files that are one table, and may be longer.
TABLES: frozenset[str] = frozenset()
# A command of typer has one parameter for each option of the command line.
COMMANDS = "cli"
# Code outside of the package. Only names, docstrings and comments are checked: other strings
# are data.
OUTSIDE = sorted(
    file
    for folder in ("tests", "benchmarks", "scripts", "docs")
    for file in (PACKAGE.parent / folder).rglob("*.py")
    if file != Path(__file__)
)

# Words of this project's former dialect, and the term of the field. They are not part of any name,
# message, docstring or config key.
WORDS = {
    "told": "logged, formatted, reported",
    "mend": "fix",
    "mends": "fixes",
    "mended": "fixed",
    "beat": "heartbeat",
    "beats": "heartbeats",
    "reach": "compatibility, rollback_steps",
    "kept": "cached, saved, retained",
    "whole": "full, complete, intact",
    "turns": "accumulation_steps, micro_batches (of a chat: messages)",
    "hungry": "check_batch_size",
    "deafen": "ignore_signals",
    "heard": "extract_features",
    "hearing": "extract_features",
    "twins": "duplicates",
    "letters": "ctc_vocabulary, characters",
    "lesson": "example preview",
    "survey": "collect_dataset_stats",
    "facts": "dataset stats",
    "settle": "configure_model",
    "settled": "configured",
    "unseen": "transform_without_input",
    "weightless": "on the meta device",
    "desk": "prepare",
    "xray": "check",
    "learnt": "learned, trained, supervised",
    "makings": "inputs",
    "anew": "again",
}
# Not the name of a function, class, method, field or config key.
NAMES = {
    "agree": "broadcast_object",
    "answered": "with_placeholder_target",
    "answers": "predictions",
    "apart": "validation_fraction",
    "begin": "init_from_data",
    "begin_over": "init_from_base_weights",
    "changing": "gather_for_update",
    "cut": "unshardable_reason",
    "draw": "subsample",
    "fit": "adapt_processor",
    "fixed": "always_frozen",
    "gather": "all_gather_object",
    "gathered": "gather_for_read",
    "goes_over": "is_phase_transition",
    "learning": "trainable_parameters",
    "learns_to_stop": "supervises_eos",
    "looks_at_data": "needs_calibration",
    "makes_good": "needs_base_weights",
    "masters": "fp32_master_weights",
    "moved": "parameters_to_save",
    "part": "token_span",
    "present": "transform",
    "put_back": "load_adapter",
    "put_on": "attach_adapter",
    "question": "prompt_encoder",
    "reads_by": "processor_kind",
    "reduce": "all_reduce_sum",
    "runs_once": "single_forward",
    "share_statistics": "sync_batch_norm_statistics",
    "tie": "register_optimizer_hooks",
    "wait": "barrier",
    "window": "step_batches",
    "worked_in": "merge_into_base",
}
# Names that the field itself has given.
ALLOWED_NAMES = re.compile(r"\bexpand_turns\b")
# Not in a message, a docstring or a page.
PHRASES = {
    "told apart": "significantly different",
    "tell apart": "distinguish",
    "set aside": "renamed, skipped",
    "held to the": "compared with the",
    "makes good": "restores",
    "goes on learning": "continues training",
}
PAGES = [
    page
    for folder in (PACKAGE.parent, PACKAGE.parent / "docs")
    for page in sorted(folder.glob("*.md"))
    if page.name != "CHANGELOG.md"
]


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _named(file: Path) -> str:
    return file.relative_to(PACKAGE.parent).as_posix()


def _functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_no_file_is_longer_than_400_lines():
    longer = {_named(file): len(file.read_text("utf-8").splitlines()) for file in FILES}
    assert not {
        name: lines for name, lines in longer.items() if lines > MOST_LINES and name not in TABLES
    }


def test_no_function_is_longer_than_60_lines():
    lengths = {
        f"{_named(file)}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in FILES
        for node in _functions(file)
    }
    assert not {name: lines for name, lines in lengths.items() if lines > MOST_FUNCTION_LINES}


def test_no_function_has_more_than_6_parameters():
    counts = {
        f"{_named(file)}:{node.name}": _parameter_count(node)
        for file in FILES
        if file.parent.name != COMMANDS
        for node in _functions(file)
    }
    assert not {name: count for name, count in counts.items() if count > MOST_PARAMETERS}


def _parameter_count(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return len(every) - (bool(every) and every[0].arg in ("self", "cls"))


def test_no_module_imports_itself_through_others_also_for_types_only():
    graph = {name: set(_imports(name)) for name in MODULES}
    assert not _circles(graph)


def _imports(module: str) -> Iterator[str]:
    """Yield the modules of the package that a module names in an import at its top level, those
    under TYPE_CHECKING included. Imports within functions come later, and make no circle."""
    for node in _top_level(_tree(MODULES[module])):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dtl"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def _top_level(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        yield node
        yield from _top_level(node)


def _circles(graph: dict[str, set[str]]) -> set[str]:
    """Return the modules that stay when all are removed, again and again, that import none of the
    others or that none of the others imports."""
    left = {name: {other for other in others if other != name} for name, others in graph.items()}
    while True:
        imported = set().union(*left.values()) if left else set()
        gone = {name for name, others in left.items() if not others or name not in imported}
        if not gone:
            return set(left)
        left = {name: others - gone for name, others in left.items() if name not in gone}


def test_code_outside_of_the_package_uses_words_of_the_field():
    assert len(OUTSIDE) > 250
    assert not [f"{_named(file)}:{fault}" for file in OUTSIDE for fault in _outside_faults(file)]


def _outside_faults(file: Path) -> Iterator[str]:
    tree = _tree(file)
    for name, line, _ in _identifiers(tree):
        yield from (f"{line}: {name}" for word in _words(name) if word in WORDS)
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    texts = [
        (getattr(node, "lineno", 1), ast.get_docstring(node) or "")
        for node in ast.walk(tree)
        if isinstance(node, documented)
    ]
    for line, text in (*texts, *_comments(file)):
        yield from (f"{line}: {fault}" for fault in _private_words(text))


@pytest.mark.parametrize("file", FILES, ids=_named)
def test_names_are_words_of_the_field(file):
    found = [
        f"{line}: {name} -> {WORDS.get(word) or NAMES[word]}"
        for name, line, is_definition in _identifiers(_tree(file))
        for word in _words(name) | ({name.strip("_").lower()} if is_definition else set())
        if word in WORDS or (is_definition and word == name.strip("_").lower() and word in NAMES)
    ]
    assert not found


def _identifiers(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    """Yield each name that a file gives, its line, and whether others meet it: that of a function,
    a class, or a field of a class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno, True
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    yield field.target.id, field.lineno, True
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno, False
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno, False
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno, False


def _words(name: str) -> set[str]:
    name = ALLOWED_NAMES.sub("", name)
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


@pytest.mark.parametrize("file", FILES, ids=_named)
def test_messages_docstrings_and_comments_are_plain(file):
    texts = [
        (node.lineno, node.value)
        for node in ast.walk(_tree(file))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    texts += _comments(file)
    assert not [f"{line}: {fault}" for line, text in texts for fault in _private_words(text)]


def _comments(file: Path) -> list[tuple[int, str]]:
    with tokenize.open(file) as source:
        return [
            (token.start[0], token.string)
            for token in tokenize.generate_tokens(source.readline)
            if token.type == tokenize.COMMENT
        ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_plain(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert not [
        f"{number}: {fault}"
        for number, line in enumerate(lines, 1)
        for fault in _private_words(line)
    ]


def _private_words(text: str) -> list[str]:
    lower = ALLOWED_NAMES.sub("", text.lower())
    words = [word for word in re.findall(r"[a-z]+", lower) if word in WORDS]
    return words + [phrase for phrase in PHRASES if phrase in lower]


def test_config_keys_are_words_of_the_field():
    records = [RunConfig]
    records += [
        registry.load_options(folder, name)
        for folder in registry.FOLDERS
        for name in registry.list_names(folder)
    ]
    keys = {key for record in records for key in _keys(record.model_json_schema())}
    assert len(keys) > 100
    assert not {key for key in keys if _words(key) & WORDS.keys() or key in NAMES}


def _keys(schema: object) -> Iterator[str]:
    """Yield every property name of a JSON schema and of the schemas within it."""
    if isinstance(schema, dict):
        yield from schema.get("properties", {})
        for value in schema.values():
            yield from _keys(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _keys(value)
