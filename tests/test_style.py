"""The rules that a reader of this code may count on, checked."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "rstream").rglob("*.py"))
SCRIPTS = sorted((ROOT / "rstream/store/lua").glob("*.lua"))
PARTS = sorted((ROOT / "rstream/store/lua/parts").glob("*.lua"))

FILE_LINES, FUNCTION_LINES = 400, 60

# Built from parts: this file is searched too.
PRIVATE = [f"/{folder}/" for folder in ("home", "work", "Users", "root", "builds")]
REGISTRIES = [
    *(f"index{dash}url" for dash in "-_"),
    "files.pythonhosted" + ".org",
    *("/sim" + "ple/", "PIP_" + "INDEX", "UV_" + "INDEX", "art" + "ifactory", "/packages/" + "pypi", "dev" + "pi."),
]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy"])
def test_a_tool_finds_nothing(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= FILE_LINES
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, f"{node.name} is too long"


@pytest.mark.parametrize("path", [path for path in SOURCES if path.name != "__init__.py"], ids=named)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


def imports(path: Path) -> set[str]:
    """The top-level packages that a file imports, wherever in it, and by any spelling of `import`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module" and node.args:
            found.add(str(getattr(node.args[0], "value", "")).partition(".")[0])
    return found


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_only_the_store_talks_with_redis(path: Path) -> None:
    found = imports(path)
    assert not any(name.startswith(".") for name in found), "imports are absolute here"
    if ROOT / "rstream" / "store" not in path.parents:
        assert not {"redis", "valkey", "hiredis"} & found


PURE = ["event", "errors", "settings", "retry", "position", "codec", "schema", "memo", "delivery", "batch"]
PURE += ["plain", "compat", "upgrades", "where", "reference", "retention", "buckets"]


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_has_no_input_or_output(name: str) -> None:
    path = ROOT / "rstream" / f"{name}.py"
    found = imports(path)
    assert not {"asyncio", "anyio", "socket", "threading", "subprocess", "pathlib", "random"} & found
    inner = set(re.findall(r"^\s*from (rstream\.[\w.]+) import", path.read_text("utf-8"), re.MULTILINE))
    assert inner <= {f"rstream.{pure}" for pure in PURE}


@pytest.mark.parametrize("name", ["finding", "server", "together", "stream", "groups", "app"])
def test_a_check_has_no_input_or_output(name: str) -> None:
    found = imports(ROOT / "rstream" / "doctor" / f"{name}.py")
    assert not {"asyncio", "anyio", "socket", "threading", "subprocess", "pathlib", "random", "time", "os"} & found


ROOMS = [
    ("store", ("worker", "cli", "replay", "app", "stream", "producer", "doctor", "metrics", "operate", "top")),
    ("worker", ("cli", "replay", "doctor", "metrics", "operate", "top")),
    ("operate", ("cli", "worker", "replay", "top", "dashboard")),
    ("top", ("cli", "worker", "replay", "dashboard")),
    ("metrics", ("cli", "replay")),
    ("doctor", ("cli", "worker", "replay")),
]


@pytest.mark.parametrize(("room", "higher"), ROOMS)
def test_a_lower_room_does_not_import_a_higher_one(room: str, higher: tuple[str, ...]) -> None:
    for path in (ROOT / "rstream" / room).rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        typing_only = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in typing_only:
                package, _, inner = (node.module or "").partition(".")
                assert package != "rstream" or inner.partition(".")[0] not in higher, f"{named(path)}: {node.module}"


@pytest.mark.parametrize("path", SCRIPTS, ids=named)
def test_a_script_opens_with_its_contract(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert re.fullmatch(r"#!lua( flags=[a-z,-]+)?", lines[0])
    header: list[str] = []
    for line in lines[1:]:
        if not line.startswith("--"):
            break
        header.append(line.removeprefix("--").strip())
    text = "\n".join(header)
    assert not re.match(r"KEYS|ARGV|returns|cost", text), "what it does comes first"
    code = "\n".join(lines[1 + len(header) :])
    for part in ("KEYS", "ARGV", "returns", "cost"):
        told = re.search(rf"^{part}\b", text, re.MULTILINE)
        assert told or (part == "ARGV" and part not in code), f"{part} is not told"
    used = {int(number) for number in re.findall(r"ARGV\[(\d+)\]", code)}
    assert used <= {int(number) for number in re.findall(r"ARGV\[(\d+)", text)}, "an argument is not told"


@pytest.mark.parametrize("path", SCRIPTS, ids=named)
def test_a_script_is_used(path: Path) -> None:
    assert any(f'Script("{path.stem}")' in source.read_text("utf-8") for source in SOURCES)


@pytest.mark.parametrize("path", PARTS, ids=named)
def test_a_part_says_what_it_does_and_is_shared(path: Path) -> None:
    assert path.read_text("utf-8").startswith(f"-- {path.stem}(")
    users = [script for script in SCRIPTS if f"-- include: {path.stem}\n" in script.read_text("utf-8")]
    assert len(users) > 1


def repository() -> list[Path]:
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        told = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git repository")
    return [path for name in told.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    found = []
    for path in repository():
        text = path.read_bytes().decode(errors="replace")
        found += [f"{named(path)} contains {part!r}" for part in (*PRIVATE, *REGISTRIES) if part in text]
        found += [f"{named(path)} contains its own place"] * (str(ROOT) in text)
    assert not found, "\n".join(found)


def test_no_file_is_large() -> None:
    assert [named(path) for path in repository() if path.stat().st_size > 500_000] == []
