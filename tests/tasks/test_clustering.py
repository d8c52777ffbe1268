"""Clustering: what training sees of the labels, and the metrics against their definitions and scikit-learn."""

import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from dtp.tasks import NMI, Clustering, Purity


def test_clusters_are_trained_without_labels():
    y = torch.tensor([3, 1])
    task = Clustering(outputs=5, classes=4)
    assert not task.goal(torch.zeros(2, 1), y).any()
    assert torch.equal(task.goal(torch.zeros(2, 1), y, training=False), y)


def test_purity_and_mutual_information_are_those_of_their_definitions():
    output, y = torch.randn(200, 6), torch.randint(3, (200,))
    output[:, 0] += 2.0 * (y == 0)
    purity, nmi = Purity(6, 3), NMI(6, 3)
    for part in (slice(0, 90), slice(90, 200)):
        purity.update(output[part], y[part])
        nmi.update(output[part], y[part])
    clusters = output.argmax(1)
    most = sum(int(torch.bincount(y[clusters == k]).max()) for k in clusters.unique())
    assert float(purity.compute()) == pytest.approx(most / 200)
    assert float(nmi.compute()) == pytest.approx(normalized_mutual_info_score(y, clusters), abs=1e-6)


def test_one_cluster_tells_nothing():
    nmi = NMI(2, 3)
    nmi.update(torch.tensor([[1.0, 0.0]] * 6), torch.tensor([0, 1, 2, 0, 1, 2]))
    assert float(nmi.compute()) == pytest.approx(0.0, abs=1e-6)
