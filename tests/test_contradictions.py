import pytest
from refusals import refused

from fedfusion.config import resolve


@pytest.mark.parametrize(
    "arguments, sentences",
    [
        (["rouge_rows=4"], ["the labels of task 'upright-digit' are classes (set rouge_rows=0"]),
        (
            ["suite=lists", "model=gpt2_lists", "client.train_head=true", "client.ranks=[2]"]
            + ["model.num_virtual_tokens=4", "coupling=stacking"],
            ["client.train_head=true: the head", "client.ranks: virtual tokens", "coupling adds products to the base"],
        ),
        (["payload=frozen_a"], ["payload=frozen_a with model.freeze_a=false"]),
        (["payload=product", "coupling=average"], ["the server makes anew in each round have no mean"]),
        (["payload=product", "server_optimizer=fedadam"], ["anew in each round have no momentum"]),
        (["channel=aircomp", "guard=norm_clip"], ["channel=AirComp sums A and B, and the product of the sums is not"]),
        (
            ["channel=aircomp", "coupling=laplacian", "client.ranks=[4,8]", "guard=norm_clip"],
            ["coupling=Laplacian needs the upload of every single client", "but client.ranks=[4, 8] differ"],
        ),
        (
            ["channel=aircomp", "payload=product", "aggregator=krum", "preaggregator=nnm"],
            [
                f"{stage} needs the upload of every single client, but channel=AirComp yields only the sum"
                for stage in ("aggregator=Krum", "preaggregator=NNM", "guard=TaskAware")
            ]
            + ["preaggregator=NNM needs n >= 2f + 1 uploads: task 'upright-digit' has n=2, preaggregator.f=1"],
        ),
        (
            ["aggregator=krum"],
            [
                "aggregator=Krum needs n >= 2f + 3 uploads: task 'upright-digit' has n=2, aggregator.f=1 (lower it, or "
                "raise suite.clients_per_task)"
            ],
        ),
        (
            ["preaggregator=nnm", "preaggregator.f=8", "aggregate_within=federation"],
            ["preaggregator=NNM needs n >= 2f + 1 uploads: the federation has n=16, preaggregator.f=8"],
        ),
        (
            ["preaggregator=bucketing", "aggregator=krum", "suite.clients_per_task=8"],
            ["task 'upright-digit' has n=4 of 8 once Bucketing has merged them, aggregator.f=1"],
        ),
        (["suite.trusted=0"], ["guard=TaskAware judges uploads by labelled samples that no head was made of"]),
        (
            ["suite.trusted=0", "guard=norm_clip", "aggregator=fltrust"],
            ["aggregator=FLTrust judges uploads by labelled samples that no head was made of, and needs 2"],
        ),
        (
            ["attack=sign_flipping", "model.freeze_a=true", "payload=frozen_a"],
            ["attack.space=product: with model.freeze_a=true only B is sent"],
        ),
        (
            ["attack=sign_flipping", "suite=lists", "model=gpt2_lists", "model.num_virtual_tokens=4"],
            ["attack.space=product: virtual tokens have no product"],
        ),
    ],
)  # fmt: skip
def test_what_goes_together_with_something_else_only_is_said(arguments, sentences):
    refused(sentences, resolve, arguments)
