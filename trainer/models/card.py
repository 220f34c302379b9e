"""What is known about a model family, and about a model, without importing the model library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.models.weights.description import Description

SIZE_LETTERS = {"small": "s", "medium": "m", "large": "l", "extra_large": "x"}
"""By value of model_size: what it adds to the library's name of a network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """How the modern recipe's batch and epochs follow from the number of training images.

    Attributes:
        steps_per_epoch: the model's batch comes down, in powers of two, until an epoch has this many steps.
        min_batch: the smallest batch that this leads to.
        min_steps: a run gets more epochs than usual until it has this many steps.
        max_epochs: the most epochs that this leads to.
    """

    steps_per_epoch: int
    min_batch: int
    min_steps: int
    max_epochs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyCard:
    """All facts about one model family.

    Help, checks, listings, AutoMode and the conformance tests derive from it.

    Attributes:
        name: the family's name, which `Spec.family` keeps.
        module: dotted path of the module that holds the family's class as FAMILY.
        words: what help texts and docs call its models, in the plural.

        library: the model library: its import name, which is also the name of its distribution.
        licence: of the library's code, as an SPDX identifier.
        weights_licence: of published weights whose publisher states none for them alone.
        pickled_weights: published files are pickles of whole networks, which can run code when read.
        published_classes: number of classes that published weights were trained on.
        extra: the extra of this project that installs the library; "" if it is always installed.
        library_prefix: with this prefix, a user can name any model that the library knows; "" for none.
        described_by_files: (description) → the defaults that the files of a Hub model set; None for a family
            whose models have no such files.
        described_settings: the names of these settings.
        hub_tasks: the tasks for which any model of the Hub can be named; empty if none can.
        backbones: the family whose library's models may be the backbone; "" if it cannot be replaced.
        option_modules: by option of a spec, the module that only networks with this option need.

        settings: the settings that apply to this family's models and not to every model.
        size_setting: the setting with the size of the images that the network sees, in pixels.
        defaults: settings in which the family differs from the general defaults.
        modern: settings in which the modern recipe differs from these defaults; empty if it is the same.
        usual_recipe: the recipe of fine-tuning by flags or from Python that names none. In job files it is
            reference.
        sizing: how the modern recipe adapts to the number of training images; None if it does not.

        epochs: epochs under AutoMode, of a family whose recipe has no `sizing`.
        searched_sides: values of `size_setting` among which AutoMode chooses; empty if it keeps the default.
        preload: sweeps import the module before they fork trials; only for a library that every trial needs.

        smallest_models: the smallest model of each architecture, which the conformance tests train.
        tiny_settings: settings with which these models learn four images in seconds on a CPU.
        tiny_options: options of the spec that tests make smaller, where a model has them.
        tiny_learning_rate: the learning rate of these tests.
    """

    name: str
    module: str
    words: str

    library: str
    licence: str
    weights_licence: str
    published_classes: int
    pickled_weights: bool = False
    extra: str = ""
    library_prefix: str = ""
    described_by_files: Callable[[Description], Mapping[str, Any]] | None = None
    hub_tasks: tuple[Task, ...] = ()
    described_settings: tuple[str, ...] = ()
    backbones: str = ""
    option_modules: Mapping[str, str] = field(default_factory=dict)

    settings: tuple[str, ...]
    size_setting: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    modern: Mapping[str, Any] = field(default_factory=dict)
    usual_recipe: Literal["reference", "modern"] = "reference"
    sizing: Sizing | None = None

    epochs: int | None = None
    searched_sides: tuple[int, ...] = ()
    preload: bool = False

    smallest_models: tuple[str, ...]
    tiny_settings: Mapping[str, Any] = field(default_factory=dict)
    tiny_options: Mapping[str, Any] = field(default_factory=dict)
    tiny_learning_rate: float = 1e-3


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model as users name it.

    Attributes:
        card: the card of its family.
        tasks: the tasks that it can be trained for.
        library_name: what the family's library calls it; for a model of the Hub, ORG/NAME or
            ORG/NAME@REVISION.
        published: the data that its published weights were trained on, in words.
        defaults: by task, settings in which it differs from its family's defaults.
        modern: by task, settings in which its modern recipe differs from its family's.
        settings: settings that apply to this model and not to all of its family.
        equal_crops: training images must have the size of validation images.
    """

    name: str
    card: FamilyCard
    tasks: tuple[Task, ...]
    library_name: str
    published: str
    defaults: Mapping[Task, Mapping[str, Any]] = field(default_factory=dict)
    modern: Mapping[Task, Mapping[str, Any]] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    equal_crops: bool = False

    @property
    def family(self) -> str:
        """The name of its family."""
        return self.card.name

    def defaults_for(self, task: Task) -> dict[str, Any]:
        """The settings in which the model differs from the general defaults."""
        return {**self.card.defaults, **self.defaults.get(task, {})}

    def modern_for(self, task: Task) -> dict[str, Any]:
        """The settings of the modern recipe that differ from `defaults_for`; empty if there is none."""
        return {**self.card.modern, **self.modern.get(task, {})}
