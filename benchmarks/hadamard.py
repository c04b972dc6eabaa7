"""The Hadamard head against a dense product with the same matrix and against a learned linear layer.

    python benchmarks/hadamard.py [--width 2048] [--classes 14951] [--rounds 7]

Each round runs every contender once, so that a busy machine is busy for all of them. Printed: what a head keeps in
memory; the median processor time of one thread for the logits, and for logits and gradients; and the ratio to the dense
product. Before that, the transform's logits have to equal the dense product's.
"""

from __future__ import annotations

import argparse
import math
import os
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.heads import HadamardHead, Head, walsh_hadamard
from zoo.recipe import HeadConfig

BATCHES = (32, 256)
TOLERANCE = 1e-3  # of logits in -16..16 in fp32
PEER = "dense product"


class DenseHadamardHead(nn.Module):
    """The same logits with the matrix stored."""

    def __init__(self, head: HadamardHead) -> None:
        super().__init__()
        part = torch.zeros(len(head.columns), head.order)
        part[torch.arange(len(part)), head.columns] = 1 / math.sqrt(len(part))
        self.register_buffer("matrix", walsh_hadamard(part)[:, head.rows].T.contiguous())  # [C, D]
        self.scale, self.bias = head.scale, head.bias

    def forward(self, embedding: Tensor) -> Tensor:
        """[B, D] -> logits [B, C]."""
        return self.scale * functional.linear(functional.normalize(embedding, dim=1), self.matrix) + self.bias


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048, help="D; ResNet-50's")
    parser.add_argument("--classes", type=int, default=14_951, help="L; the challenge's landmarks")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    hadamard = HadamardHead(options.width, options.classes, HeadConfig())
    linear = Head(options.width, options.classes, HeadConfig())
    heads = {PEER: DenseHadamardHead(hadamard), "fast transform": hadamard, "learned linear layer": linear}
    check_equality(heads["fast transform"], heads[PEER], options.width)
    for name, head in heads.items():
        parameters = sum(parameter.numel() for parameter in head.parameters())
        print(f"{name:22} {parameters:12,} parameters {kept_bytes(head) / 2**20:9.2f} MiB kept")
    for batch in BATCHES:
        compare(heads, torch.randn(batch, options.width), options.rounds)


def check_equality(head: nn.Module, reference: nn.Module, width: int) -> None:
    """Stop when two heads differ."""
    embedding = torch.randn(8, width)
    with torch.inference_mode():
        difference = float((head(embedding) - reference(embedding)).abs().max())
    print(f"largest difference of logits {difference:.1e}")
    if difference > TOLERANCE:
        raise SystemExit("the transform and the dense product disagree")


def kept_bytes(head: nn.Module) -> int:
    """Bytes of a head's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in head.state_dict().values())


def compare(heads: dict[str, nn.Module], embedding: Tensor, rounds: int) -> None:
    """Time every head on a batch, and print."""
    forward: dict[str, list[float]] = {name: [] for name in heads}
    step: dict[str, list[float]] = {name: [] for name in heads}
    load_before = os.getloadavg()[0]
    for _ in range(rounds):
        for name, head in heads.items():
            forward[name].append(time_logits(head, embedding))
            step[name].append(time_step(head, embedding))
    load = f"load {load_before:.1f} before, {os.getloadavg()[0]:.1f} after"
    print(f"batch {len(embedding)}, {rounds} interleaved rounds, {load}")
    for name in heads:
        columns = (
            f"{word} {np.median(times[name]) * 1e3:8.1f} ms {np.median(times[PEER]) / np.median(times[name]):6.2f} x"
            for word, times in (("logits", forward), ("and gradients", step))
        )
        print(f"{name:22} {'   '.join(columns)}")


@torch.inference_mode()
def time_logits(head: nn.Module, embedding: Tensor) -> float:
    """Processor seconds of one forward pass."""
    start = time.thread_time()
    head(embedding)
    return time.thread_time() - start


def time_step(head: nn.Module, embedding: Tensor) -> float:
    """Processor seconds of one forward and backward pass, down to the embedding."""
    leaf = embedding.clone().requires_grad_()
    start = time.thread_time()
    head(leaf).logsumexp(dim=1).sum().backward()
    return time.thread_time() - start


if __name__ == "__main__":
    main()
