"""The Python of the README runs as printed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def test_the_python_of_the_readme_runs_as_printed_and_federation_helps(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    alone, together = map(float, re.search(r"([\d.]+) -> ([\d.]+)", capsys.readouterr().out).groups())
    assert together > alone + 3
    assert (tmp_path / "runs" / "first" / "report.html").is_file()


@pytest.mark.parametrize("name", re.findall(r"\]\((?!https?:)([^)#]+)\)", README.read_text()))
def test_links_of_the_readme_lead_somewhere(name):
    assert (README.parent / name).exists()
