"""report.html: one self-contained page about a run, from its run directory."""

from datetime import datetime
from pathlib import Path

import jinja2
from markupsafe import Markup

from pluralllm_fl.report.page import page
from pluralllm_fl.report.reading import read_run
from pluralllm_fl.runs.artefacts import write_atomic
from pluralllm_fl.runs.progress import duration

MISSING = "–"


def write_report(run_dir: Path) -> Path:
    """Write ``report.html`` into a run directory, whatever state the run is in.

    Parameters
    ----------
    run_dir : Path
        Folder with run.json; metrics.jsonl, summary.json and diagnostics.json may be absent.

    Returns
    -------
    Path
        The page: no script, no external request, the same bytes for the same run directory.

    Raises
    ------
    ArtefactError
        If run.json is missing or damaged, or the page cannot be written.
    """
    run_dir = Path(run_dir)
    html = render(run_dir)
    target = run_dir / "report.html"
    # A lone surrogate in a survey's text must not cost the user the report.
    write_atomic(target, html.encode("utf-8", errors="replace"))
    return target


def render(run_dir: Path) -> str:
    """Return the page's HTML."""
    return environment().get_template("template.html.j2").render(page(read_run(run_dir)))


def environment() -> jinja2.Environment:
    """Return what the templates of this folder are rendered with."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters |= {
        "score": score, "signed": signed, "size": size, "duration": duration, "moment": moment,
        "setting": setting,
    }  # fmt: skip
    return found


def score(value: float | None, digits: int = 3) -> str:
    """Format a score; a dash stands for what was not measured."""
    return MISSING if value is None else f"{value:.{digits}f}"


def signed(value: float | None) -> str:
    """Format a difference with its sign (a true minus, not a hyphen)."""
    return MISSING if value is None else f"{value:+.3f}".replace("-", "−")


def size(count: float) -> str:
    """Format a number of bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def moment(value: object) -> str:
    """Format an ISO time to the minute; anything else as it is."""
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return str(value)


def setting(value: object) -> Markup:
    """Format a config value as it is written in TOML; long lists may wrap after a semicolon."""
    if value is None:
        return Markup(MISSING)
    text = str(value).lower() if isinstance(value, bool) else str(value) or '""'
    return Markup(";<wbr>").join(text.split(";"))
