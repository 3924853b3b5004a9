from functools import partial

import pytest
import torch
from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, NaturalIdPartitioner
from hypothesis import given
from hypothesis import strategies as st

from fedfusion.tasks.partition import Iid, split
from fedfusion.types import FedfusionError

PARTITIONERS = {
    "iid": Iid(),
    "iid of flwr-datasets": IidPartitioner,
    "dirichlet": partial(DirichletPartitioner, partition_by="label", alpha=0.3, min_partition_size=0),
    "natural": partial(NaturalIdPartitioner, partition_by="writer"),
}


def table(labels, writers=None):
    return Dataset.from_dict({"label": labels, "writer": writers or [f"w{i % 5}" for i in range(len(labels))]})


@given(
    labels=st.lists(st.integers(0, 3), min_size=5, max_size=60),
    parts=st.integers(1, 5),
    kind=st.sampled_from(sorted(PARTITIONERS)),
    seed=st.integers(0, 3),
)
def test_a_partition_is_disjoint_and_complete_or_refused(labels, parts, kind, seed):
    try:
        shares = split(table(labels), "digits", parts, PARTITIONERS[kind], seed)
    except FedfusionError as error:
        assert kind == "dirichlet" and "suite.partitioner" in str(error)
    else:
        assert len(shares) == parts
        assert sorted(torch.cat(shares).tolist()) == list(range(len(labels)))


@given(rows=st.integers(1, 60), parts=st.integers(1, 12), seed=st.integers(0, 3))
def test_equal_shares_are_those_of_flwr_datasets_without_its_import(rows, parts, seed):
    given = [i % 3 for i in range(max(rows, parts))]
    ours = split({"label": given}, "digits", parts, Iid(), seed)
    theirs = split(table(given), "digits", parts, IidPartitioner, seed)
    assert [share.tolist() for share in ours] == [share.tolist() for share in theirs]


def test_columns_are_as_good_as_a_table():
    given = [i % 4 for i in range(200)]
    for kind in ("iid", "dirichlet"):
        ours, theirs = (split(t, "digits", 3, PARTITIONERS[kind], 1) for t in ({"label": given}, table(given)))
        assert [share.tolist() for share in ours] == [share.tolist() for share in theirs]


def test_the_seed_names_the_partition():
    rows = table([i % 4 for i in range(200)])
    for kind in ("iid", "dirichlet"):
        first, again, other = (split(rows, "digits", 2, PARTITIONERS[kind], seed) for seed in (0, 0, 1))
        assert first[0].tolist() == again[0].tolist() != other[0].tolist()
    sizes = {len(split(rows, "digits", 2, PARTITIONERS["dirichlet"], seed)[0]) for seed in range(4)}
    assert len(sizes) > 1


def test_a_partitioner_keeps_a_seed_of_its_own():
    fixed = partial(PARTITIONERS["dirichlet"], alpha=2.0, seed=3)
    rows = table([0] * 200)
    assert len({len(split(rows, "digits", 2, fixed, seed)[0]) for seed in range(4)}) == 1


def test_natural_ids_stay_together_and_are_dealt_to_the_clients_in_turn():
    rows = table([0] * 50)
    shares = split(rows, "digits", 2, PARTITIONERS["natural"], 0)
    held = [set(rows.select(share.tolist())["writer"]) for share in shares]
    assert held == [{"w0", "w2", "w4"}, {"w1", "w3"}]


@pytest.mark.parametrize(
    "rows, parts, partitioner, sentence",
    [
        (
            table([0] * 20),
            9,
            partial(DirichletPartitioner, partition_by="label", alpha=0.01, min_partition_size=0),
            "client 0 of task 'digits' is left without data",
        ),
        (table([0] * 9), 6, PARTITIONERS["natural"], "client 5 of task 'digits' is left without data"),
        (table([0] * 3), 4, Iid(), "client 3 of task 'digits' is left without data"),
        (table([0] * 3), 4, IidPartitioner, "client 3 of task 'digits' is left without data"),
        (
            table([0, 1] * 9),
            3,
            partial(DirichletPartitioner, partition_by="label", alpha=0.1, min_partition_size=9),
            "suite.partitioner: cannot divide the 18 rows of task 'digits' among 3 clients",
        ),
        (
            table([0] * 9),
            2,
            partial(NaturalIdPartitioner, partition_by="author"),
            "suite.partitioner.partition_by=author: the rows of task 'digits' have no such column",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(rows, parts, partitioner, sentence):
    with pytest.raises(FedfusionError, match=sentence):
        split(rows, "digits", parts, partitioner, 0)
