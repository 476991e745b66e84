"""Live progress of a run, read from its metrics.jsonl."""

import math
import time
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from pluralllm_fl.runs.events import Event, parse


class EventTail:
    """Reads new complete lines of a growing metrics.jsonl.

    Parameters
    ----------
    path : Path
        May not exist yet, and may be replaced (resuming rewrites it): what was read of the old
        file is not read again.
    since : float
        Events before this Unix time are left out.
    """

    def __init__(self, path: Path, since: float) -> None:
        self._path = path
        self._since = since
        self._offset = 0
        self._inode = -1
        self._newest = 0.0

    def read(self) -> list[Event]:
        """Return the events that were appended since the last call."""
        try:
            with self._path.open("rb") as file:
                inode = self._path.stat().st_ino
                if inode != self._inode:
                    self._inode, self._offset = inode, 0
                    self._since = max(self._since, math.nextafter(self._newest, math.inf))
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return []
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        events = [parse(line, f"A line of {self._path}") for line in complete.splitlines()]
        times = [event.get("time", 0.0) for event in events]
        self._newest = max([self._newest, *times])
        return [event for event, at in zip(events, times, strict=True) if at >= self._since]


class RoundProgress:
    """Shows round, loss, alignments, elapsed and remaining time; a context manager.

    On a terminal one line is kept up to date; elsewhere every round prints a plain line.
    """

    def __init__(self, console: Console, tail: EventTail) -> None:
        self._console = console
        self._tail = tail
        self._live: Live | None = None
        self._started = time.monotonic()
        self._rounds = self._first = self._round = 0
        self._clock: float | None = None
        self._pending: Event | None = None
        self._evaluation: Event | None = None
        self._state = "starting Flower"
        self.completed = False

    def __enter__(self) -> "RoundProgress":
        if self._console.is_terminal:
            self._live = Live(
                self, console=self._console, transient=True, refresh_per_second=4
            ).__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.update()
        self._print_round()
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def update(self) -> None:
        """Take in new events."""
        for event in self._tail.read():
            handler = getattr(self, f"_on_{event['event']}", None)
            if handler is not None:
                handler(event)

    def __rich__(self) -> RenderableType:
        """Render the live line."""
        texts = [
            f"round {self._round}/{self._rounds}" if self._rounds else self._state,
            *self._scores(self._pending, self._evaluation),
            self._times(),
        ]
        row = Table.grid(padding=(0, 2))
        cells: list[RenderableType] = list(texts)
        if self._console.width >= 100:
            done = max(self._round - max(self._first - 1, 0), 0)
            cells.insert(0, ProgressBar(max(self._rounds - self._first + 1, 1), done, width=16))
        for _ in cells:
            row.add_column(no_wrap=True)
        row.add_row(*cells)
        return row

    def _on_run_started(self, event: Event) -> None:
        self._rounds, self._first = event["rounds"], event["first_round"]
        self._round = self._first - 1
        self._state = "waiting for the nodes"
        if self._first > 1:
            self.say(f"Resuming with round {self._first}.")

    def _on_roster(self, _: Event) -> None:
        self._clock = time.monotonic()

    def _on_round(self, event: Event) -> None:
        self._print_round()
        self._pending, self._round = event, event["round"]

    def _on_evaluation(self, event: Event) -> None:
        self._evaluation = event
        if event["round"] == 0 and not self._console.is_terminal:
            self.say("  ".join(["round 0", *self._scores(None, event)]))
        elif self._pending is not None and event["round"] == self._pending["round"]:
            self._print_round()

    def _on_reply_dropped(self, event: Event) -> None:
        self._warn(f"round {event['round']}: reply of {event['group']} dropped: {event['reason']}")

    def _on_node_joined(self, event: Event) -> None:
        self.say(f"round {event['round']}: {event['group']} joined ({event['role']})")

    def _on_node_refused(self, event: Event) -> None:
        self._warn(f"refused: {event['reason']}")

    def _on_node_back(self, event: Event) -> None:
        self.say(f"round {event['round']}: {event['group']} is back")

    def _on_message_resent(self, event: Event) -> None:
        self._warn(f"round {event['round']}: {event['group']} was restarted and is asked again")

    def _on_round_retried(self, event: Event) -> None:
        self._warn(
            f"round {event['round']}: {event['good']} good replies of {event['needed']} needed, "
            f"trying again"
        )

    def _on_warning(self, event: Event) -> None:
        self._print_round()
        self._warn(event["text"])

    def _on_run_finished(self, event: Event) -> None:
        self.completed = event["status"] == "completed"

    def _on_early_stopped(self, event: Event) -> None:
        self._print_round()
        self.say(f"Stopped early after round {event['round']}; best round {event['best_round']}.")

    def _warn(self, text: str) -> None:
        self.say(f"Warning: {text}", style="yellow")

    def say(self, text: str, style: str | None = None) -> None:
        """Print a line above the progress."""
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def _print_round(self) -> None:
        """Print the last round's line, once its evaluation had the chance to arrive."""
        if self._pending is None or self._console.is_terminal:
            return
        evaluation = self._evaluation
        if evaluation is not None and evaluation["round"] != self._pending["round"]:
            evaluation = None
        label = f"round {self._pending['round']}/{self._rounds}"
        parts = [label, *self._scores(self._pending, evaluation), self._times()]
        self._pending = None
        self.say("  ".join(parts))

    def _scores(self, trained: Event | None, evaluation: Event | None) -> list[str]:
        loss = (trained or {}).get("train_loss")
        parts = [] if loss is None else [f"loss {loss:.4f}"]
        for side in ("seen", "unseen"):
            block = (evaluation or {}).get(side)
            if block:
                parts.append(f"{side} {block['alignment']:.4f}")
        return parts

    def _times(self) -> str:
        text = f"{duration(time.monotonic() - self._started)} elapsed"
        done = self._round - self._first + 1
        if self._clock is not None and done > 0 and self._round < self._rounds:
            each = (time.monotonic() - self._clock) / done
            text += f", {duration(each * (self._rounds - self._round))} left"
        return text


def duration(seconds: float) -> str:
    """Format seconds as e.g. ``4.2 s``, ``42 s``, ``7 min 12 s`` or ``2 h 01 min``."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
