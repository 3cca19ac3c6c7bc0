"""The user's own code, found and called: whatever goes wrong inside it is told with its file and line."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from soup import SoupError

_SPEC = re.compile(r"(?P<module>[^:]+\.py|[A-Za-z_]\w*(\.\w+)*):(?P<name>[A-Za-z_]\w*)")

_OURS = Path(__file__).parent


def resolve(spec: str, *, folder: Path) -> Callable[..., object]:
    """The callable that `./file.py:name` (from `folder`) or `package.module:name` stands for.

    A file becomes a module named after its content, so that equal files are loaded once; the folder it lies in is
    appended to sys.path, never put first. Raises SoupError for whatever is missing, and for what the module raises.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise SoupError(f"'{spec}': expected './file.py:name' or 'package.module:name'.")
    module_name, name = match["module"], match["name"]
    module = _from_file(folder / module_name, spec) if module_name.endswith(".py") else _from_package(module_name, spec)
    found: object = getattr(module, name, None)
    if callable(found):
        return found
    if hasattr(module, name):
        raise SoupError(f"'{spec}': '{name}' is {type(found).__name__}, expected a function or a class.")
    close = difflib.get_close_matches(name, [known for known in vars(module) if not known.startswith("_")], n=1)
    raise SoupError(f"'{spec}': {module_name} has no '{name}'.{f' Did you mean {close[0]!r}?' if close else ''}")


def call(function: Callable[..., object], /, *args: object, where: str, **kwargs: object) -> object:
    """What `function` returns. Raises SoupError, `where` first, for anything that it raises."""
    try:
        return function(*args, **kwargs)
    except SoupError as error:
        raise SoupError(f"{where}: {error}", kind=error.kind) from error
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and sys.exit()
        raise SoupError(f"{where}: {_told(error)}") from error


def _from_file(path: Path, spec: str) -> ModuleType:
    path = Path(os.path.realpath(path))
    try:
        source = path.read_bytes()
    except OSError as error:
        raise SoupError(f"'{spec}': cannot read '{path}': {error.strerror or error}.") from error
    digest = hashlib.sha256(str(path).encode() + b"\0" + source).hexdigest()
    name = f"soup_user_{digest[:12]}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # before it runs: dataclasses and pickle look their module up
    try:
        # The bytes just hashed, not the loader's: its .pyc is stale when a file changes within a second.
        call(lambda: exec(compile(source, str(path), "exec"), module.__dict__), where=f"'{spec}'")
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_package(name: str, spec: str) -> ModuleType:
    try:
        found = importlib.util.find_spec(name.partition(".")[0])
    except ValueError:  # a module without __spec__, such as __main__
        found = None
    if found is None:
        advice = f"Install it, or write './{name.replace('.', '/')}.py:…' for a file beside val.yaml."
        raise SoupError(f"'{spec}': no module named '{name}'. {advice}")
    module = call(importlib.import_module, name, where=f"'{spec}'")
    assert isinstance(module, ModuleType)
    return module


def _told(error: BaseException) -> str:
    """`raised ValueError at models.py:7: message`, on one line."""
    message = " ".join(str(error).split()).rstrip(".")
    return f"raised {type(error).__name__}{_place(error)}{f': {message}' if message else ''}."


def _place(error: BaseException) -> str:
    """Where in the user's code: the innermost frame beside the first that is neither ours nor a library's."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}:{error.lineno}"
    frames = [(Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    foreign = [(path, line) for path, line in frames if path.is_absolute() and _OURS not in path.parents]
    theirs = [(path, line) for path, line in foreign if "site-packages" not in path.parts] or foreign
    own = [(path, line) for path, line in theirs if theirs[0][0].parent in path.parents]
    return f" at {own[-1][0]}:{own[-1][1]}" if own else ""
