"""Smooth losses: `mean_loss` is the objective with its gradient and Hessian, `newton` the iteration."""
