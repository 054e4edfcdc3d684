"""Training by optimizers of torch.

`plan` reads what the estimator asks for, `optimum` is what training is measured against, `coordinates` say
what an optimizer's parameters mean, `objectives` have gradients on rows, `epochs` and `row_epochs` are the
ways through them, `loop` runs, stops and resumes, `checkpoint` reads and writes files, `report` tells
callbacks, and `optimizers` are torch's, by name. Imports `_solvers` and what is below.
"""
