"""How fast a large detection file is validated on one core, and how much memory its records take.

    python benchmarks/validate_speed.py [--lines 1000000]

Goals for a million lines with three boxes each: 10 seconds, 1 GB resident.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from trainer.data.reading import read
from trainer.tasks import Task

SECONDS_GOAL = 10.0
BYTES_GOAL = 1_000_000_000
CLASSES = ("can", "carton", "milk_bottle", "water_bottle")


def write(path: Path, lines: int) -> None:
    generator = random.Random(0)
    with open(path, "w", encoding="utf-8") as stream:
        for index in range(lines):
            boxes = []
            for _ in range(3):
                x, y = generator.random() * 0.5, generator.random() * 0.5
                boxes.append(
                    f'{{"label": "{generator.choice(CLASSES)}", "topX": {x:.5f}, "topY": {y:.5f}, '
                    f'"bottomX": {x + 0.3:.5f}, "bottomY": {y + 0.2:.5f}, "isCrowd": 0}}'
                )
            stream.write(
                f'{{"image_url": "azureml://subscriptions/s/resourcegroups/g/workspaces/w/datastores/store/paths/'
                f'images/{index // 1000:04d}/{index:07d}.jpg", "image_details": {{"format": "jpg", '
                f'"width": "499px", "height": "666px"}}, "label": [{", ".join(boxes)}]}}\n'
            )


def resident() -> int:
    """Bytes of this process in memory now."""
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=int, default=1_000_000)
    lines = parser.parse_args().lines
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "train.jsonl"
        write(path, lines)
        print(f"file      {lines:,} lines, {path.stat().st_size / 1e6:,.0f} MB")
        begin, cpu_begin = time.perf_counter(), time.process_time()
        result = read([path], Task.DETECTION, datastores={"store": directory})
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu_begin
    assert len(result.records) == lines, "every line is a record"
    assert len(result.records.labels) == 3 * lines, "every box is kept"
    assert not result.problems, "the file is faultless"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"read      {seconds:.2f} s ({cpu:.2f} s of CPU), {lines / seconds:,.0f} lines/s on one core")
    print(f"resident  {resident() / 1e6:,.0f} MB after, {peak / 1e6:,.0f} MB at its peak, all told")
    size = len(pickle.dumps(result.records, protocol=5))
    print(f"records   {size / 1e6:,.0f} MB pickled, {size / lines:.0f} bytes a record")
    scale = max(1.0, lines / 1_000_000)
    met = seconds <= SECONDS_GOAL * scale and peak <= BYTES_GOAL * scale
    print("goals     met" if met else "goals     MISSED")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
