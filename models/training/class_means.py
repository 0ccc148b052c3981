"""Drawing h's output to the class means of the new model, as far as that costs classes that have no mean nothing.

For galleries that are searched by class. What it is worth is judged on rows that nothing was learned from, of classes
that have means and of classes that were left out of everything: their means are not there, and the h that is judged
(the probe) has not seen them.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.metrics import query_metrics
from models.statistics import paired_bootstrap
from models.training.features import PairedFeatures
from models.transformation import ClassMeans, Transformation

LEFT_OUT = 0.2  # of the classes
_FEWEST_CLASSES = 5
# In units of the mean squared distance of a target from its class's mean.
_TEMPERATURES = (0.11, 0.22, 0.45)
_NONE_DISTANCES = (0.5, 0.8, 1e6)
_SHARES = (0.2, 0.4, 0.6, 0.8)
_Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """temperature and none_distance in units of the classes' scatter; with share 0, class means are not used."""

    temperature: float
    none_distance: float
    share: float


NOT_USED = Setting(1.0, 1e6, 0.0)


def classes_to_leave_out(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return a fifth of the classes, two at least, by chance; none where there are fewer than five."""
    classes: Tensor = torch.unique(labels)
    count = max(2, int(LEFT_OUT * len(classes))) if len(classes) >= _FEWEST_CLASSES else 0
    return classes[torch.randperm(len(classes), generator=generator)[:count].to(classes.device)]


def choose_setting(
    probe: Transformation, learned: PairedFeatures, held_out: PairedFeatures, left_out: Tensor
) -> Setting:
    """Return the setting with the best CMC@1 + mAP of new/h over all held-out rows, of those that lower no metric for
    queries of the classes that were left out; `NOT_USED` where none is better by more than chance, and where the
    held-out rows cannot tell: no two of them are of one class that was left out.

    `probe` has learned from none of those classes.
    """
    assert learned.labels is not None
    assert held_out.labels is not None
    unknown = torch.isin(held_out.labels, left_out)
    _, rows_of_class = torch.unique(held_out.labels[unknown], return_counts=True)
    if not bool((rows_of_class > 1).any()):
        return NOT_USED

    known = learned.take(torch.nonzero(~torch.isin(learned.labels, left_out)).flatten().cpu())
    drawing, scatter = class_means(known)
    with torch.inference_mode():
        estimate = probe.eval()(held_out.embedding, held_out.side_information)
    if scatter == 0 or not bool(estimate.isfinite().all()):
        return NOT_USED

    return _best_setting(drawing, scatter, estimate, held_out, unknown.cpu().numpy())


def _best_setting(
    drawing: ClassMeans, scatter: float, estimate: Tensor, held_out: PairedFeatures, unknown: NDArray[np.bool_]
) -> Setting:
    """Try every setting on the probe's estimate, (Q, D); unknown: (Q,) which rows are of classes that have no mean."""
    assert held_out.labels is not None
    labels, query = held_out.labels.cpu().numpy(), held_out.target.cpu().numpy()

    def scores(setting: Setting) -> _Scores:
        """(3, Q): hits at 1 and at 5, and average precisions."""
        apply_setting(drawing, setting, scatter)
        with torch.inference_mode():
            moved = drawing(estimate).cpu().numpy()
        found = query_metrics(query, labels, moved, labels, self_match=True, device=estimate.device.type)
        hits = [np.where(np.isnan(found.average_precisions), np.nan, found.first_match_ranks < k) for k in (1, 5)]
        return np.stack([*hits, found.average_precisions])

    plain, best, best_scores = scores(NOT_USED), NOT_USED, None
    for values in product(_TEMPERATURES, _NONE_DISTANCES, _SHARES):
        found = scores(Setting(*values))
        harms = bool((np.nanmean((found - plain)[:, unknown], axis=1) < 0).any())
        if not harms and (best_scores is None or _worth(found) > _worth(best_scores)):
            best, best_scores = Setting(*values), found

    if best_scores is None or paired_bootstrap(_of_a_query(plain), _of_a_query(best_scores), resamples=1_000).low <= 0:
        return NOT_USED
    return best


def class_means(learned: PairedFeatures) -> tuple[ClassMeans, float]:
    """Return the means of the classes that there are, and the mean squared distance of a target from its class's."""
    assert learned.labels is not None
    target = learned.first_view().target
    _, class_of, counts = torch.unique(learned.labels, return_inverse=True, return_counts=True)  # (N,) and (C,)
    sums = target.new_zeros(len(counts), target.shape[1]).index_add_(0, class_of, target)
    means = sums / counts[:, None]  # (C, D)
    scatter = float((target - means[class_of]).square().sum(dim=1).mean())

    drawing = ClassMeans(*means.shape).to(target.device)
    drawing.means.copy_(means)
    return drawing, scatter


def apply_setting(drawing: ClassMeans, setting: Setting, scatter: float) -> None:
    drawing.temperature.fill_(setting.temperature * scatter)
    drawing.none_distance.fill_(setting.none_distance * scatter)
    drawing.share.fill_(setting.share)


def _of_a_query(scores: _Scores) -> _Scores:
    """(3, Q) -> (Q,) hits at 1 + average precisions."""
    found: _Scores = scores[0] + scores[2]
    return found


def _worth(scores: _Scores) -> float:
    return float(np.nanmean(_of_a_query(scores)))
