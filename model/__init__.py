"""The mathematics: data, the T2Diff two-tower model, training and evaluation."""
