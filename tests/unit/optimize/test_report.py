"""A report says what the folders hold, no more than the runs allow, and fetches nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from codriver.core.artifact import Artifact, ArtifactFile, Measured, load_artifact, save_artifact, sha256_of
from codriver.core.errors import BadConfigValue, BadModelFile, DiskFull, MissingFile, SetupError
from codriver.optimize.allocate import Choice
from codriver.optimize.reports import report
from codriver.optimize.reports.report_data import SENSITIVITY, ReportData, gather
from codriver.optimize.search_records import Found, Record
from tests.unit.engines.gguf_files import write_gguf

VOID = {"meta", "br", "img", "input", "hr", "link"}


def made(folder: Path, size: float, kl: float, runs: int = 70) -> Path:
    """An artifact of a tiny file with a given size and KL on its card."""
    folder.mkdir()
    tensors = [("blk.0.attn_q.weight", (576, 2), 6, bytes(2 * 396)), ("n.weight", (576,), 0, bytes(2304))]
    file = write_gguf(folder / "model.gguf", {"general.architecture": "llama", "general.file_type": 15}, tensors)
    samples = tuple(100.0 + at for at in range(runs))
    card = (
        Measured("size", size, "bytes", 1),
        Measured("kl", kl, "nats/token", 255, 0.9 * kl, 1.1 * kl),
        Measured("ttft_ms@512", 100 + size / 1e6, "ms", runs, 100.0, 99.0 + runs, f"median of {runs}", samples),
        Measured("decode_tps", 20.0, "tokens/s", 5, 18.0, 22.0, "", (18.0, 19.0, 20.0, 21.0, 22.0)),
    )
    held = ArtifactFile("model.gguf", "gguf", file.stat().st_size, sha256_of(file))
    save_artifact(Artifact("A <model>", (held,), 5.5, "host", ("sha256:ab", "rounded"), "Apache-2.0", card), folder)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    found = [
        made(tmp_path / name, size, kl) for name, size, kl in (("a", 60e6, 0.3), ("b", 80e6, 0.1), ("c", 90e6, 0.2))
    ]
    losses = {
        "blk.0.attn_q.weight": [Choice("Q4_0", 10, 0.02), Choice("Q8_0", 20, 0.001)],
        "blk.0.ffn_up.weight": [Choice("Q4_0", 10, 0.03)],
        "blk.10.ffn_up.weight": [Choice("Q4_0", 10, 0.01)],
        "token_embd.weight": [Choice("Q4_0", 10, 0.05)],
    }
    (found[0] / SENSITIVITY).write_bytes(msgspec.json.encode(losses))
    return found


class Page(HTMLParser):
    """Checks that what is opened is closed, and keeps what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [f"{tag} {key}={value}" for key, value in attrs if key in ("src", "href", "srcset", "data")]
        if tag in ("script", "link", "iframe"):
            self.fetched.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Nothing to close."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_fetches_nothing(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out" / "report.html"
    data = report.write(folders, out)
    html = out.read_text()
    page = Page()
    page.feed(html)
    assert page.open == [] and page.fetched == [] and "@import" not in html and "url(http" not in html
    assert '<html lang="en">' in html and "prefers-color-scheme: dark" in html
    assert "A &lt;model&gt;" in html and "<model>" not in html
    names = re.findall(r' id="([^"]+)"', html)
    assert len(names) == len(set(names)) == 1
    plots = re.findall(r"<svg .*?</svg>", html, re.S)
    assert len(plots) == 2 + 1 + 3, "two fronts, one sensitivity, the runs of each"
    for plot in plots:
        root = ElementTree.fromstring(plot)
        assert root.attrib["role"] == "img" and root.attrib["aria-label"]
        title = root.find("title")
        assert title is not None and title.text
    assert msgspec.json.decode(out.with_suffix(".json").read_bytes(), type=ReportData) == data


def test_the_front_is_what_nothing_beats(folders: list[Path]) -> None:
    data = gather(folders)
    assert [(front.x, front.y, front.best) for front in data.fronts] == [
        ("size", "kl", (0, 1)),
        ("ttft_ms@512", "kl", (0, 1)),
    ]
    html = report.page(data)
    assert "a (front)" in html and "b (front)" in html and "c (front)" not in html


def test_sensitivity_is_summed_by_layer_in_order(folders: list[Path]) -> None:
    parts = gather(folders).artifacts[0].sensitivity
    assert [(part.layer, part.attention, part.rest) for part in parts] == [
        ("0", 0.02, 0.03), ("10", 0.0, 0.01), ("token_embd", 0.0, 0.05)
    ]  # fmt: skip
    assert gather(folders).artifacts[1].sensitivity == ()
    (folders[0] / SENSITIVITY).write_text("{")
    with pytest.raises(BadModelFile, match=r"sensitivities .*sensitivity\.json are not valid"):
        gather(folders)


