"""Values as text and out of JSON: durations for people, run configs for Flower."""

import json
import math
from collections.abc import Mapping
from typing import Any

from pluralllm_fl.config import Value

FEWEST_FOR_INTERVAL = 5  # resampling fewer values gives a range that looks far too certain


def duration(seconds: float) -> str:
    """Format seconds as e.g. ``4.2 s``, ``42 s``, ``7 min 12 s`` or ``2 h 01 min``."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def toml(values: Mapping[str, Value]) -> str:
    """Write plain keys and values as TOML: like JSON, but that DEL must be escaped."""
    text = (f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
    return "".join(text).replace("\x7f", "\\u007f")


def number(value: object) -> float | None:
    """Return a finite number out of JSON, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def mapping(value: object) -> Mapping[str, Any]:
    """Return an object out of JSON, else an empty one."""
    return value if isinstance(value, dict) else {}
