"""How much each option of the search changed the validation accuracy.

Source: functional analysis of variance over a random forest, Hutter et al., "An Efficient Approach for Assessing
Hyperparameter Importance", ICML 2014; Optuna's `FanovaImportanceEvaluator`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from disk_kd.tuning.search import Search, optuna
from disk_kd.tuning.space import Dimension, text_of

_LEAST = 4
"""Settings below which nothing is said."""
METHOD = "method"
Importances = dict[str, dict[str, float]]
"""By method, and under "all methods" for the options that all have: the share of each option, which sum to 1."""
ALL = "all methods"


def importances(searches: Sequence[Search]) -> Importances:
    """The importance of the options, from the first run of each setting, which has the same length for all."""
    found = {search.candidate.name: _importance(search.candidate.space, _rows([search])) for search in searches}
    shared = [
        one for one in searches[0].candidate.space if all(one in search.candidate.space for search in searches[1:])
    ]
    names = Dimension(METHOD, choices=tuple(search.candidate.name for search in searches))
    found = {ALL: _importance([names, *shared], _rows(searches)), **found}
    return {name: shares for name, shares in found.items() if shares}


def _rows(searches: Sequence[Search]) -> list[tuple[Mapping[str, Any], float]]:
    """Settings with the accuracy of their first run."""
    return [
        ({**one.job.setting, METHOD: search.candidate.name}, top1)
        for search in searches
        for one in search.tried
        if (top1 := one.top1(search.lengths[0])) is not None
    ]


def _importance(space: Sequence[Dimension], rows: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, float]:
    if len(rows) < _LEAST or len({top1 for _, top1 in rows}) < 2:
        return {}
    library = optuna()
    study = library.create_study(direction="maximize")
    for setting, top1 in rows:
        values = {one.option: one.parameter(setting[one.option]) for one in space}
        distributions = {one.option: _distribution(library, one) for one in space}
        study.add_trial(library.trial.create_trial(params=values, distributions=distributions, value=top1))
    evaluator = library.importance.FanovaImportanceEvaluator(seed=0)
    shares = library.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in shares.items()}


def _distribution(library: Any, dimension: Dimension) -> Any:
    if dimension.choices:
        return library.distributions.CategoricalDistribution([text_of(value) for value in dimension.choices])
    kind = library.distributions.IntDistribution if dimension.whole else library.distributions.FloatDistribution
    low, high = dimension.extremes
    return kind(low, high, log=dimension.log)