def test_a_percentile_needs_its_runs(folders: list[Path]) -> None:
    first, tps = gather(folders).artifacts[0].latency
    assert first.n == 70 and first.low is not None
    # 64 runs allow a p90; p99 needs 662, p99.9 6,636.
    assert [(tail.share, tail.value is not None, tail.needed) for tail in first.tails] == [
        (0.5, True, 11), (0.9, True, 64), (0.99, False, 662), (0.999, False, 6636)
    ]  # fmt: skip
    assert tps.low is None and all(tail.value is None for tail in tps.tails)
    html = report.page(gather(folders))
    assert "needs 662 runs" in html and "needs 6,636 runs" in html and "5 runs are too few, 6 are needed" in html


def test_what_is_in_the_file_is_told(folders: list[Path]) -> None:
    size = gather(folders).artifacts[0].size
    assert size is not None and size.tensors["blk.0.attn_q.weight"] == "Q5_0"
    assert any("Q5_0 in place of Q4_K" in sentence for sentence in size.told)


def test_an_artifact_of_a_search_shows_its_trials(folders: list[Path], tmp_path: Path) -> None:
    card = list(load_artifact(folders[0]).card)
    kept = Record("none", "all", 0.1, "a", 60_000_000, 0.4, "measured", {"size": 60e6, "kl": 0.3, "ttft_ms@512": 160.0},
                  [0.0], [], [], card)  # fmt: skip
    better = msgspec.structs.replace(
        kept,
        key="b",
        recipe="awq",
        size_bytes=80_000_000,
        values={"size": 80e6, "kl": 0.1, "ttft_ms@512": 180.0},
        card=[],
    )
    guessed = msgspec.structs.replace(
        kept, key="c", state="expected", values={"size": 70e6, "kl": 0.9, "ttft_ms@512": 400.0}, card=[],
        predicted=["kl", "ttft_ms@512"],
    )  # fmt: skip
    nothing = msgspec.structs.replace(guessed, key="d", values={"size": 20e6}, expected_kl=99.0)
    found = Found(
        ["kl<=0.35", "ttft_ms<=200@512"], [kept, better, guessed, nothing], [kept, better],
        ["times and memory: predicted for <a board>"], {"kl": 0.35, "ttft_ms@512": 200.0},
    )  # fmt: skip
    (folders[0] / "search.json").write_bytes(msgspec.json.encode(found))
    data = report.write(folders[:2], tmp_path / "report.html")
    assert data.artifacts[0].search == found and data.artifacts[1].search is None
    html = (tmp_path / "report.html").read_text()
    page = Page()
    page.feed(html)
    assert page.open == [] and html.count("What the search tried") == 1
    assert "2 measured in full, 2 ruled out before it was written" in html and "predicted for &lt;a board&gt;" in html
    by_size, by_time = re.findall(r"<svg [^>]*aria-label=\"trials of a search.*?</svg>", html, re.S)
    for plot in (by_size, by_time):
        assert plot.count('class="open c0"') == 1 + 1, "what nothing fits has no place; one is the legend's"
        assert plot.count('class="front"/>') == 1 and plot.count(">kept</text>") == 1
    assert by_size.count(">required</text>") == 1 and by_time.count(">required</text>") == 2
    assert (
        "time to the first token of 512 tokens, predicted, ms" in by_time
        and "predicted" not in by_size.split("open")[0]
    )
    assert "400 ms predicted, 0.9 nats/token predicted" in by_time


def test_a_comparison_is_one_table_and_one_plot(folders: list[Path], tmp_path: Path) -> None:
    report.write_comparison(folders, tmp_path / "plot.svg")
    root = ElementTree.fromstring((tmp_path / "plot.svg").read_text())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    report.write_comparison(folders, tmp_path / "plot.html")
    html = (tmp_path / "plot.html").read_text()
    assert html.count("<svg ") == 1 and html.count("<table") == 1
    with pytest.raises(BadConfigValue, match=r"plot\.png must end in \.svg or \.html"):
        report.write_comparison(folders, tmp_path / "plot.png")


def test_what_cannot_be_read_or_written_says_so(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingFile, match=r"is no artifact: it has no artifact\.json"):
        gather([tmp_path / "nowhere"])
    with pytest.raises(BadConfigValue, match="A report needs an artifact at least"):
        gather([])
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(SetupError, match=r"The file .*report\.json cannot be written"):
        report.write(folders, tmp_path / "taken" / "report.html")

    def full(self: Path, *_: object, **__: object) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DiskFull, match=r"There is no room for .*full\.json; nothing of it was kept"):
        report.write(folders, tmp_path / "full.html")
    assert not list(tmp_path.glob("full*"))
