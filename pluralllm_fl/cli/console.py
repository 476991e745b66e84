"""Terminal output and the mapping from errors to exit codes.

Names, questions and options come from others. What would move the cursor, colour the terminal or
turn the reading direction is shown escaped, here and nowhere else.
"""

import functools
import json
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from pluralllm_fl.errors import ArtefactError, ConfigError, FederationError, PluralLLMError

FAILURE, USAGE, INTERRUPTED = 1, 2, 130
# Control characters but tab and newline, line separators, bidi controls, surrogates.
_HOSTILE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

P = ParamSpec("P")
R = TypeVar("R")


def shown(text: str, *, lines: bool = False) -> str:
    """Escape what a terminal would obey; newlines too, unless the text has `lines` of ours."""
    text = _HOSTILE.sub(lambda found: ascii(found[0])[1:-1], text)
    return text if lines else text.replace("\n", "\\n")


class SafeConsole(Console):
    """A console that shows escaped what a terminal would obey.

    A string and a table's cell are one line each; a `Text` may hold several.
    """

    def print(self, *objects: Any, **options: Any) -> None:
        """Print strings, tables and other renderables."""
        super().print(*(_one_line(value) for value in objects), **options)

    def on_broken_pipe(self) -> None:
        """Leave it to `guarded`; rich would end the program here, without a word."""
        self.quiet = True
        raise BrokenPipeError

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render what strings, cells and renderables of others hold."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else shown(text, lines=True), style, control)


def _one_line(value: Any) -> Any:
    if isinstance(value, Table):
        for column in value.columns:
            column._cells = [_one_line(cell) for cell in column._cells]
            for cell in column._cells:
                if isinstance(cell, Text):
                    cell.plain = shown(cell.plain)
    return shown(value) if isinstance(value, str) else value


def output() -> Console:
    """Return the console for results."""
    return SafeConsole()


def messages() -> Console:
    """Return the console for progress beside machine-readable output, and for errors."""
    return SafeConsole(stderr=True)


def progress_bar() -> Progress:
    """Return a bar for a terminal's messages; elsewhere it shows nothing."""
    console = messages()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def print_json(value: Any) -> None:
    """Print a value as JSON and nothing else."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    typer.echo(_HOSTILE.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def show_error(error: Exception, *hints: str) -> None:
    """Show an error as one panel, with hints below it."""
    title = "Configuration" if isinstance(error, ConfigError) else "Error"
    console = messages()
    # Only these hold lines of ours: the end of a log, or what to write into a file.
    text = shown(str(error), lines=isinstance(error, FederationError | ArtefactError))
    console.print(Panel(Text(text), title=title, title_align="left", border_style="red"))
    for hint in hints:
        console.print(hint, markup=False, highlight=False, soft_wrap=True)


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """Turn errors into messages and exit codes: 1 failure, 2 configuration, 130 interrupted."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except PluralLLMError as error:
            show_error(error)
            if kwargs.get("verbose"):
                traceback.print_exc()
            raise typer.Exit(USAGE if isinstance(error, ConfigError) else FAILURE) from None
        except KeyboardInterrupt:
            messages().print("Interrupted.")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            drop_output()
            messages().print("Stopped: nobody reads the output any more (as after `| head`).")
            raise typer.Exit(FAILURE) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            _unexpected(error, verbose=bool(kwargs.get("verbose")))
            raise typer.Exit(FAILURE) from None

    return run


def drop_output() -> None:
    """Keep Python's own flush at exit silent after the reader of a pipe (`| head`) left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def require_unix() -> None:
    """Say at once where Flower's processes cannot be started and ended as we do it.

    Raises
    ------
    ConfigError
        On Windows.
    """
    if not hasattr(signal, "SIGHUP"):
        raise ConfigError(
            "Simulations and deployments need Linux or macOS. On Windows use WSL 2 (`wsl "
            "--install`), and install and run PluralLLM-FL inside of it."
        )


def _unexpected(error: Exception, *, verbose: bool) -> None:
    if verbose:
        traceback.print_exception(error)
        return
    with tempfile.NamedTemporaryFile(
        "w", prefix="pluralllm-error-", suffix=".log", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    summary = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    for line in (f"Unexpected error: {summary}", f"The traceback is in {file.name}"):
        messages().print(line, style="red", markup=False, highlight=False, soft_wrap=True)


def labelled(console: Console, label: str, *lines: object) -> None:
    """Print a label and its lines, aligned."""
    for i, line in enumerate(lines):
        console.print(
            f"{label if i == 0 else '':<10} {line}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
