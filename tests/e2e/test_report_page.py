"""The report's page in a real browser: headless Chromium."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pluralllm_fl.report import write_report
from tests.report_run import SEEN, UNSEEN, numbered, write_run

Browser = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """Run Chromium on a page with further switches, in a profile of its own."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("chromium is not installed (Debian: apt install chromium)")

    def run(page: Path, *switches: str) -> subprocess.CompletedProcess[str]:
        command = [
            executable, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", *switches, page.as_uri(),
        ]  # fmt: skip
        return subprocess.run(
            command, check=True, capture_output=True, encoding="utf-8", timeout=90
        )

    return run


def page_requests(net_log: Path) -> set[str]:
    """Addresses that pages asked for over the network; the browser's own have no initiator."""
    events = json.loads(net_log.read_text())["events"]
    starts = [e["params"] for e in events if "initiator" in e.get("params", {})]
    return {p["url"] for p in starts if p["initiator"] != "not an origin" and "url" in p}


def read_pixels(screenshot: Path) -> np.ndarray:
    """Return a picture as (height, width, RGB) bytes."""
    return np.asarray(Image.open(screenshot).convert("RGB"))


def colours(screenshot: Path) -> int:
    return len(np.unique(read_pixels(screenshot).reshape(-1, 3), axis=0))


def brightness(screenshot: Path) -> float:
    return float(np.median(read_pixels(screenshot)) / 255)


def test_report_opens_offline_and_without_errors(browser: Browser, tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run"))
    net_log = tmp_path / "net.json"
    result = browser(page, "--dump-dom", f"--log-net-log={net_log}")
    headings = re.findall(r"<h2>(.*?)</h2>", result.stdout)
    assert headings == [
        "Learning curves", "Every group", "Fairness", "Does the predictor use its context?",
        "Predicted and true distributions", "Events worth knowing", "Configuration",
    ]  # fmt: skip
    assert all(f"<bdi>{group}</bdi>" in result.stdout for group in SEEN + UNSEEN)
    assert "CONSOLE" not in result.stderr
    assert page_requests(net_log) == set()


def test_the_checks_would_notice(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<img src="http://outside.invalid/x.png"><script>nonsense()</script>')
    net_log = tmp_path / "net.json"
    result = browser(page, "--dump-dom", f"--log-net-log={net_log}")
    assert "CONSOLE" in result.stderr
    assert page_requests(net_log) == {"http://outside.invalid/x.png"}


def test_report_is_drawn_in_both_themes(browser: Browser, tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run"))
    shots = {}
    for theme, scheme in (("dark", 0), ("light", 1)):
        shots[theme] = tmp_path / f"{theme}.png"
        settings = f"--blink-settings=preferredColorScheme={scheme}"
        browser(page, settings, "--window-size=1280,3000", f"--screenshot={shots[theme]}")
        assert colours(shots[theme]) > 50
    assert brightness(shots["dark"]) < 0.2 < 0.9 < brightness(shots["light"])


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("count", [14, 1000])
def test_nothing_overflows_sideways(
    browser: Browser, tmp_path: Path, width: int, count: int
) -> None:
    seen, unseen = numbered(count)
    long_name = "Extraordinarily-long-group-name-without-any-space-" * 3
    folder = tmp_path / "run"
    page = write_report(write_run(folder, seen=(long_name, *seen), unseen=unseen, rounds=12))
    # Headless windows are at least 500 px wide; a frame can be narrower.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe src="{page.as_uri()}" style="width:{width}px;height:800px;border:0" onload="'
        "document.title = 'wide ' + this.contentDocument.documentElement.scrollWidth\"></iframe>"
    )
    result = browser(frame, "--allow-file-access-from-files", "--dump-dom")
    widths = re.findall(r"<title>wide (\d+)</title>", result.stdout)
    assert len(widths) == 1
    assert int(widths[0]) <= width
