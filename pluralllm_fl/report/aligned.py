"""evaluation.html: one self-contained page about an examined policy."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from markupsafe import Markup

from pluralllm_fl.report import environment, figures

POLICY, DEBIASED = "policy", "base, debiased"


def render(result: Mapping[str, Any]) -> str:
    """Return the page's HTML.

    Parameters
    ----------
    result : mapping
        What `alignment.evaluate.evaluate` returned, with ``policy``, ``base``, ``method``,
        ``dataset`` and ``exam``: the content of evaluation.json.
    """
    cells = result["cells"]
    ends = [v for cell in cells for row in cell["rows"].values() for v in _ends(row)]
    scale = figures.padded(min(ends), max(ends))
    return (
        environment()
        .get_template("aligned.html.j2")
        .render(
            name=PurePath(str(result["policy"])).name,
            dataset=PurePath(str(result["dataset"])).name,
            result=result,
            exam=result["exam"],
            sentences=verdict(cells),
            axis=figures.track_axis(scale),
            cells=[(cell, _rows(cell, scale)) for cell in cells],
            groups=_groups([cell for cell in cells if cell["questions"] == "new"]),
        )
    )


def verdict(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say of new questions whether the policy is above uniform and above its debiased base."""
    found = []
    for cell in cells:
        row = cell["rows"].get(POLICY)
        if row is None or cell["questions"] != "new":
            continue
        parts = []
        for name, told in (("uniform", "uniform"), (DEBIASED, "the debiased base")):
            mean, ends = row["above"][name]["mean"], row["above"][name]["interval"]
            known = f" (95% interval {ends[0]:+.3f} to {ends[1]:+.3f})" if ends else ""
            parts.append(f"{mean:+.3f}{known} against {told}")
        text = (
            f"On new questions, {cell['side']} groups: alignment {row['alignment']:.3f}; "
            f"{' and '.join(parts)}."
        )
        found.append(text.replace("-0.", "−0."))
    return found


def _ends(row: Mapping[str, Any]) -> list[float]:
    return [row["alignment"], *(row["interval"] or ())]


def _rows(
    cell: Mapping[str, Any], scale: figures.Scale
) -> list[tuple[str, Mapping[str, Any], Markup]]:
    uniform = cell["rows"]["uniform"]["alignment"]
    return [
        (
            name,
            row,
            figures.track(
                scale, cell["side"], row["alignment"],
                interval=tuple(row["interval"]) if row["interval"] else None, origin=uniform,
            ),
        )
        for name, row in cell["rows"].items()
    ]  # fmt: skip


def _groups(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return every group's alignment by kind of answers, on new questions."""
    columns = [
        name
        for name in ("uniform", "base", DEBIASED, POLICY, "policy, no group named", "predictor")
        if cells and name in cells[0]["rows"]
    ]
    rows = [
        (group, cell["side"], [cell["rows"][name]["by_group"][group] for name in columns])
        for cell in cells
        for group in cell["groups"]
    ]
    return {"columns": columns, "rows": rows}
