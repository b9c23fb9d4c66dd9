"""What the report of an ablation says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import pandas as pd

from histoweave.pl import ablation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TESTS = (
    "Intervals: 95 %, from resampling whole {groups} of the held-out predictions of all folds together, the same "
    "resamples for all arms, scores averaged over seeds. With fewer than about ten groups they are too narrow.\n\n"
    "p: differences per fold (seeds averaged), corrected resampled t-test of Nadeau and Bengio (2003), which allows "
    "for folds that share training rows; adjusted by Holm (1979) for the number of arms, models and nulls apart."
)


def ablation_sections(results: pd.DataFrame) -> tuple[list[tuple[str, Any]], dict[str, Any]]:
    """Return ``(sections, summary)`` for :func:`histoweave.report.write_report`."""
    scores, differences = _figure(results, "pooled"), _figure(results, "difference")
    metric, reference = str(results["metric"].iloc[0]), str(results["reference"].iloc[0])
    arms = results.drop_duplicates("arm").set_index("arm").sort_values(["kind", "pooled"], ascending=[True, False])
    groups = str(arms["groups"].iloc[0])
    summary = {
        "score": metric,
        "compared with": reference,
        "folds": results["fold"].nunique(),
        "seeds": results["seed"].nunique(),
        "resampled": groups,
        "leakage": results["leakage"].iloc[0] or "none found",
        "encoders saw the test sections' pixels or counts": bool(results["transductive"].any()),
    }
    per_fold = results.groupby(["arm", "fold"], sort=False)[metric].mean().unstack("fold").loc[arms.index]
    sections = [
        ("Arms", [scores, _arms(results, arms, metric)]),
        (f"Differences to {reference}", [differences, _differences(arms, reference), TESTS.format(groups=groups)]),
        ("Nulls", _nulls(arms)),
        ("Folds", ["What each fold could show. Regions that no training row has count as errors.", _folds(results)]),
        (f"{metric} by fold, mean over seeds", per_fold),
    ]
    return sections, summary


def _figure(results: pd.DataFrame, show: str) -> Figure:
    ax = ablation(results, show=show)
    plt.close(ax.figure)
    return ax.figure


def _arms(results: pd.DataFrame, arms: pd.DataFrame, metric: str) -> pd.DataFrame:
    by_arm = results.groupby("arm", sort=False)
    seeds = results.groupby(["arm", "seed"])[metric].mean().groupby("arm").std()
    names = ["balanced_accuracy", "accuracy", "roc_auc", "log_loss", "ece"]
    frame = arms[["kind", "pooled", "low", "high"]].assign(**{"mean over folds": by_arm[metric].mean()})
    return frame.assign(**{"sd over seeds": seeds}, **{n: by_arm[n].mean() for n in names if n in results})


def _differences(arms: pd.DataFrame, reference: str) -> pd.DataFrame:
    names = ["difference", "difference_low", "difference_high", "fold_difference", "p_value", "p_holm"]
    return arms.drop(reference)[names]


def _nulls(arms: pd.DataFrame) -> str:
    nulls, models = arms[arms["kind"] == "null"], arms[arms["kind"] == "model"]
    if nulls.empty:
        return "None were scored."
    best = nulls["pooled"].idxmax()
    above = models.index[models["low"] > nulls.loc[best, "high"]]
    return (
        f"The best null is {best}: {nulls.loc[best, 'pooled']:.3f} ({nulls.loc[best, 'low']:.3f} to "
        f"{nulls.loc[best, 'high']:.3f}). Models whose whole interval lies above its interval: "
        f"{', '.join(above) or 'none'}."
    )


def _folds(results: pd.DataFrame) -> pd.DataFrame:
    reference = results[results["arm"] == results["reference"]].drop_duplicates("fold").set_index("fold")
    tested = reference["n"] + reference["n_not_predicted"]
    names = {"unseen_classes": "regions without training rows", "absent_classes": "regions without test rows"}
    frame = reference[["n_train", "transductive", *names]].rename(columns=names)
    frame.insert(1, "n_test", tested.astype(int))
    return frame.assign(**{name: frame[name].where(frame[name] != "", None) for name in names.values()})
