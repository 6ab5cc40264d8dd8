"""Self-contained HTML pages: pictures, videos and tables inside one file that can be mailed."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from armworld.evaluation.files import plain, write_text

EMBED_BYTES = 24_000_000  # videos beyond this in all are linked, not embedded: browsers get slow

STYLE = """
:root{--ink:#1b1f24;--muted:#6b7280;--line:#e5e7eb;--paper:#fff;--soft:#f8fafc;--good:#15803d;--bad:#b91c1c}
*{box-sizing:border-box}body{margin:0;color:var(--ink);background:var(--paper);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}h1{font-size:26px;margin:0 0 4px}
h2{font-size:18px;margin:34px 0 10px}p.lead{color:var(--muted);margin:0 0 18px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
.scroll{overflow-x:auto}th,td{padding:7px 10px;border-bottom:1px solid var(--line);text-align:left;white-space:nowrap}
th{color:var(--muted);font-weight:600}td.n,th.n{text-align:right}tr.first td{font-weight:600;background:var(--soft)}
img{max-width:100%;height:auto}.films{display:grid;grid-template-columns:repeat(auto-fill,minmax(340px,1fr));gap:16px}
figure{margin:0}video{width:100%;border:1px solid var(--line);border-radius:6px}
figcaption{font-size:13px;color:var(--muted)}.good{color:var(--good)}.bad{color:var(--bad)}
pre{background:var(--soft);padding:12px;overflow:auto;font-size:12.5px;border-radius:6px}
details{margin-top:10px}summary{cursor:pointer;color:var(--muted)}
"""


class Page:
    """Builds a page part by part; every text is escaped."""

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self._parts = [f"<h1>{html.escape(title)}</h1>"]
        if lead:
            self._parts.append(f'<p class="lead">{html.escape(lead)}</p>')
        self._embedded = 0

    def heading(self, text: str) -> Page:
        """A section's heading."""
        self._parts.append(f"<h2>{html.escape(text)}</h2>")
        return self

    def text(self, text: str) -> Page:
        """A paragraph."""
        self._parts.append(f"<p>{html.escape(text)}</p>")
        return self

    def raw(self, markup: str) -> Page:
        """Markup of the caller's own; its texts must be escaped already."""
        self._parts.append(markup)
        return self

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]], first: bool = False) -> Page:
        """A table; columns of numbers (or numbers with units) are set right. `first` marks the first row."""
        texts = [[str(cell) for cell in row] for row in rows]
        right = [bool(texts) and all(_is_number(row[i]) for row in texts) for i in range(len(head))]
        kind = ['class="n"' if number else "" for number in right]
        heads = "".join(f"<th {k}>{html.escape(h)}</th>" for k, h in zip(kind, head, strict=True))
        body = "".join(
            f"<tr{' class=first' if first and index == 0 else ''}>"
            + "".join(f"<td {k}>{html.escape(cell)}</td>" for k, cell in zip(kind, row, strict=True))
            + "</tr>"
            for index, row in enumerate(texts)
        )
        self._parts.append(f'<div class="scroll"><table><tr>{heads}</tr>{body}</table></div>')
        return self

    def picture(self, png: bytes, alt: str) -> Page:
        """An embedded PNG."""
        self._parts.append(f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{_b64(png)}">')
        return self

    def videos(self, films: Sequence[tuple[Path, str, bool]], base: Path) -> Page:
        """MP4s as (file, caption, good): embedded while they are small, else linked relative to `base`."""
        cells = []
        for path, caption, good in films:
            size = path.stat().st_size
            if self._embedded + size <= EMBED_BYTES:
                self._embedded += size
                source = f"data:video/mp4;base64,{_b64(path.read_bytes())}"
            else:
                source = html.escape(relative_link(path, base), quote=True)
            tone = "good" if good else "bad"
            cells.append(
                f'<figure><video controls muted loop playsinline preload="metadata" src="{source}"></video>'
                f'<figcaption class="{tone}">{html.escape(caption)}</figcaption></figure>'
            )
        self._parts.append(f'<div class="films">{"".join(cells)}</div>')
        return self

    def details(self, title: str, value: Any) -> Page:
        """JSON folded away under a title."""
        text = html.escape(json.dumps(plain(value), indent=1))
        self._parts.append(f"<details><summary>{html.escape(title)}</summary><pre>{text}</pre></details>")
        return self

    def html(self) -> str:
        """The whole page."""
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{STYLE}</style></head>"
            f"<body><main>{''.join(self._parts)}</main></body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the page atomically."""
        write_text(path, self.html())


def provenance(page: Page, record: Mapping[str, Any]) -> None:
    """Append what a reader needs to repeat the run: commits, versions, configuration."""
    page.heading("How it was made")
    page.table(["what", "value"], [["commit", told_commits(record)], *record["versions"].items()])
    page.details("Configuration", record["config"])


def told_commits(record: Mapping[str, Any]) -> str:
    """The commit of a record, and those of its episodes where they were run at others (`records.origin`)."""
    if record.get("commits", [record["commit"]]) == [record["commit"]]:
        return record["commit"]
    return f"{record['commit']}; its episodes were run at {', '.join(record['commits']) or 'none'}"


def relative_link(path: Path, base: Path) -> str:
    """A link from a page in the folder `base` to a file."""
    return Path(os.path.relpath(path, base)).as_posix()


def _b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


_NUMBER = re.compile(r"–|[-+−<]?\d[\d.,]*(e[-+]?\d+)?([ /–]*[\d.,]+)?( ?(%|cm|mm|ms|s|m))?")


def _is_number(text: str) -> bool:
    """A number, a fraction or a range, with or without a unit."""
    return _NUMBER.fullmatch(text) is not None
