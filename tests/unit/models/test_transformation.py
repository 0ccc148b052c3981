"""h and g, against what their layers say, and BatchNorm folded against not."""

import copy
import math

import pytest
import torch
from torch import nn

from models.transformation import ClassMeans, ConvBlock, Transformation, fold_batch_norm
from tests.networks import transformation


def test_a_transformation_has_the_layers_of_the_paper() -> None:
    network = Transformation(128, 128, 128)

    shapes = [tuple(module.weight.shape) for module in network.modules() if isinstance(module, nn.Linear)]
    biases = [module.bias is not None for module in network.modules() if isinstance(module, nn.Linear)]

    branch = [(256, 128), (256, 256)]
    assert shapes == [*branch, *branch, (2048, 512), (2048, 2048), (128, 2048)]
    assert biases == [False] * 6 + [True]
    # docs/scale.md, Worked out: 5.7 million multiplications in all; 196,608 of them are the branches'.
    assert sum(rows * columns for rows, columns in shapes[:4]) == 196_608
    assert sum(rows * columns for rows, columns in shapes) == 5_701_632


@pytest.mark.parametrize(("from_dim", "side_dim", "to_dim"), [(6, 4, 10), (4, 4, 4), (1, 3, 2)])
def test_a_transformation_computes_what_its_layers_say(from_dim: int, side_dim: int, to_dim: int) -> None:
    network = transformation(from_dim, side_dim, to_dim, seed=1)
    embedding, side_information = torch.randn(5, from_dim), torch.randn(5, side_dim)

    def block(layer: nn.Module, values: torch.Tensor) -> torch.Tensor:
        assert isinstance(layer, ConvBlock)
        linear, norm = layer[0], layer[1]
        assert isinstance(linear, nn.Linear)
        assert isinstance(norm, nn.BatchNorm1d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scaled = (values @ linear.weight.T - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps)
        return (scaled * norm.weight + norm.bias).clamp(min=0)

    (member,) = network.members
    old = block(member.old_branch[1], block(member.old_branch[0], embedding))
    side = block(member.side_branch[1], block(member.side_branch[0], side_information))
    mixed = block(member.mixer[1], block(member.mixer[0], torch.cat([old, side], dim=1)))
    last = member.mixer[2]
    assert isinstance(last, nn.Linear)

    assert torch.allclose(network(embedding, side_information), mixed @ last.weight.T + last.bias, rtol=1e-4, atol=1e-5)


def test_without_side_information_both_branches_get_the_embedding() -> None:
    network = transformation(6, None, 4, seed=2)
    twin = Transformation(6, 6, 4, inner_dim=16)
    twin.load_state_dict(network.state_dict())
    embedding = torch.randn(5, 6)

    assert torch.equal(network(embedding), twin.eval()(embedding, embedding))
    assert torch.equal(network(embedding, torch.randn(5, 3)), network(embedding))


@pytest.mark.parametrize("side_dim", [None, 5])
def test_folding_batch_norm_changes_no_output(side_dim: int | None) -> None:
    network = transformation(6, side_dim, 4, seed=3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    before = copy.deepcopy(network.state_dict())
    inputs = (torch.randn(32, 6), None if side_dim is None else torch.randn(32, side_dim))

    folded = fold_batch_norm(network)

    assert not any(isinstance(module, nn.BatchNorm1d) for module in folded.modules())
    assert torch.allclose(folded(*inputs), network(*inputs), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_items_are_drawn_to_classes_by_how_likely_each_is_and_not_where_none_is() -> None:
    generator = torch.Generator().manual_seed(0)
    estimate, means = torch.randn(20, 4, generator=generator), torch.randn(3, 4, generator=generator)
    estimate[0] = 100.0
    drawing = ClassMeans(3, 4)
    drawing.means.copy_(means)
    drawing.temperature.fill_(0.7)
    drawing.none_distance.fill_(2.5)
    drawing.share.fill_(0.4)

    found = drawing(estimate)

    for row, z in zip(found, estimate, strict=True):
        weights = [float(torch.exp(-((z - mean) ** 2).sum() / 0.7)) for mean in means]
        total = sum(weights) + math.exp(-2.5 / 0.7)
        moves = [weight / total * (mean - z) for weight, mean in zip(weights, means, strict=True)]
        assert torch.allclose(row, z + 0.4 * torch.stack(moves).sum(dim=0), atol=1e-5)
    assert torch.equal(found[0], estimate[0])


@pytest.mark.parametrize("classes", [None, 3])
def test_a_transformation_that_was_saved_with_one_unnumbered_member_is_read(classes: int | None) -> None:
    network = Transformation(6, 5, 4, inner_dim=8, classes=classes).eval()
    config = {name: value for name, value in network.config().items() if name not in ("members", "linear")}
    state = {name.removeprefix("members.0."): value for name, value in network.state_dict().items()}
    state.pop("class_means.none_distance", None)
    if classes is not None:
        state["class_means.means"].normal_()
        state["class_means.share"].fill_(0.5)
    inputs = torch.randn(10, 6), torch.randn(10, 5)
    expected = network(*inputs)

    read = Transformation(**config).eval()
    read.load_state_dict(state)

    assert torch.equal(read(*inputs), expected)
    if classes is not None:
        assert read.class_means is not None
        everywhere = read.class_means(1e6 * torch.ones(1, 4))
        assert bool((everywhere < 0.6e6).all())  # however far it is, an item is drawn


def test_the_linear_map_alone_is_the_floor_under_its_members() -> None:
    network = Transformation(6, 5, 4, inner_dim=8, non_negative=True, members=2, linear=True).eval()
    inputs = torch.randn(10, 6), torch.randn(10, 5)

    floor = network.linear_alone()

    assert floor is not None
    assert network.linear_map is not None
    assert torch.equal(floor(*inputs), network.linear_map(*inputs).relu())
    assert floor.config() == network.config() | {"members": None}
    assert Transformation(6, 5, 4).linear_alone() is None


@pytest.mark.parametrize("side_dim", [None, 5])
@pytest.mark.parametrize(("members", "linear"), [(1, False), (3, False), (2, True), (None, True)])
def test_the_error_head_reads_the_output_and_how_far_the_members_and_the_map_lie_apart(
    side_dim: int | None, members: int | None, linear: bool
) -> None:
    network = Transformation(6, side_dim, 4, inner_dim=8, members=members, linear=linear, error_head=True).eval()
    embedding, side = torch.randn(10, 6), None if side_dim is None else torch.randn(10, 5)
    assert network.error_head is not None

    output, expected = network.with_uncertainty(embedding, side)

    described = [output]
    if members is not None:
        estimates = network.estimates(embedding, side)
        mean = estimates.mean(dim=0)
        if members > 1:
            described.append((estimates - mean).square().sum(dim=2).mean(dim=0).log()[:, None])
        if network.linear_map is not None:
            described.append((mean - network.linear_map(embedding, side)).square().sum(dim=1).log()[:, None])
    weights = network.error_head.weights
    logarithm = torch.cat(described, dim=1) @ weights.weight[0] + weights.bias
    assert expected is not None
    torch.testing.assert_close(expected, logarithm.exp())
    assert torch.equal(output, network(embedding, side))


def test_without_a_head_no_error_is_expected_and_however_far_an_item_is_it_is_finite() -> None:
    assert Transformation(6, None, 4, inner_dim=8).eval().with_uncertainty(torch.randn(3, 6))[1] is None

    network = Transformation(6, None, 4, inner_dim=8, error_head=True).eval()
    _, expected = network.with_uncertainty(torch.tensor([[1e30], [-1e30]]).expand(2, 6))

    assert expected is not None
    assert bool(expected.isfinite().all())
