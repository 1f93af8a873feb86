"""The page and the picture of what `benchmarks/serving` measured.

python benchmarks/serving/page.py results/serving.json        makes them anew
"""

import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from rlrc.files import write_text
from rlrc.png import save_png
from rlrc.progress import say
from rlrc.reading import read_json
from rlrc.report.charts import COLOURS
from rlrc.study.figures import STYLE


def write_page(result: dict[str, Any], out: Path) -> None:
    """Write a picture and a page beside the JSON `out`."""
    picture = out.with_suffix(".png")
    with mpl.rc_context(STYLE):
        save_png(draw(result), picture, dpi=150)
    write_text(out.with_suffix(".md"), text(result, picture.name))
    say(f"written: {out}, {picture.name} and {out.with_suffix('.md').name}")


def draw(result: dict[str, Any]) -> Figure:
    """Throughput beside plain batched acting, and the time that an answer takes, by number of clients."""
    load, plain, batch = result["load"], result["plain"], result["max_batch"]
    places = range(len(load))
    figure = Figure((8.5, 3.2), layout="constrained")
    rate, wait = figure.subplots(1, 2)
    rate.bar(places, [row["per_s"] for row in load], 0.6, color=COLOURS[0], label="through the server")
    for rows, colour in ((1, COLOURS[1]), (batch, COLOURS[2])):
        label = f"without a server, batches of {rows}"
        rate.axhline(plain[f"batch_{rows}_per_s"], color=colour, linestyle="--", linewidth=1, label=label)
    rate.set_ylabel("answers a second")
    for share, colour in ((50, COLOURS[0]), (90, COLOURS[1]), (99, COLOURS[2])):
        wait.plot(places, [row[f"p{share}_ms"] for row in load], "o-", color=colour, label=f"{share} % within")
    wait.set_yscale("log")
    wait.set_ylabel("time to an answer, ms")
    for axes in (rate, wait):
        axes.set_xticks(places, [str(row["clients"]) for row in load])
        axes.set_xlabel("clients")
        axes.grid(axis="x", visible=False)
        axes.legend(loc="upper left", fontsize=7)
    rate.set_ylim(0, 1.35 * plain[f"batch_{batch}_per_s"])
    return figure


def text(result: dict[str, Any], picture: str) -> str:
    """Return what was measured, as Markdown."""
    rows = [
        f"| {row['clients']} | {row['requests']} | {row['per_s']:.1f} | {row['p50_ms']:.1f} | {row['p90_ms']:.1f} | "
        f"{row['p99_ms']:.1f} | {row['wrong']} | {row['lost']} |"
        for row in result["load"]
    ]
    hostile, overhead, plain = result["hostile"], result["overhead"], result["plain"]
    batched = plain[f"batch_{result['max_batch']}_per_s"]
    cpu = re.sub(r"\s+", " ", str(result["machine"]["cpu"]))
    return "\n".join(
        [
            "# The server under load",
            "",
            f"`{result['policy']}` in float32 on {result['machine']['cores']} cores of {cpu}, clients on the same "
            f"machine, "
            f"batches of at most {result['max_batch']}. `python benchmarks/serving` writes this page.",
            "",
            f"![Throughput and latency by number of clients]({picture})",
            "",
            "| clients | requests | a second | p50 ms | p90 ms | p99 ms | wrong | lost |",
            "|--:|--:|--:|--:|--:|--:|--:|--:|",
            *rows,
            "",
            f"Plain batched acting without a server: {plain['batch_1_per_s']:.1f} observations a second one by one, "
            f"{batched:.1f} in batches of {result['max_batch']}.",
            "",
            f"One action of `checkpoints/tabletop-rlrc` takes {overhead['served_p50_ms']:.2f} ms through the server, "
            f"{overhead['direct_p50_ms']:.2f} ms without it (medians of {overhead['rounds']} rounds in turns): "
            f"{overhead['overhead_ms']:.2f} ms more.",
            "",
            f"{hostile['frames']} hostile frames of {len(hostile['kinds'])} kinds: {hostile['crashes']} crashes. "
            f"Memory: {hostile['memory_bytes']['before'] / 2**20:.0f} MiB before, "
            f"{hostile['memory_bytes']['after'] / 2**20:.0f} MiB after; open files {hostile['open_files']['before']} "
            f"before, {hostile['open_files']['after']} after. A good client asked meanwhile: {hostile['good_client']}.",
            "",
            f"SIGTERM under load: status {result['sigterm']['status']}, {result['sigterm']['answered']} requests "
            f"answered, {result['sigterm']['unanswered']} left without an answer.",
            "",
        ]
    )


if __name__ == "__main__":
    write_page(read_json(Path(sys.argv[1])), Path(sys.argv[1]))
