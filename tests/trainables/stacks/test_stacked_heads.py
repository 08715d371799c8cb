"""Heads of a stack against ``nn.Linear``, torch's clipping and torch's AdamW, one by one."""

import pytest
import torch
from tailsweep.trainables.config.trial import StageConfig
from tailsweep.trainables.stacks.stacked_heads import StackedHeads
from torch import Tensor, nn

ROWS, WIDTH, CLASSES, STEPS = 5, 7, 3, 12
STAGES = [
    StageConfig(learning_rate=rate, weight_decay=decay, max_grad_norm=norm)
    for rate, decay, norm in ((1e-3, 0.0, 1.0), (0.1, 0.0, 0.01), (1e-2, 0.3, 1e6), (1e-30, 0.1, 1.0))
]


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(ROWS, WIDTH, generator=generator), torch.randint(CLASSES, (ROWS,), generator=generator))
        for _ in range(STEPS)
    ]


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(WIDTH, CLASSES)


def alone(stage: StageConfig) -> Tensor:
    head = layer()
    decayed = [{"params": [head.weight], "weight_decay": stage.weight_decay}, {"params": [head.bias]}]
    optimizer = torch.optim.AdamW(decayed, lr=stage.learning_rate, eps=1e-8, weight_decay=0.0, fused=True)
    for vectors, labels in batches():
        nn.functional.cross_entropy(head(vectors), labels).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(head.parameters(), stage.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.cat([head.weight, head.bias[:, None]], dim=1).detach()


def step(heads: StackedHeads, vectors: Tensor, labels: Tensor) -> None:
    vectors = torch.cat([vectors, torch.ones(ROWS, 1)], dim=1)
    logits = heads.logits(vectors)
    gradient = (logits.softmax(-1) - nn.functional.one_hot(labels, CLASSES)) / ROWS
    heads.update(vectors, gradient, torch.tensor([stage.learning_rate for stage in heads.stages]))


def test_each_head_is_trained_as_it_is_alone() -> None:
    heads = StackedHeads.from_layer(layer(), STAGES)
    for vectors, labels in batches():
        step(heads, vectors, labels)
    for place, stage in enumerate(STAGES):
        torch.testing.assert_close(heads.parameters[place], alone(stage), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("kept", [[0, 2], [3], []])
def test_heads_that_leave_and_a_restart_change_nothing_for_the_others(kept: list[int]) -> None:
    heads = StackedHeads.from_layer(layer(), STAGES)
    for number, (vectors, labels) in enumerate(batches()):
        if number == STEPS // 2:
            heads.keep(kept)
            heads = StackedHeads.from_state(heads.stages, heads.parameters, heads.state())
        step(heads, vectors, labels)
    assert len(heads) == len(kept)
    for place, before in enumerate(kept):
        torch.testing.assert_close(heads.parameters[place], alone(STAGES[before]), atol=2e-6, rtol=2e-6)
