"""Whether the library of a model is installed, and what to do if it is not.

Free of torch and of every model library, so that the checks of a job can ask before the data are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec

from trainer.errors import JobError, Problem
from trainer.models import catalog
from trainer.models.card import FamilyCard, ModelEntry
from trainer.tasks import Task

_MOST_ALTERNATIVES = 3


def is_installed(card: FamilyCard) -> bool:
    """Whether a family's library can be imported.

    A folder of that name in the working directory, such as a clone of its repository, does not count.
    """
    spec = find_spec(card.library)
    return spec is not None and spec.origin is not None


def install_command(card: FamilyCard) -> str:
    """The command that installs a family's library in the version that this project works with."""
    return f"pip install 'image-trainer[{card.extra}]'" if card.extra else f"pip install {card.library}"


def require_library(entry: ModelEntry, task: Task, where: str = "") -> None:
    """Reject a model whose library is not installed.

    Args:
        where: the job's file, for the error.

    Raises:
        JobError: the library is not installed.
    """
    if not is_installed(entry.card):
        problem = missing_library(entry.card, [entry.name], task, where)
        raise JobError("the model cannot be used", [problem])


def missing_library(
    card: FamilyCard, models: Sequence[str], task: Task, where: str = "", field: str = "model_name"
) -> Problem:
    """The problem of models whose library is not installed: how to install it, and what to take instead.

    Args:
        models: names of models of one family, at least one.
    """
    rule = f"{' and '.join(models)} {'needs' if len(models) == 1 else 'need'} {card.library}"
    rule += ", which is not installed"
    if find_spec("trainer.models.published") is None:
        return Problem(where, field, rule, hint="pip install -r requirements.txt, the model's own")
    hint = install_command(card)
    if _is_copyleft(card):
        hint += f" installs it, under {card.licence}"
        if others := alternatives(models[0], task):
            hint += f"; near it under another licence: {_in_words(others)}"
    return Problem(where, field, rule, hint=hint)


def alternatives(model: str, task: Task) -> list[ModelEntry]:
    """The models nearest to a model whose licences do not require users to publish source code.

    First those under Apache-2.0, then the nearest one under another such licence. Nearest are models whose
    library is installed, then models of the same architecture, by name, then those of a similar size.
    """
    entries = [
        entry
        for entry in catalog.models_for(task)
        if not _is_copyleft(entry.card) and not _has_terms_of_its_own(entry)
    ]
    architecture, size = model.partition("-")[0], _parameters(model)

    def distance(entry: ModelEntry) -> tuple[bool, bool, float]:
        ratio = math.log(_parameters(entry.name) / size)
        return not is_installed(entry.card), not entry.name.startswith(architecture), abs(ratio)

    nearest = sorted(entries, key=distance)
    apache = [entry for entry in nearest if entry.card.licence == "Apache-2.0"]
    others = [entry for entry in nearest if entry.card.licence != "Apache-2.0"]
    return apache[:_MOST_ALTERNATIVES] + others[:1]


def _is_copyleft(card: FamilyCard) -> bool:
    return "GPL" in card.licence or "GPL" in card.weights_licence


def _has_terms_of_its_own(entry: ModelEntry) -> bool:
    """Whether a model's weights are under another licence than those of its family."""
    from trainer.models.published import published_models

    facts = published_models().get(entry.name)
    return facts is not None and facts.licence.lower() not in ("", entry.card.weights_licence.lower())


def _in_words(entries: Sequence[ModelEntry]) -> str:
    """Names by licence, with the command that installs them if they are not installed."""
    names: dict[str, list[str]] = {}
    for entry in entries:
        command = "" if is_installed(entry.card) else f", {install_command(entry.card)}"
        names.setdefault(f"({entry.card.licence}{command})", []).append(entry.name)
    return ", ".join(f"{', '.join(members)} {licence}" for licence, members in names.items())


def _parameters(model: str) -> int:
    """A model's number of parameters, that of its middle size if it has several; 1 if unknown."""
    # A packaged model carries this module, but not the table.
    from trainer.models.published import published_models

    counts = [facts.parameters for name, facts in published_models().items() if name.split(" ")[0] == model]
    return counts[(len(counts) - 1) // 2] if counts else 1
