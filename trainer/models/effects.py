"""Which of a user's settings have an effect, given the chosen optimizer, schedule and stop."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from trainer.fields import enum_member
from trainer.settings import Settings, canonical, chosen_values, group_of, shown

_OF_SGD = ("momentum", "nesterov")
_READ_WITH: dict[str, tuple[str, tuple[object, ...]]] = {
    **dict.fromkeys(_OF_SGD, ("optimizer", ("sgd",))),
    **dict.fromkeys(("beta1", "beta2", "ams_gradient"), ("optimizer", ("adam", "adamw"))),
    **dict.fromkeys(("step_lr_gamma", "step_lr_step_size"), ("learning_rate_scheduler", ("step",))),
    **dict.fromkeys(
        ("warmup_cosine_lr_cycles", "warmup_cosine_lr_warmup_epochs"),
        ("learning_rate_scheduler", ("warmup_cosine",)),
    ),
    **dict.fromkeys(("early_stopping_patience", "early_stopping_delay"), ("early_stopping", (True,))),
}
"""Settings that have an effect only with certain values of another one: setting → the other, its values."""
_GROUPS_OF_EPOCHS = ("Optimizer", "Learning rate")
"""The groups of settings without effect on a run without epochs, which is a probe alone."""


def asks_for_sgd(values: Mapping[str, Any]) -> bool:
    """Whether a user's values name sgd, or settings of sgd and no optimizer.

    The modern recipe's learning rates are for adamw.
    """
    chosen = {canonical(name): value for name, value in chosen_values(values).items()}
    if "optimizer" in chosen:
        return str(enum_member(chosen["optimizer"])).lower() == "sgd"
    return any(name in chosen for name in _OF_SGD)


def without_effect(settings: Settings, chosen: Collection[str]) -> list[str]:
    """A sentence for each chosen setting that has no effect.

    Args:
        settings: the complete settings of the run.
        chosen: names of those that the user has chosen.
    """
    sentences = []
    for name in Settings.model_fields:
        if name not in chosen:
            continue
        other, values = _READ_WITH.get(name, ("", ()))
        if not settings.number_of_epochs and group_of(name) in _GROUPS_OF_EPOCHS:
            sentences.append(f"{name} has no effect with number_of_epochs 0, a probe alone")
        elif other and (present := getattr(settings, other)) not in values:
            needed = " or ".join(map(shown, values))
            sentences.append(f"{name} has no effect with {other} {shown(present)}, only with {needed}")
    return sentences
