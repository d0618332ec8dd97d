"""The models T2Diff is compared with; each obeys the contract of model.two_tower."""
