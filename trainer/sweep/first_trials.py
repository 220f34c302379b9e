"""The trials that a sweep starts with, before its sampler proposes any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trainer import strict_yaml
from trainer.files import write_atomically
from trainer.sweep import attempts
from trainer.sweep.space.distributions import Choice
from trainer.sweep.space.search_space import REPLACED, SUB_SPACE, SearchSpace

if TYPE_CHECKING:
    from optuna import Study

FILE = "search_space.yaml"
"""The file in the run's directory that holds the first trials, the search space, and the reasons for both."""

_INDEX = "first_trial"
"""The user attribute of a queued trial that holds its index among the first trials."""


@dataclass(frozen=True)
class FirstTrials:
    """Trials chosen by AutoMode, which run before those of the sampler.

    Attributes:
        settings: for each trial, the index of its sub-space as "sub_space", a value for each parameter that
            is searched in that sub-space, and values that replace those that are fixed there.
        reasons: what the choice is based on, a sentence each.
    """

    settings: tuple[dict[str, Any], ...] = ()
    reasons: tuple[str, ...] = ()

    def write(self, directory: Path, search_space: Sequence[Mapping[str, Any]]) -> None:
        """Write FILE to a run's directory, from which `read` takes it when the sweep is resumed."""
        content = {
            "reasons": list(self.reasons),
            "first_trials": list(self.settings),
            "search_space": list(search_space),
        }
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
        write_atomically(directory / FILE, text)

    @classmethod
    def read(cls, directory: Path) -> FirstTrials:
        """The first trials of a run; none if the run's job names its own search space."""
        try:
            content = strict_yaml.load((directory / FILE).read_bytes(), str(directory / FILE))
        except FileNotFoundError:
            return cls()
        return cls(tuple(content["first_trials"]), tuple(content["reasons"]))

    def enqueue_missing(self, study: Study, space: SearchSpace, max_trials: int) -> None:
        """Queue the first trials that the study does not have yet, up to `max_trials` trials in all."""
        trials = study.get_trials(deepcopy=False)
        queued = {trial.user_attrs.get(_INDEX) for trial in trials}
        missing = [index for index in range(len(self.settings)) if index not in queued]
        free = max(0, max_trials - sum(map(attempts.is_first_attempt, trials)))
        for index in missing[:free]:
            settings = self.settings[index]
            attributes = {_INDEX: index, REPLACED: replaced_values(space, settings)}
            study.enqueue_trial(optuna_parameters(space, settings), user_attrs=attributes)


def replaced_values(space: SearchSpace, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a first trial that replace fixed values of its sub-space."""
    searched = space.sub_spaces[settings[SUB_SPACE]].distributions
    return {name: value for name, value in settings.items() if name != SUB_SPACE and name not in searched}


def optuna_parameters(space: SearchSpace, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a first trial under the names, and with the choices, that the study uses."""
    index = settings[SUB_SPACE]
    parameters: dict[str, Any] = {SUB_SPACE: index} if len(space.sub_spaces) > 1 else {}
    for name, distribution in space.sub_spaces[index].distributions.items():
        value = settings[name]
        if isinstance(distribution, Choice):
            value = distribution.options[distribution.values.index(value)]
        parameters[space.prefix(index) + name] = value
    return parameters
