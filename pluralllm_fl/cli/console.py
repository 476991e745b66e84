"""Terminal output and the mapping from errors to exit codes."""

import functools
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from pluralllm_fl.errors import ConfigError, PluralLLMError

FAILURE, USAGE, INTERRUPTED = 1, 2, 130

P = ParamSpec("P")
R = TypeVar("R")


def output() -> Console:
    """Return the console for results."""
    return Console()


def messages() -> Console:
    """Return the console for progress beside machine-readable output, and for errors."""
    return Console(stderr=True)


def show_error(error: Exception, *hints: str) -> None:
    """Show an error as one panel, with hints below it."""
    title = "Configuration" if isinstance(error, ConfigError) else "Error"
    console = messages()
    console.print(Panel(Text(str(error)), title=title, title_align="left", border_style="red"))
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
            # The reader of a pipe (`| head`) left; keep Python's own flush at exit silent.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(FAILURE) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            _unexpected(error, verbose=bool(kwargs.get("verbose")))
            raise typer.Exit(FAILURE) from None

    return run


def _unexpected(error: Exception, *, verbose: bool) -> None:
    if verbose:
        traceback.print_exception(error)
        return
    with tempfile.NamedTemporaryFile(
        "w", prefix="pluralllm-error-", suffix=".log", delete=False, encoding="utf-8"
    ) as file:
        traceback.print_exception(error, file=file)
    summary = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    messages().print(
        f"Unexpected error: {summary}\nThe traceback is in {file.name}",
        style="red", markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def labelled(console: Console, label: str, *lines: object) -> None:
    """Print a label and its lines, aligned."""
    for i, line in enumerate(lines):
        console.print(
            f"{label if i == 0 else '':<10} {line}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
