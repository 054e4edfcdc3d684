"""The loop of a tutorial for any loss, by autograd, with penalties and bounds."""

import numpy as np
import torch

from torchlinreg.losses import as_loss


class ProximalLoop:
    """The loop of a tutorial, with autograd, and a proximal step of the l1 penalty and bounds."""

    def __init__(self, make, loss, X, y, n_epochs, *, weight=None, batch_size=None, seed=None, **penalty):
        X, y = torch.from_numpy(X), torch.from_numpy(y.reshape(len(X), -1))
        function = as_loss(loss).value if not callable(loss) else loss
        weight = torch.ones(len(X)).double() if weight is None else torch.from_numpy(weight)
        rows = torch.nonzero(weight > 0)[:, 0]
        weight = weight / weight[rows].mean()
        strength = penalty.get("alpha", 0.0) * torch.tensor(penalty.get("penalty_factor", [1.0] * 3)).double()
        ratio = penalty.get("l1_ratio", 0.0)
        lower, upper = penalty.get("bounds", (-np.inf, np.inf))
        lower = np.maximum(lower, 0.0) if penalty.get("positive") else lower
        linear = torch.nn.Linear(3, y.shape[1], dtype=torch.float64)
        torch.nn.init.zeros_(linear.weight), torch.nn.init.zeros_(linear.bias)
        optimizer = make(list(linear.parameters()))
        generator = None if seed is None else torch.Generator().manual_seed(seed)

        def smooth(part):
            error = (weight[part, None] * function(linear(X[part]), y[part])).sum() / len(part)
            return error + ((1 - ratio) * strength / 2 * linear.weight.square()).sum()

        coefs, intercepts, curve = [], [], []
        for _ in range(n_epochs):
            order = rows if seed is None else rows[torch.randperm(len(rows), generator=generator)]
            for part in order.split(batch_size or len(rows)):
                optimizer.zero_grad()
                smooth(part).backward()
                optimizer.step()
                with torch.no_grad():
                    rate = optimizer.param_groups[0]["lr"]
                    threshold = rate * ratio * strength
                    w = linear.weight
                    w.copy_(torch.sign(w) * (w.abs() - threshold).clamp(min=0))
                    w.copy_(torch.from_numpy(np.clip(w.numpy(), lower, upper)))
            coefs.append(linear.weight.detach().numpy().copy())
            intercepts.append(linear.bias.detach().numpy().copy())
            with torch.no_grad():
                curve.append(float(smooth(rows) + (ratio * strength * linear.weight.abs()).sum()))
        self.coef, self.intercept, self.loss = np.array(coefs), np.array(intercepts), np.array(curve)
