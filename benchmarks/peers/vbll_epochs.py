"""The package vbll, run by a Python that has PyTorch and vbll: a network with its regression layer, epochs timed.

python vbll_epochs.py GIVEN.npz FOUND.json
"""

import itertools
import json
import sys
import time

import numpy as np
import torch
import vbll


class Network(torch.nn.Module):
    """Rectified layers of one width, and vbll's last layer."""

    def __init__(self, inputs, width, layers, weight):
        super().__init__()
        sizes = [inputs] + [width] * layers
        self.body = torch.nn.ModuleList([torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)])
        self.head = vbll.Regression(width, 1, regularization_weight=weight, parameterization="dense")

    def forward(self, x):
        for layer in self.body:
            x = torch.relu(layer(x))
        return self.head(x)


def main():
    given = np.load(sys.argv[1])
    x, y, new, there = (torch.as_tensor(given[k], dtype=torch.float32) for k in ("x", "y", "new", "there"))
    batch, epochs, width, layers, rate = (given[k].item() for k in ("batch", "epochs", "width", "layers", "rate"))
    torch.set_num_threads(int(given["threads"]))
    torch.manual_seed(0)
    net = Network(x.shape[1], int(width), int(layers), 1 / len(x))
    groups = [{"params": net.body.parameters(), "weight_decay": 1e-4}, {"params": net.head.parameters()}]
    adam = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0)
    seconds = []
    for _ in range(int(epochs)):
        order, began = torch.randperm(len(x)), time.perf_counter()
        for rows in order.split(int(batch)):
            if len(rows) < batch:
                break  # as ours, which has batches of one size
            adam.zero_grad()
            net(x[rows]).train_loss_fn(y[rows, None]).backward()
            adam.step()
        seconds.append(time.perf_counter() - began)
    with torch.no_grad():
        nll = -net(new).predictive.log_prob(there[:, None]).mean().item()
    with open(sys.argv[2], "w") as file:
        json.dump({"seconds": seconds, "nll": nll}, file)


if __name__ == "__main__":
    main()
