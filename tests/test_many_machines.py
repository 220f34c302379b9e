"""docs/many-machines.md: its commands, scripts and manifests are ones that the programs take."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.cli import app

DOCS = Path(__file__).parents[1] / "docs"
EXAMPLES = DOCS / "examples"


def parse(words: Sequence[str]) -> None:
    """The command is one that the program takes."""
    app.parse_args(list(words), print_error=False, exit_on_error=False)


def torchrun(words: Sequence[str]) -> Any:
    """torchrun's own reading of its options; the command after them is the program's."""
    from torch.distributed.run import get_args_parser

    options = get_args_parser().parse_args(list(words))
    assert (options.module, options.training_script) == (True, "trainer")
    parse(options.training_script_args)
    return options


def words_of(command: Sequence[str], folder: Path, **environment: str) -> list[str]:
    """What a script hands to trainer or torchrun."""
    for name in ("trainer", "torchrun"):
        (folder / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(
        command, env={"PATH": path, **environment}, capture_output=True, text=True, timeout=20, check=True
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def said_by(container: dict[str, Any], folder: Path) -> list[str]:
    """The words that a container's command hands to trainer or torchrun; /runs is a folder's."""
    command = [
        word.replace("/runs/", f"{folder}/") for word in [*container["command"], *container.get("args", [])]
    ]
    environment = {"JOB_COMPLETION_INDEX": "1", "STORAGE": "postgresql://user:word@host/name"}
    if command[0] == "trainer":
        return [word.replace("$(STORAGE)", environment["STORAGE"]) for word in command[1:]]
    return words_of(command, folder.parent, **environment)


def manifests(name: str) -> dict[str, dict[str, Any]]:
    found = list(yaml.safe_load_all((EXAMPLES / name).read_text("utf-8")))
    for manifest in found:
        if manifest["kind"] == "Job":
            assert manifest["apiVersion"] == "batch/v1"
            pod = manifest["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            mounted = {mount["name"] for mount in container["volumeMounts"]}
            assert mounted == {volume["name"] for volume in pod["volumes"]}
            assert pod["restartPolicy"] == "Never"
    return {f"{manifest['kind']} {manifest['metadata']['name']}": manifest for manifest in found}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Stands for /runs in a container."""
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def test_the_manifest_of_a_training_fits_torchrun_and_the_program(runs: Path) -> None:
    found = manifests("kubernetes-fit.yaml")
    service, fit = found["Service fit"], found["Job fit"]
    spec, pod = fit["spec"], fit["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert service["spec"]["selector"] == {"job-name": fit["metadata"]["name"]}
    assert service["spec"]["clusterIP"] == "None"
    assert pod["subdomain"] == service["metadata"]["name"]
    options = torchrun(said_by(container, runs))
    assert options.nnodes == str(spec["completions"]) == str(spec["parallelism"])
    assert (spec["completionMode"], options.node_rank) == ("Indexed", 1)
    assert options.nproc_per_node == str(container["resources"]["limits"]["nvidia.com/gpu"])
    assert options.master_addr == f"{fit['metadata']['name']}-0.{pod['subdomain']}"
    assert options.training_script_args[:2] == ["fit", "--config"]
    # Started again it resumes, and when it has finished it does nothing.
    (runs / "fridge").mkdir()
    (runs / "fridge" / "job.yaml").touch()
    again = torchrun(said_by(container, runs)).training_script_args
    assert again == ["fit", "--resume", str(runs / "fridge")]
    (runs / "fridge" / "result.json").touch()
    assert said_by(container, runs) == []


def test_the_manifests_of_a_sweep_fit_the_program(runs: Path) -> None:
    found = manifests("kubernetes-sweep.yaml")
    (sweep,) = found["Job sweep"]["spec"]["template"]["spec"]["containers"]
    (worker,) = found["Job workers"]["spec"]["template"]["spec"]["containers"]
    begun, joined = said_by(sweep, runs), said_by(worker, runs)
    parse(begun)
    parse(joined)
    assert joined[0] == "worker"
    for flag in ("--study", "--storage"):
        assert begun[begun.index(flag) + 1] == joined[joined.index(flag) + 1]
    assert "--output" not in joined  # it sees the sweep's own directory
    (runs / "fridge").mkdir()
    (runs / "fridge" / "job.yaml").touch()
    assert said_by(sweep, runs) == ["fit", "--resume", str(runs / "fridge")]


def test_the_script_of_slurms_workers_fits_the_program(tmp_path: Path) -> None:
    script = ["bash", str(EXAMPLES / "slurm-workers.sh"), "fridge"]
    words = words_of(script, tmp_path, STORAGE="postgresql://host/name")
    assert words[0] == "worker"
    parse(words)


def test_the_commands_of_the_page_are_ones_that_the_program_takes() -> None:
    page = (DOCS / "many-machines.md").read_text("utf-8").replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in page.splitlines() if line.startswith("    ")]
    assert len(lines) > 10
    for words in lines:
        while "=" in words[0]:  # a variable
            words.pop(0)
        if words[0] == "torchrun":
            torchrun(words[1:])
        else:
            assert words[0] == "trainer"
            parse(words[1:])
