"""Optuna's own conformance suites, run on our samplers.

Grid and Sobol sampling are not among them: they need the whole search space when they are created, and the
suites' objectives make up parameters as they go. test_grid.py and test_samplers.py test them in studies.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)

from trainer.sweep.sampling import BayesianSampler, RandomSampler

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:Argument `multivariate`"),
]


class TestRandomSampler(BasicSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: RandomSampler(0)


class TestBayesianSampler(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: BayesianSampler(0, startup_trials=0, is_conditional=False)


class TestConditionalBayesianSampler(BasicSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: BayesianSampler(0, startup_trials=2, is_conditional=True)
