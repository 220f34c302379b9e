"""Measures one reader of JSON lines in a process that imports nothing else; run by input_pipeline.py."""

from __future__ import annotations

import gc
import json
import os
import pickle
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measuring import Absent, Measurements, need
from trainer.data.reading.jsonl import read
from trainer.tasks import Task

CLASSES = ("can", "carton", "milk_bottle", "water_bottle")


def write_lines(path: Path, lines: int) -> None:
    """Write detection lines with one to five boxes, in the format of an export from Azure's labelling."""
    generator = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for index in range(lines):
            boxes = []
            for _ in range(generator.randint(1, 5)):
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


def parse(how: str, path: Path, directory: Path) -> Any:
    """Read a file's lines with one of the readers and return all results."""
    if how == "ours":
        result = read([path], Task.DETECTION, datastores={"store": str(directory)})
        assert not result.problems, "the file is valid"
        return result.records
    if how == "msgspec":
        import msgspec

        return [msgspec.json.decode(line) for line in path.open("rb")]
    if how == "orjson":
        need("orjson")
        import orjson

        return [orjson.loads(line) for line in path.open("rb")]
    return [json.loads(line) for line in path.open("rb")]


def compare_validation(path: str, rounds: int) -> Measurements:
    """Measure `validate` in turns with `json.loads` over the same lines, which checks and keeps nothing."""
    from trainer.data.validate import validate

    lines = Path(path).read_bytes().splitlines()
    datastores = {"store": "https://example.org"}  # images at a URL are not looked up

    def seconds(call: Callable[[], object]) -> tuple[float, float]:
        gc.collect()
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        return time.process_time() - cpu, time.perf_counter() - wall

    def parse_all() -> None:
        for line in lines:
            json.loads(line)

    taken = [
        (seconds(parse_all), seconds(lambda: validate(Task.DETECTION, [path], datastores=datastores)))
        for _ in range(rounds)
    ]
    return {
        "cpu_seconds": statistics.median(ours[0] for _, ours in taken),
        "cpu_ratio": statistics.median(ours[0] / peer[0] for peer, ours in taken),
        "wall_ratio": statistics.median(ours[1] / peer[1] for peer, ours in taken),
    }


def measure(how: str, path: str) -> Measurements:
    """Measure the CPU time and memory that reading takes in this process."""
    memory = psutil.Process().memory_info
    before, cpu = memory().rss, time.process_time()
    kept = parse(how, Path(path), Path(path).parent)
    seconds = time.process_time() - cpu
    measurements = {
        "cpu_seconds": seconds,
        "resident": float(memory().rss - before),
        "records": float(len(kept)),
    }
    if how == "ours":
        measurements["pickled"] = float(len(pickle.dumps(kept, protocol=5)))
    return measurements


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    try:
        if options.get("cores", 1) == 1 and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        if options["how"] == "validate":
            print(json.dumps(compare_validation(options["path"], 3)))
        else:
            print(json.dumps(measure(options["how"], options["path"])))
    except Absent as error:
        print(json.dumps({"absent": str(error)}))
