"""The pages for operators say of metrics and alerts what the code has, and nothing else."""

import json
import re
from pathlib import Path

from service.cli.metrics_page import metrics_table

OPERATIONS = Path(__file__).parents[3] / "docs" / "operations"
_TYPE_SUFFIXES = ("_bucket", "_sum", "_count")


def documented() -> dict[str, set[str]]:
    """Return the metrics of the page with their labels."""
    rows = re.findall(r"^\| `(\w+)` \| \w+ \| (.*?) \|", (OPERATIONS / "metrics.md").read_text(), re.MULTILINE)
    return {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}


def expressions() -> list[str]:
    """Return the expressions of all alerts and panels."""
    asked = re.findall(r"expr: (?:\|\n)?(.+)", (OPERATIONS / "alerts.yml").read_text())
    panels = json.loads((OPERATIONS / "dashboard.json").read_text())["panels"]
    return [*asked, *(target["expr"] for panel in panels for target in panel["targets"])]


def base(name: str) -> str:
    """Return the metric that a series of a histogram belongs to."""
    suffix = next((suffix for suffix in _TYPE_SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix)


def test_the_page_has_the_table_of_the_code() -> None:
    page = (OPERATIONS / "metrics.md").read_text()

    assert page.partition("| name |")[1:] == ("| name |", f"{metrics_table()}\n".removeprefix("| name |"))


def test_every_metric_and_label_that_an_alert_or_panel_asks_for_is_on_the_page() -> None:
    known, unknown = documented(), []
    for expression in expressions():
        for name, selector in re.findall(r"\b((?:gallery|http)_\w+)(?:\{(.*?)\}(?=[\[\s)]|$))?", expression):
            labels = set(re.findall(r"(\w+)=", selector)) - {"job"}
            if base(name) not in known or labels - known[base(name)]:
                unknown.append((name, labels))

    assert unknown == []


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    rules = (OPERATIONS / "alerts.yml").read_text().split("- alert: ")[1:]
    pages = {page.stem: page.read_text() for page in (OPERATIONS / "runbooks").glob("*.md")}

    assert {rule.splitlines()[0]: rule.strip().splitlines()[-1].strip() for rule in rules} == {
        name: f"runbook: runbooks/{name}.md" for name in pages
    }
    assert all(text.startswith(f"# {name}\n") for name, text in pages.items())
