"""MODULE:NAME -> the object, and when that fails one line that says what to write instead."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from rstream.errors import LoadError, masked

if TYPE_CHECKING:
    from rstream.app import RStream

_OURS = str(Path(__file__).resolve().parents[1])


def load(spec: str) -> object:
    """The object that `MODULE:NAME` names; NAME may have dots. Modules of the working directory are found, as
    with `python -m`. Raises `LoadError`.
    """
    module_name, colon, name = spec.partition(":")
    if _is_file(module_name):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise LoadError(f"{module_name!r} is a file, not a module: write {dotted}:{name or 'app'}")
    if not (colon and module_name and name):
        raise LoadError(f"{spec!r} is not MODULE:NAME: write for example shop.events:{name or 'app'}")
    module = _import(module_name)
    found: object = module
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise LoadError(f"{module_name} has no {name!r}{_similar(module, name)}") from None
    return found


def load_app(spec: str) -> RStream:
    """The RStream that `MODULE:APP` names. Raises `LoadError`."""
    from rstream.app import RStream

    module_name, colon, _ = spec.partition(":")
    if module_name and not colon and not _is_file(module_name):
        raise LoadError(f"{spec!r} is not MODULE:APP: {_apps(module_name)}")
    found = load(spec)
    if not isinstance(found, RStream):
        raise LoadError(f"{spec} is a {type(found).__name__}, not an RStream: {_apps(module_name)}")
    return found


def _is_file(module_name: str) -> bool:
    return "/" in module_name or module_name.endswith(".py")


def _apps(module_name: str) -> str:
    from rstream.app import RStream

    found = [name for name, value in vars(_import(module_name)).items() if isinstance(value, RStream)]
    if found:
        return f"write {' or '.join(f'{module_name}:{name}' for name in found)}"
    return f"write `app = RStream()` at the top level of {module_name}, and name it: {module_name}:app"


def _import(name: str) -> ModuleType:
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise LoadError(
                f"there is no module {name!r} ({error.name!r} is neither in {here} nor installed): "
                "start in the directory that it is imported from, or set PYTHONPATH"
            ) from None
        raise LoadError(_explain(name, error)) from error
    except (Exception, SystemExit) as error:
        raise LoadError(_explain(name, error)) from error


def _explain(module: str, error: BaseException) -> str:
    """What went wrong while the user's module was imported, and at which line of theirs."""
    what = masked(" ".join(f"{type(error).__name__}: {error}".split()))
    if isinstance(error, SyntaxError) and error.filename:
        what, place = f"SyntaxError: {error.msg}", (error.filename, error.lineno, error.text)
    else:
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((frame for frame in reversed(frames) if _is_users(frame.filename)), None)
        if frame is None:
            return f"{module} cannot be imported: {what}"
        place = (frame.filename, frame.lineno, frame.line)
    file, line, source = place
    return f"{module} cannot be imported: {what} (at {_short(file)}:{line}: {masked(source or '').strip()})"


def _is_users(file: str) -> bool:
    """Neither ours, nor of the standard library, nor of an installed package."""
    paths = sysconfig.get_paths()
    others = (_OURS, *(paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")))
    return not file.startswith(("<", *(other + os.sep for other in others)))


def _short(file: str) -> str:
    try:
        return str(Path(file).relative_to(Path.cwd()))
    except ValueError:
        return file


def _similar(module: ModuleType, name: str) -> str:
    names = [each for each in vars(module) if not each.startswith("_")]
    close = difflib.get_close_matches(name.partition(".")[0], names, n=3, cutoff=0.5)
    return f": did you mean {' or '.join(close)}?" if close else f": define it in {module.__file__ or module.__name__}"
