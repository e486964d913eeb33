"""Derive the link traces that the package ships from mahimahi's trace files.

Usage: ``python tools/derive_traces.py FOLDER [--out FOLDER]``, where FOLDER holds ``NAME.down`` and ``NAME.up`` as in
github.com/ravinet/mahimahi, folder ``traces``. Only the number of packets per 100 ms is kept: the files themselves
are not copied.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from codriver.bench import traces

SHIPPED = Path(__file__).resolve().parent.parent / "src" / "codriver" / "bench" / "data" / "traces"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, help="where NAME.down and NAME.up are")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="where NAME.json goes (default: the package)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for down in sorted(options.folder.glob("*.down")):
        trace = traces.from_mahimahi(down, down.with_suffix(".up"))
        (options.out / f"{trace.name}.json").write_text(traces.to_json(trace), encoding="utf-8")
        dark_s = sum(end - start for start, end in trace.outages())
        print(
            f"{trace.name}: {trace.duration_s:g} s, mean {trace.mean_kbps('down'):.0f} down / "
            f"{trace.mean_kbps('up'):.0f} up kbit/s, {len(trace.outages())} outages, {dark_s:.1f} s in all"
        )


if __name__ == "__main__":
    main()
